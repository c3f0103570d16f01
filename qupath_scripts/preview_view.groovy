/*
 * Draws the nuclei that a run would find in the part of the image that is in view.
 *
 * What it does
 *   Asks for options of "qpnuclei run" (to try a threshold, say), runs it on the selected annotations
 *   or, where none is selected, on what the viewer shows, and draws the nuclei as detections of class
 *   "Preview". It works on a project of its own, which it deletes: nothing is saved, neither the
 *   image nor the project. Done again, it replaces the preview. Edit > Undo or qpnuclei > Remove the
 *   preview takes it away; saved with the image, it stays, and qpnuclei does not count it.
 *   Annotations that a run leaves out (Ignore*) are not left out here. Options have no effect that choose images
 *   and areas (--image, --roi ...), leave out some (--exclude, --qc), refer to earlier nuclei (--on-existing), or
 *   name folders for results (--geojson ...).
 *
 * In QuPath (0.4 to 0.7)
 *   Choose qpnuclei > Preview in the view; or Automate > User scripts > qpnuclei, then Run > Run.
 *
 * Headless
 *   Use "qpnuclei preview", which makes a page.
 */

import static qupath.lib.gui.scripting.QPEx.*
import java.awt.image.BufferedImage
import java.nio.file.Files
import qupath.lib.io.PathIO
import qupath.lib.objects.PathObjects
import qupath.lib.objects.classes.PathClass
import qupath.lib.projects.Projects

// More than this takes minutes.
def MOST_MEGAPIXELS = 200

def qpnuclei = new GroovyShell(getClass().getClassLoader(), binding).parse(
        new File(new File(getProperty("qupath.script.file") as String).getParentFile(), "run_qpnuclei.groovy"))

def imageData = getCurrentImageData()
if (imageData == null)
    throw new IllegalStateException("open an image")
def server = imageData.getServer()
def hierarchy = imageData.getHierarchy()

def rois = getSelectedObjects().findAll { it.isAnnotation() }.collect { it.getROI() }
if (!rois)
    rois = [qpnuclei.viewRoi(getCurrentViewer(), server)]
def megapixels = rois.sum { it.getArea() } / 1e6
if (megapixels > MOST_MEGAPIXELS)
    throw new IllegalStateException("these are ${Math.round(megapixels)} megapixels, and at most $MOST_MEGAPIXELS are shown: zoom in")

def options = Dialogs.showInputDialog("qpnuclei", "Options of this preview, for example: --threshold 0.4", qpnuclei.settings().options)
if (options == null)
    return

def folder = Files.createTempDirectory("qpnuclei").toFile()
def found = []
try {
    def place = new File(folder, "project")
    place.mkdirs()
    def project = Projects.createProject(place, BufferedImage)
    def entry = project.addImage(server.getBuilder())
    entry.setImageName(server.getMetadata().getName())
    def copy = entry.readImageData()
    copy.setImageType(imageData.getImageType())
    if (imageData.getColorDeconvolutionStains() != null)
        copy.setColorDeconvolutionStains(imageData.getColorDeconvolutionStains())
    // It says which pixel size an earlier run was given.
    def known = imageData.getProperty("qpnuclei analysed")
    if (known != null)
        copy.setProperty("qpnuclei analysed", known)
    rois.each { copy.getHierarchy().addObject(PathObjects.createAnnotationObject(it)) }
    entry.saveImageData(copy)
    project.syncChanges()
    copy.getServer().close()

    def nuclei = new File(folder, "nuclei")
    qpnuclei.execute([qpnuclei.programPath(), "run", project.getPath(), "--roi-all", "--no-report", "--geojson", nuclei, *forPreview(qpnuclei.words(options))])
    nuclei.listFiles().each { found.addAll(PathIO.readObjects(it)) }
} finally {
    folder.deleteDir()
}

def preview = PathClass.fromString("Preview", getColorRGB(255, 213, 0))
hierarchy.removeObjects(hierarchy.getDetectionObjects().findAll { it.getPathClass()?.toString() == "Preview" }, true)
found.each {
    // With an ID of qpnuclei it would be counted, and replaced by a run.
    it.refreshID()
    it.setPathClass(preview)
}
hierarchy.addObjects(found)
println "preview: ${found.size()} nuclei"


/**
 * Options without those that refer to the project that is open: to its images, classes and earlier nuclei, or to
 * folders for the results of its runs. The preview would fail, find nothing, or write into these folders.
 */
List forPreview(List options) {
    def withValue = ["--exclude", "--on-existing", "--image", "--roi", "--roi-name", "--roi-id",
                     "--output", "-o", "--geojson", "--parquet", "--run-dir"]
    def alone = ["--roi-all", "--roi-derived", "--tissue", "--no-annotation", "--qc", "--dry-run"]
    if (options.any { it == "--mpp-table" || it.startsWith("--mpp-table=") })
        throw new IllegalArgumentException("a preview knows no names of images: give --mpp instead of --mpp-table")
    def isValue = false
    return options.findAll { option ->
        def isJoined = withValue.any { option.startsWith(it + "=") } || option =~ /^-o./
        def isLeft = !isValue && !isJoined && !(option in withValue + alone)
        isValue = !isValue && option in withValue
        return isLeft
    }
}
