/*
 * Imports detections from GeoJSON files into the images of a project.
 *
 * What it does
 *   Looks in a folder for the file of the current image: <entry ID>-<image name>.geojson.gz, as
 *   "qpnuclei run --geojson FOLDER" writes it, or <image name>.geojson; either may be gzipped or
 *   not. Its detections are put under the annotation that holds their centroid, the smallest if
 *   several do, else under the image. Detections whose ID the image has already are left out, so
 *   that importing twice does no harm. The image is saved.
 *
 * In QuPath (0.4 to 0.7)
 *   Set `folder` below. Open an image of a project, open this file in the script editor
 *   (Automate > Script editor), and choose Run > Run. For many images: Run > Run for project.
 *
 * Headless, for all images of a project or, with -i NAME, for one
 *   QuPath script -p project.qpproj -a FOLDER import_detections.groovy
 *   The images are saved with or without --save.
 */

import static qupath.lib.scripting.QP.*
import qupath.lib.io.PathIO

// Where the files are; {%PROJECT} is the folder of the project. Headless, -a takes its place.
def folder = "{%PROJECT}/geojson"


def entry = getProjectEntry()
if (entry == null)
    throw new IllegalStateException("there is no project: open an image of one")
def name = entry.getImageName()
def directory = new File(resolvePath(binding.hasVariable("args") && args ? args[0] : folder))
if (!directory.isDirectory())
    throw new FileNotFoundException("$directory is not a folder: set `folder`, or give it with -a")

def stems = [fileStem(entry.getID(), name)]
// A bare name does not say which of several images it means.
if (getProject().getImageList().count { it.getImageName() == name } == 1)
    stems << name
def candidates = stems.collectMany { [it + ".geojson.gz", it + ".geojson"] }
def present = directory.list() as Set
def fileName = candidates.find { it in present }
if (fileName == null) {
    println "$name: nothing imported, $directory has no ${candidates.join(', ')}"
    return
}

def objects
try {
    objects = PathIO.readObjects(new File(directory, fileName))
} catch (Exception e) {
    throw new IOException("$name: cannot read $fileName: ${e.getMessage()}", e)
}
def detections = objects.findAll { it.isDetection() }
def imageData = getCurrentImageData()
def hierarchy = imageData.getHierarchy()
def ids = hierarchy.getAllObjects(false).collect { it.getID() } as Set
def added = detections.findAll { ids.add(it.getID()) }
if (added) {
    hierarchy.insertPathObjects(added)
    entry.saveImageData(imageData)
}
println "$name: ${added.size()} detections imported from $fileName, " +
        "${added.count { it.getParent().isAnnotation() }} of them into annotations; " +
        "${detections.size() - added.size()} were there already, " +
        "${objects.size() - detections.size()} objects are no detections"


/** Name that qpnuclei gives to the files of an image, without suffix. */
String fileStem(String id, String name) {
    def stem = id + "-" + name.replaceAll(/[^\p{L}\p{N}\-_. ]/, "_")
    while (stem.getBytes("UTF-8").length > 120)
        stem = stem.substring(0, stem.offsetByCodePoints(stem.length(), -1))
    return stem.replaceAll(/[. ]+$/, "")
}
