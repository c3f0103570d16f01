/*
 * Accepts the selected nuclei: locks them, or unlocks them if all of them are locked.
 *
 * What it does
 *   Locks the selected detections, and those in the selected annotations. What is locked is not
 *   removed by "qpnuclei filter", nor by the scripts beside this one, nor by a new run on the same
 *   annotation, which writes no second nucleus in its place.
 *
 * In QuPath (0.4 to 0.7)
 *   Select nuclei or annotations, and choose qpnuclei > Accept nuclei; or Automate > User scripts >
 *   qpnuclei, then Run > Run. File > Save keeps the locks.
 *
 * Headless
 *   Of no use there.
 */

import static qupath.lib.scripting.QP.*
import qupath.lib.objects.PathDetectionObject

def hierarchy = getCurrentHierarchy()
if (hierarchy == null)
    throw new IllegalStateException("open an image")
def nuclei = getSelectedObjects().collectMany(new LinkedHashSet()) {
    it.isDetection() ? [it] : it.isAnnotation() ? hierarchy.getObjectsForROI(PathDetectionObject, it.getROI()) : []
}
if (!nuclei)
    throw new IllegalStateException("select nuclei, or annotations with nuclei inside")
def lock = !nuclei.every { it.isLocked() }
nuclei.each { it.setLocked(lock) }
fireHierarchyUpdate()
println "${lock ? 'locked' : 'unlocked'}: ${nuclei.size()} nuclei"
