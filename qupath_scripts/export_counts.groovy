/*
 * Counts the nuclei in the annotations of a project and writes a table.
 *
 * What it does
 *   Writes a CSV file with the rows, columns and numbers of "qpnuclei export -o counts.csv",
 *   computed by QuPath: for each annotation of each image its area, the nuclei whose centroid lies
 *   inside, their density, all detections inside by class, and for each measurement the mean,
 *   median and standard deviation over the nuclei. Nuclei are the detections that qpnuclei wrote,
 *   and others of the class Nucleus. What is not known (an area without pixel size) is empty.
 *
 * In QuPath (0.4 to 0.7)
 *   Open an image of a project, open this file in the script editor (Automate > Script editor), and
 *   choose Run > Run. It counts all images of the project: the open one as it is shown, the others
 *   as they were saved.
 *
 * Headless
 *   QuPath script -p project.qpproj export_counts.groovy
 *   QuPath script -p project.qpproj -a counts.csv export_counts.groovy
 */

import static qupath.lib.scripting.QP.*
import java.nio.file.Files
import java.nio.file.Path
import org.apache.commons.math3.stat.StatUtils
import qupath.lib.objects.PathDetectionObject

// The table; {%PROJECT} is the folder of the project. Headless, -a takes its place.
def output = "{%PROJECT}/counts.csv"

// Count only annotations of these classes, for example ["Tumor"]; all if empty.
def annotationClasses = []

// Count detections of these classes as nuclei, whoever made them; if empty, see above.
def nucleusClasses = []


// Run for many images, headless or by "Run for project", the first run does the work of all.
if (binding.hasVariable("qupath.script.batchIndex") && getProperty("qupath.script.batchIndex") > 0)
    return

def project = getProject()
if (project == null)
    throw new IllegalStateException("there is no project: open one")
def projectPath = project.getPath()
def projectName = "${projectPath.getParent().getFileName()}/${projectPath.getFileName()}"
def rows = []
for (entry in project.getImageList()) {
    def isCurrent = entry.getID() == getProjectEntry()?.getID()
    def imageData
    def pixels
    try {
        imageData = isCurrent ? getCurrentImageData() : entry.readImageData()
        pixels = imageData.getServer().getPixelCalibration()
    } catch (Exception e) {
        throw new IOException("cannot open the image '${entry.getImageName()}': relink it in QuPath, " +
                "or use \"qpnuclei export\", which needs no images", e)
    }
    try {
        def image = [project: projectName, image: entry.getImageName()]
        rows += count(imageData.getHierarchy(), pixels, annotationClasses, nucleusClasses).collect { image + it }
    } finally {
        // Until 0.5 it is the image's server that is closed, not the image.
        if (!isCurrent)
            imageData instanceof AutoCloseable ? imageData.close() : imageData.getServer().close()
    }
}
for (wanted in annotationClasses)
    if (!rows.any { it["class"] == wanted })
        throw new IllegalArgumentException("no annotation has the class '$wanted'")

def columns = rows.collectMany(new LinkedHashSet()) { it.keySet() }
def table = [columns, *rows.collect { row -> columns.collect { row[it] } }]
def path = Path.of(resolvePath(binding.hasVariable("args") && args ? args[0] : output))
Files.writeString(path, table.collect { line -> line.collect { cell(it) }.join(",") + "\n" }.join(""))
println "${path.toAbsolutePath()}: ${rows.size()} rows"


/** Rows of one image: maps of column to value, one for each annotation. */
List<Map> count(hierarchy, pixels, annotationClasses, nucleusClasses) {
    def objects = hierarchy.getFlattenedObjectList(null)
    def detections = objects.findAll { it.isDetection() }
    def classes = detections.collect { className(it) }.findAll().toSet().sort()
    def measurements = detections.collectMany(new LinkedHashSet()) { it.getMeasurementList().getMeasurementNames() }
    def annotations = objects.findAll {
        it.isAnnotation() && (!annotationClasses || className(it) in annotationClasses)
    }
    return annotations.collect { annotation ->
        def roi = annotation.getROI()
        def area = Double.NaN
        if (pixels.hasPixelSizeMicrons())
            area = roi.isArea() ? roi.getScaledArea(pixels.getPixelWidthMicrons() / 1000, pixels.getPixelHeightMicrons() / 1000) : 0d
        // As QuPath counts, for the numbers that it shows itself.
        def inside = hierarchy.getObjectsForROI(PathDetectionObject, roi)
        def nuclei = inside.findAll { isNucleus(it, nucleusClasses) }
        def row = [
            annotation: annotation.getName(),
            "class": className(annotation),
            uuid: annotation.getID(),
            area_mm2: area,
            nuclei: nuclei.size(),
            nuclei_per_mm2: area > 0 ? nuclei.size() / area : Double.NaN,
            "Num Detections": inside.size(),
        ]
        def numbers = inside.countBy { className(it) }
        for (name in classes)
            row["Num " + name] = numbers[name] ?: 0
        for (name in measurements) {
            def values = nuclei.collect { it.getMeasurementList().get(name) }.findAll { !Double.isNaN(it) } as double[]
            row[name + " (mean)"] = StatUtils.mean(values)
            row[name + " (median)"] = StatUtils.percentile(values, 50)
            row[name + " (SD)"] = values.length > 1 ? Math.sqrt(StatUtils.variance(values)) : Double.NaN
        }
        return row
    }
}

String className(pathObject) {
    return pathObject.getPathClass()?.toString()
}

/** Whether a detection counts; those of qpnuclei have IDs of version 8 that begin with "qpnucl". */
boolean isNucleus(detection, nucleusClasses) {
    if (nucleusClasses)
        return className(detection) in nucleusClasses
    def id = detection.getID()
    def isOurs = id.version() == 8 && (id.getMostSignificantBits() >>> 16) == 0x71706e75636cL
    return isOurs || className(detection) == "Nucleus"
}

/** A value as a cell of a CSV table. */
String cell(value) {
    if (value == null || value instanceof Double && !Double.isFinite(value))
        return ""
    def text = value.toString()
    return text =~ /[",\r\n]/ ? '"' + text.replace('"', '""') + '"' : text
}
