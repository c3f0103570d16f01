/*
 * Compares what several thresholds find in the part of the image that is in view.
 *
 * What it does
 *   Runs "qpnuclei preview" on the selected annotations or, where none is selected, on what the
 *   viewer shows, and opens its page in the browser: a few fields with outlines, for each threshold.
 *   No nuclei are written. While it works, an annotation "preview" of the view is in the project.
 *
 * In QuPath (0.4 to 0.7)
 *   Choose qpnuclei > Compare settings; or Automate > User scripts > qpnuclei, then Run > Run.
 *
 * Headless
 *   Use "qpnuclei preview" itself.
 */

import static qupath.lib.gui.scripting.QPEx.*
import qupath.lib.objects.PathObjects

def qpnuclei = new GroovyShell(getClass().getClassLoader(), binding).parse(
        new File(new File(getProperty("qupath.script.file") as String).getParentFile(), "run_qpnuclei.groovy"))

def project = getProject()
def entry = getProjectEntry()
if (entry == null)
    throw new IllegalStateException("qpnuclei needs a project: open an image of one")
def imageData = getCurrentImageData()
def hierarchy = imageData.getHierarchy()

def chosen = getSelectedObjects().findAll { it.isAnnotation() }
def temporary = []
if (!chosen) {
    def annotation = PathObjects.createAnnotationObject(qpnuclei.viewRoi(getCurrentViewer(), imageData.getServer()))
    annotation.setName("preview")
    temporary << annotation
    hierarchy.addObject(annotation)
}
def folder = new File(project.getPath().getParent().toFile(), "qpnuclei")
folder.mkdirs()
def page = new File(folder, "preview.html")
try {
    // What qpnuclei reads is what is saved.
    entry.saveImageData(imageData)
    project.syncChanges()
    def ids = (chosen ?: temporary).collectMany { ["--roi-id", it.getID().toString()] }
    def image = qpnuclei.uniqueName(project, entry)
    qpnuclei.execute([qpnuclei.programPath(), "preview", project.getPath(), "--image=$image", *ids, "-o", page])
} finally {
    if (temporary) {
        hierarchy.removeObjects(temporary, true)
        entry.saveImageData(imageData)
    }
}
GuiTools.browseURI(page.toURI())
