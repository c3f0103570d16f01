/*
 * Rejects the selected nuclei: removes them.
 *
 * What it does
 *   Removes the selected detections, but for those that are locked (accepted). Selected annotations
 *   and what is in them stay. Edit > Undo brings them back where QuPath can undo, else File > Reload
 *   data, as long as the image was not saved.
 *
 * In QuPath (0.4 to 0.7)
 *   Select nuclei, and choose qpnuclei > Reject nuclei; or Automate > User scripts > qpnuclei, then
 *   Run > Run. File > Save keeps the change.
 *
 * Headless
 *   Of no use there.
 */

import static qupath.lib.scripting.QP.*

def hierarchy = getCurrentHierarchy()
if (hierarchy == null)
    throw new IllegalStateException("open an image")
def selected = getSelectedObjects().findAll { it.isDetection() }
if (!selected)
    throw new IllegalStateException("select nuclei")
def rejected = selected.findAll { !it.isLocked() }
hierarchy.getSelectionModel().clearSelection()
hierarchy.removeObjects(rejected, true)
println "removed: ${rejected.size()} nuclei; locked, and kept: ${selected.size() - rejected.size()}"
