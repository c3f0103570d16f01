/*
 * Removes the nuclei that "Preview in the view" drew.
 *
 * What it does
 *   Removes all detections of class "Preview" from the image that is open, and nothing else.
 *
 * In QuPath (0.4 to 0.7)
 *   Choose qpnuclei > Remove the preview; or Automate > User scripts > qpnuclei, then Run > Run.
 *
 * Headless
 *   Of no use there.
 */

import static qupath.lib.scripting.QP.*

def hierarchy = getCurrentHierarchy()
if (hierarchy == null)
    throw new IllegalStateException("open an image")
def preview = hierarchy.getDetectionObjects().findAll { it.getPathClass()?.toString() == "Preview" }
hierarchy.getSelectionModel().clearSelection()
hierarchy.removeObjects(preview, true)
println "removed: ${preview.size()} nuclei of the preview"
