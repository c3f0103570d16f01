/*
 * Counts the nuclei in the annotations of a project and writes a table.
 *
 * What it does
 *   Writes a CSV file with the rows, columns and numbers of "qpnuclei export -o counts.csv",
 *   computed by QuPath: for each TMA core and annotation of each image its area, the nuclei whose centroid lies
 *   inside, their density, all detections inside by class, and for each measurement the mean,
 *   median and standard deviation over the nuclei. Nuclei are the detections that qpnuclei wrote,
 *   and others of the class Nucleus. What is not known (an area without pixel size, the nuclei
 *   where no run of qpnuclei has looked for any) is empty; the column "status" says what is known.
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
import org.locationtech.jts.algorithm.distance.DiscreteHausdorffDistance
import org.locationtech.jts.geom.Geometry
import qupath.lib.io.GsonTools
import qupath.lib.objects.PathDetectionObject
import qupath.lib.roi.GeometryTools

// The table; {%PROJECT} is the folder of the project. Headless, -a takes its place.
def output = "{%PROJECT}/counts.csv"

// Count only annotations of these classes, for example ["Tumor"]; all if empty.
def annotationClasses = []

// Count detections of these classes as nuclei, whoever made them and wherever they are; if empty,
// see above.
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
        def image = [image: entry.getImageName()]
        def origin = [image_id: entry.getID(), project: projectName]
        def record = readRecord(imageData.getProperty("qpnuclei analysed"))
        rows += count(imageData.getHierarchy(), pixels, record, annotationClasses, nucleusClasses).collect { image + it + origin }
    } finally {
        // Until 0.5 it is the image's server that is closed, not the image.
        if (!isCurrent)
            imageData instanceof AutoCloseable ? imageData.close() : imageData.getServer().close()
    }
}
for (wanted in annotationClasses)
    if (!rows.any { it["class"] == wanted })
        throw new IllegalArgumentException("no annotation has the class '$wanted'")

// First what a person reads, last what programs need.
def first = ["image", "annotation", "type", "class", "nuclei", "nuclei_per_mm2", "area_mm2", "analysed_mm2", "status", "check"]
def last = ["uuid", "image_id", "project"]
def between = rows.collectMany(new LinkedHashSet()) { it.keySet() } - first - last
def columns = first + between.findAll { it.startsWith("Num ") } + between.findAll { !it.startsWith("Num ") } + last
def table = [columns, *rows.collect { row -> columns.collect { row[it] } }]
def path = Path.of(resolvePath(binding.hasVariable("args") && args ? args[0] : output))
// The mark by which Excel knows that the file is UTF-8, and shows µ.
Files.writeString(path, "\ufeff" + table.collect { line -> line.collect { cell(it) }.join(",") + "\n" }.join(""))
println "${path.toAbsolutePath()}: ${rows.size()} rows"


/** Rows of one image: maps of column to value, one for each annotation. */
List<Map> count(hierarchy, pixels, record, annotationClasses, nucleusClasses) {
    def objects = hierarchy.getFlattenedObjectList(null)
    def detections = objects.findAll { it.isDetection() }
    def classes = detections.collect { className(it) }.findAll().toSet().sort()
    def bases = classes.collect { baseOfIntensity(it) }.findAll().toSet().sort()
    def measurements = detections.collectMany(new LinkedHashSet()) { it.getMeasurementList().getMeasurementNames() }
    def annotations = (objects.findAll { it.isTMACore() } + objects.findAll { it.isAnnotation() }).findAll {
        !annotationClasses || className(it) in annotationClasses
    }
    def size = pixelSizeMm(record, pixels)
    return annotations.collect { annotation ->
        def roi = annotation.getROI()
        def status = statusOf(annotation, record)
        def isKnown = nucleusClasses || status != "not analysed"
        def area = size == null ? Double.NaN : roi.isArea() ? roi.getScaledArea(size[0], size[1]) : 0d
        def analysed = size == null ? Double.NaN : 0d
        if (status == "analysed")
            analysed = area
        else if (size != null && status == "changed since")
            analysed = GeometryTools.homogenizeGeometryCollection(roi.getGeometry().intersection(record.union)).getArea() * size[0] * size[1]
        def densityOf = nucleusClasses ? area : analysed
        // As QuPath counts, for the numbers that it shows itself.
        def inside = isKnown ? hierarchy.getObjectsForROI(PathDetectionObject, roi) : []
        def nuclei = inside.findAll { isNucleus(it, nucleusClasses) }
        def row = [
            annotation: annotation.getName(),
            type: annotation.isAnnotation() ? "annotation" : annotation.isMissing() ? "missing TMA core" : "TMA core",
            "class": className(annotation),
            nuclei: isKnown ? nuclei.size() : null,
            nuclei_per_mm2: isKnown && densityOf > 0 ? nuclei.size() / densityOf : Double.NaN,
            area_mm2: area,
            analysed_mm2: analysed,
            status: status,
            check: status == "not analysed" ? null : doubtsOf(annotation, record),
            "Num Detections": isKnown ? inside.size() : null,
        ]
        def numbers = inside.countBy { className(it) }
        for (base in bases)
            row["Num " + base + " (base)"] = isKnown ? classes.findAll { (it + ": ").startsWith(base + ": ") }.sum { numbers[it] ?: 0 } : null
        for (name in classes)
            row["Num " + name] = isKnown ? numbers[name] ?: 0 : null
        for (name in measurements) {
            def values = nuclei.collect { it.getMeasurementList().get(name) }.findAll { !Double.isNaN(it) } as double[]
            row[name + " (mean)"] = StatUtils.mean(values)
            row[name + " (median)"] = StatUtils.percentile(values, 50)
            row[name + " (SD)"] = values.length > 1 ? Math.sqrt(StatUtils.variance(values)) : Double.NaN
        }
        row.uuid = annotation.getID()
        return row
    }
}

/** What runs have noted of an image: the areas they analysed, by ID, and the pixel size they used. */
Map readRecord(text) {
    if (text == null)
        return [areas: [], union: null, used: null]
    def gson = GsonTools.getInstance()
    def content = gson.fromJson(text as String, Map)
    def areas = content.areas.collect { area ->
        def shape = gson.toJson([type: "MultiPolygon", coordinates: area.coordinates])
        return [id: area.id, check: area.check, geometry: gson.fromJson(shape, Geometry)]
    }
    return [areas: areas, union: GeometryTools.union(areas.collect { it.geometry }), used: content["pixel size"]]
}

/** Width and height of a pixel in mm: what the last run used, unless QuPath's has changed since. */
List pixelSizeMm(record, pixels) {
    def own = pixels.hasPixelSizeMicrons() ? [pixels.getPixelWidthMicrons(), pixels.getPixelHeightMicrons()] : null
    def used = record.used
    def isSame = used != null && (used.project == null || own != null && (0..1).every { Math.abs(used.project[it] - own[it]) < 1e-9 })
    def microns = isSame ? used.um : own
    return microns?.collect { it / 1000 }
}

/** Whether an annotation was analysed, as it is now. */
String statusOf(annotation, record) {
    def roi = annotation.getROI()
    if (!roi.isArea() || roi.getZ() != 0 || roi.getT() != 0 || !record.areas)
        return "not analysed"
    def geometry = roi.getGeometry()
    def own = record.areas.find { it.id == annotation.getID().toString() }
    if (own != null)
        return isSame(own.geometry, geometry) ? "analysed" : "changed since"
    if (record.areas.any { isSame(it.geometry, geometry) })
        return "analysed"
    return geometry.difference(record.union).getArea() <= 0.02 * geometry.getLength() ? "analysed" : "not analysed"
}

/** What the run found doubtful about an annotation, or about the areas that it lies in. */
String doubtsOf(annotation, record) {
    def geometry = annotation.getROI().getGeometry()
    def own = record.areas.findAll { it.id == annotation.getID().toString() } ?:
            record.areas.findAll { isSame(it.geometry, geometry) } ?:
            record.areas.findAll { it.check && it.geometry.intersects(geometry) }
    return own.collect { it.check }.findAll().unique().join("; ") ?: null
}

/** Whether two outlines are the same, but for how exactly files keep coordinates. */
boolean isSame(a, b) {
    if (a.isEmpty() || b.isEmpty())
        return a.isEmpty() && b.isEmpty()
    if (Math.abs(a.getArea() - b.getArea()) > 0.02 * a.getLength())
        return false
    return DiscreteHausdorffDistance.distance(a, b) <= 0.02
}

/** "Tumor" for "Tumor: Positive" and the like, for which QuPath counts all that is below it. */
String baseOfIntensity(String name) {
    def at = name.lastIndexOf(": ")
    return at > 0 && name.substring(at + 2) in ["Positive", "Negative", "1+", "2+", "3+"] ? name.substring(0, at) : null
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
