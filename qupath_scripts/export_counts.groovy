/*
 * Counts the nuclei in the annotations of a project and writes a table.
 *
 * What it does
 *   Writes a CSV file with the rows, columns and numbers of "qpnuclei export -o counts.csv",
 *   computed by QuPath: for each TMA core and annotation of each image its area, the nuclei whose centroid lies
 *   inside, their density, all detections inside by class, the share of positive ones and their H-score, and for
 *   each measurement the mean, median and standard deviation over the nuclei. Nuclei are the detections that
 *   qpnuclei wrote, and others of the class Nucleus. What is not known (an area without pixel size, the nuclei
 *   where no run of qpnuclei has looked for any) is empty; the column "status" says what is known.
 *   Unlike the command, it writes numbers with all their digits.
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
import java.math.MathContext
import java.math.RoundingMode
import org.locationtech.jts.algorithm.distance.DiscreteHausdorffDistance
import org.locationtech.jts.geom.Coordinate
import org.locationtech.jts.geom.Envelope
import org.locationtech.jts.geom.Geometry
import org.locationtech.jts.geom.GeometryFactory
import org.locationtech.jts.geom.LinearRing
import org.locationtech.jts.geom.Polygon
import org.locationtech.jts.geom.util.GeometryFixer
import org.locationtech.jts.geom.util.PolygonExtracter
import org.locationtech.jts.index.strtree.STRtree
import org.locationtech.jts.operation.overlayng.OverlayNG
import org.locationtech.jts.operation.overlayng.OverlayNGRobust
import qupath.lib.io.GsonTools
import qupath.lib.objects.PathDetectionObject

// The table; {%PROJECT} is the folder of the project. Headless, -a takes its place.
def output = "{%PROJECT}/counts.csv"

// Count only annotations of these classes, for example ["Tumor"]; all if empty.
def annotationClasses = []

// Count detections of these classes as nuclei, whoever made them and wherever they are; "" is no
// class. If empty, see above.
def nucleusClasses = []


// Run for many images, headless or by "Run for project", the first run does the work of all.
if (binding.hasVariable("qupath.script.batchIndex") && getProperty("qupath.script.batchIndex") > 0)
    return

def project = getProject()
if (project == null)
    throw new IllegalStateException("there is no project: open one")
def projectPath = project.getPath()
def projectName = "${projectPath.getParent().getFileName()}/${projectPath.getFileName()}"
def images = []
for (entry in project.getImageList()) {
    def isCurrent = entry.getID() == getProjectEntry()?.getID()
    def imageData
    def own
    def ofSlide
    try {
        imageData = isCurrent ? getCurrentImageData() : entry.readImageData()
        own = micronsOf(imageData.getServer().getPixelCalibration())
        ofSlide = micronsOf(imageData.getServer().getOriginalMetadata().getPixelCalibration())
    } catch (Exception e) {
        throw new IOException("cannot open the image '${entry.getImageName()}': relink it in QuPath, " +
                "or use \"qpnuclei export\", which needs no images", e)
    }
    try {
        def image = [image: entry.getImageName()]
        def origin = [image_id: entry.getID(), project: projectName]
        def record = readRecord(imageData.getProperty("qpnuclei analysed"))
        def stored = GsonTools.getInstance().fromJson(GsonTools.getInstance().toJson(entry.getServerBuilder()), Map)
        def size = pixelSizeMm(record, own, isOfProject(stored, own, ofSlide))
        def stains = stainRows(imageData.getColorDeconvolutionStains())
        def counted = count(imageData.getHierarchy(), size, stains, record, annotationClasses, nucleusClasses)
        images << [classes: counted.classes, rows: counted.rows.collect { image + it + origin }]
    } finally {
        // Until 0.5 it is the image's server that is closed, not the image.
        if (!isCurrent)
            imageData instanceof AutoCloseable ? imageData.close() : imageData.getServer().close()
    }
}
def rows = withAllClasses(images)
for (wanted in annotationClasses)
    if (!rows.any { it["class"] == wanted })
        throw new IllegalArgumentException("no annotation has the class '$wanted'")

// First what a person reads, last what programs need.
def first = ["image", "annotation", "type", "class", "nuclei", "nuclei_per_mm2", "area_mm2", "analysed_mm2", "status", "check"]
def last = ["uuid", "image_id", "project"]
def between = rows.collectMany(new LinkedHashSet()) { it.keySet() } - first - last
def rest = between.findAll { !it.startsWith("Num ") }
def columns = first + between.findAll { it.startsWith("Num ") } + rest.sort { isShare(it) ? 0 : 1 } + last
def table = [columns, *rows.collect { row -> columns.collect { row[it] } }]
def path = Path.of(resolvePath(binding.hasVariable("args") && args ? args[0] : output))
// The mark by which Excel knows that the file is UTF-8, and shows µ.
Files.writeString(path, "\ufeff" + table.collect { line -> line.collect { cell(it) }.join(",") + "\n" }.join(""))
println "${path.toAbsolutePath()}: ${rows.size()} rows"


/** The classes of detections in one image, and its rows: maps of column to value, one for each annotation. */
Map count(hierarchy, size, stains, record, annotationClasses, nucleusClasses) {
    def objects = hierarchy.getFlattenedObjectList(null)
    def detections = objects.findAll { it.isDetection() }
    def classes = detections.collect { className(it) ?: "" }.toSet().sort()
    def measurements = detections.collectMany(new LinkedHashSet()) { it.getMeasurementList().getMeasurementNames() }
    def annotations = (objects.findAll { it.isTMACore() } + objects.findAll { it.isAnnotation() }).findAll {
        !annotationClasses || className(it) in annotationClasses
    }
    def repeated = repeatedNuclei(detections.findAll { isNucleus(it, nucleusClasses) }.collect { detection ->
        def roi = nucleusOf(detection)
        return [id: detection, isOurs: isOurs(detection), plane: [roi.getZ(), roi.getT()],
                outline: { valid(roi.getGeometry()) }.memoize(),
                bounds: new Envelope(roi.getBoundsX(), roi.getBoundsX() + roi.getBoundsWidth(), roi.getBoundsY(), roi.getBoundsY() + roi.getBoundsHeight())]
    })
    def nucleiOfRuns = detections.findAll { nucleusOf(it).getZ() == 0 && nucleusOf(it).getT() == 0 && isNucleus(it, []) }
    def rows = annotations.collect { annotation ->
        def roi = annotation.getROI()
        def id = annotation.getID().toString()
        def outline = roi.isArea() ? valid(roi.getGeometry()) : null
        def geometry = outline != null && roi.getZ() == 0 && roi.getT() == 0 ? outline : null
        def status = statusOf(id, geometry, record)
        def isKnown = nucleusClasses || status != "not analysed"
        def area = size == null ? Double.NaN : outline == null ? 0d : areaOf(roi, outline) * size[0] * size[1]
        def analysed = size == null ? Double.NaN : 0d
        def part = isKnown && geometry != null ? analysedPart(geometry, status, record) : geometry
        def isPart = part != null && geometry.getArea() - part.getArea() > 1e-9 * geometry.getArea()
        if (size != null && status != "not analysed")
            analysed = isPart ? part.getArea() * size[0] * size[1] : area
        def densityOf = nucleusClasses ? area : analysed
        // As QuPath counts, for the numbers that it shows itself.
        def inside = isKnown ? hierarchy.getObjectsForROI(PathDetectionObject, roi) : []
        def nuclei = inside.findAll { isNucleus(it, nucleusClasses) && (nucleusClasses || !isPart || part.covers(centreOf(it))) }
        def doubts = status == "not analysed" ? "" : doubtsOf(id, geometry, record)
        def otherSizes = status == "not analysed" || size == null ? "" : noteOfSizes(id, geometry, record, size.collect { it * 1000 })
        def otherStains = status == "not analysed" ? "" : noteOfStains(id, geometry, record, stains)
        def gone = status == "not analysed" || nucleusClasses || nuclei || inside.any { isOurs(it) } ? "" : noteOfEmptied(id, geometry, record)
        if (gone && (holds(part, nucleiOfRuns) || holds(geometry, nucleiOfRuns.findAll { isOurs(it) })))
            gone = ""
        def row = [
            annotation: annotation.getName(),
            type: annotation.isAnnotation() ? "annotation" : annotation.isMissing() ? "missing TMA core" : "TMA core",
            "class": className(annotation),
            nuclei: isKnown ? nuclei.size() : null,
            nuclei_per_mm2: isKnown && densityOf > 0 ? nuclei.size() / densityOf : Double.NaN,
            area_mm2: area,
            analysed_mm2: analysed,
            status: status,
            check: [doubts, otherSizes, otherStains, gone, noteOf(nuclei, repeated)].findAll().join("; ") ?: null,
            "Num Detections": isKnown ? inside.size() : null,
        ]
        def counts = inside.countBy { className(it) ?: "" }
        def numbers = numbersOf(classes, counts) + sharesOf(classes, counts)
        row += isKnown ? numbers : numbers.collectEntries { [it.key, null] }
        for (name in measurements) {
            def values = nuclei.collect { it.getMeasurementList().get(name) }.findAll { Double.isFinite(it) }.sort()
            def number = values.size()
            def mean = number ? values.sum() / number : Double.NaN
            row[name + " (mean)"] = mean
            row[name + " (median)"] = number ? (values[number.intdiv(2)] + values[(number - 1).intdiv(2)]) / 2 : Double.NaN
            row[name + " (SD)"] = number > 1 ? Math.sqrt(values.sum { (it - mean) * (it - mean) } / (number - 1)) : Double.NaN
        }
        row.uuid = annotation.getID()
        return row
    }
    return [classes: classes, rows: rows]
}

// What follows has the rules of qpnuclei. A table of cases tests both (tests/data/counting-cases.json).

/** What runs have noted of an image; nothing if they have noted nothing, or it is damaged. */
Map readRecord(text) {
    try {
        return recordOf(text == null ? [areas: []] : GsonTools.getInstance().fromJson(text as String, Map))
    } catch (Exception e) {
        println "the record of earlier runs is damaged and was ignored: $e"
        return recordOf([areas: []])
    }
}

/** The areas that runs analysed, in the order of the runs, with their pixel sizes and stains, and the pixel size of the last run. */
Map recordOf(Map content) {
    def used = content["pixel size"]
    def areas = content.areas.collect { area ->
        def geometry = valid(multiPolygon(area.coordinates))
        def analysed = area.excluded ? without(geometry, valid(multiPolygon(area.excluded))) : geometry
        return [id: area.id, check: area.check ?: "", turn: (area.turn ?: 0) as int, mpps: area.um ?: [used.um],
                stains: area.um ? area.stains ?: [] : [content.stains ?: []],
                nuclei: (area.nuclei ?: 0) as int, keepsEarlier: area["keeps earlier"] ?: false, geometry: geometry, analysed: analysed]
    }
    def union = unionOf(areas.collect { it.analysed })
    def isPart = content.areas.any { it.excluded }
    def leftOut = isPart ? without(unionOf(areas.collect { it.geometry }), union) : unionOf([])
    return [areas: areas, union: union, leftOut: leftOut, used: used]
}

/** Whether an annotation was analysed, as it is now; it has no geometry if it is no area on the first plane. */
String statusOf(String id, Geometry geometry, record) {
    if (geometry == null || geometry.getArea() == 0 || !record.areas)
        return "not analysed"
    def own = record.areas.findAll { it.id == id }
    def isCovered = (own ?: record.areas).any { isSame(it.geometry, geometry) } ||
            covers(record, geometry, own ? own.last().turn : -1)
    def status = isCovered ? "analysed" : own ? "changed since" : "not analysed"
    if ((status == "changed since" || !record.leftOut.isEmpty()) && both(geometry, record.union).getArea() <= rounding(geometry))
        return "not analysed"
    return status
}

/** The part of an annotation that was analysed: without what runs left out, and what was added to it since. */
Geometry analysedPart(Geometry geometry, String status, record) {
    if (status != "changed since")
        return without(geometry, record.leftOut)
    // Areas may only touch it, in a line or a point: these are no part, and JTS finds no points in a mixture.
    def part = both(geometry, record.union)
    return part.getFactory().buildGeometry(PolygonExtracter.getPolygons(part))
}

/** Whether the runs after a turn have analysed a geometry. */
boolean covers(record, Geometry geometry, int turn) {
    def later = record.areas.findAll { it.turn > turn && it.geometry.intersects(geometry) }
    // Each part is judged by itself: slivers along an outline of 20 mm have the area of a nucleus together.
    return PolygonExtracter.getPolygons(without(geometry, unionOf(later.collect { it.geometry }))).every { isSliver(it) }
}

/** Whether a polygon is so narrow that rounding may explain it. */
boolean isSliver(Geometry polygon) {
    return polygon.getArea() <= 0.02 * polygon.getLength() && polygon.buffer(-0.02).isEmpty()
}

/** What runs found doubtful about the nuclei that are now in an annotation. */
String doubtsOf(String id, Geometry geometry, record) {
    return withNucleiIn(id, geometry, record) { it.check }.collectMany { it.check.split("; ") as List }.unique().join("; ")
}

/** What the column "check" says of nuclei that were found at other pixel sizes (µm) than the present. */
String noteOfSizes(String id, Geometry geometry, record, List mpp) {
    def isOther = { size -> (0..1).any { Math.abs(size[it] - mpp[it]) > 0.01 * Math.max(size[it], mpp[it]) } }
    def areas = withNucleiIn(id, geometry, record) { it.mpps.any(isOther) }
    def sizes = areas.collectMany { it.mpps }.findAll(isOther).unique()
    def text = { size ->
        def (x, y) = size.collect { new BigDecimal(it).round(new MathContext(4, RoundingMode.HALF_EVEN)).stripTrailingZeros().toPlainString() }
        return x == y ? x : "$x x $y"
    }
    return sizes ? "analysed at ${sizes.collect(text).join(" and ")} µm/px, counted at ${text(mpp)}: run again" : ""
}

/** The unit vectors of the stains of an image, and its background; nothing if it has no stains. */
List stainRows(stains) {
    if (stains == null)
        return []
    def vectors = (1..3).collect { stains.getStain(it) }.findAll { !it.isResidual() }.collect { [it.getRed(), it.getGreen(), it.getBlue()] }
    def units = vectors.collect { vector -> vector.collect { it / Math.sqrt(vector.sum { it * it }) } }
    return units + [[stains.getMaxRed(), stains.getMaxGreen(), stains.getMaxBlue()]]
}

/** What the column "check" says of nuclei that were measured with other stains than the present. */
String noteOfStains(String id, Geometry geometry, record, List stains) {
    def isOther = { rows ->
        rows && stains && (rows.size() != stains.size() ||
                [rows.flatten(), stains.flatten()].transpose().any { (it[0] - it[1]).abs() > 0.001 + 0.002 * it[1].abs() })
    }
    def isFound = withNucleiIn(id, geometry, record) { it.stains.any(isOther) }
    return isFound ? "stains measured with other vectors than the image has now: run again" : ""
}

/** What the column "check" says of an annotation without nuclei, if it had some after its run. */
String noteOfEmptied(String id, Geometry geometry, record) {
    def own = (record.areas.findAll { it.id == id } ?: record.areas).findAll { isSame(it.geometry, geometry) }
    // Later runs may have replaced the nuclei.
    def emptied = own.findAll { area -> area.nuclei && !record.areas.any { it.turn > area.turn && it.geometry.intersects(area.geometry) } }
    return emptied ? "all nuclei of an area are gone since the run (${emptied.sum { it.nuclei }}): run again, unless they were removed on purpose" : ""
}

/** The wanted areas of those whose nuclei are now in an annotation, the latest first. */
List withNucleiIn(String id, Geometry geometry, record, Closure isWanted) {
    def near = record.areas.findAll { it.geometry.intersects(geometry) }
    def own = record.areas.findAll { it.id == id } ?: record.areas.findAll { isSame(it.geometry, geometry) }
    // Each run has replaced the nuclei of those before, unless it kept them. Of one run, what it says of the
    // annotation itself is exact.
    def runs = near.groupBy { it.turn }
    def found = []
    def rest = geometry
    for (turn in runs.keySet().sort().reverse()) {
        def ofRun = rest
        for (level in runs[turn].split { it in own }) {
            found += level.findAll {
                isWanted(it) && both(it.analysed, ofRun).getArea() > Math.min(rounding(it.analysed), rounding(geometry))
            }
            ofRun = without(ofRun, unionOf(level.collect { it.geometry }))
            if (ofRun.getArea() <= rounding(geometry))
                break
        }
        rest = without(rest, unionOf(runs[turn].findAll { !it.keepsEarlier }.collect { it.geometry }))
        if (rest.getArea() <= rounding(geometry))
            break
    }
    return found
}

/** Whether a detection is inside an area, or so near that rounding may explain it. */
boolean holds(Geometry area, List detections) {
    def near = area.buffer(0.02)
    return detections.any { near.covers(centreOf(it)) }
}

/** The area of an annotation in square pixels: QuPath's, unless that subtracts parts of an outline that crosses itself. */
double areaOf(roi, Geometry outline) {
    def isOwn = roi.getRoiName() == "Ellipse" || Math.abs(roi.getArea() - outline.getArea()) <= rounding(outline)
    return isOwn ? roi.getArea() : outline.getArea()
}

/** Whether two outlines are the same, but for how exactly files keep coordinates. */
boolean isSame(Geometry a, Geometry b) {
    if (a.isEmpty() || b.isEmpty())
        return a.isEmpty() && b.isEmpty()
    def (one, other) = [a.getEnvelopeInternal(), b.getEnvelopeInternal()]
    def apart = ["MinX", "MinY", "MaxX", "MaxY"].collect { Math.abs(one."get$it"() - other."get$it"()) }.max()
    if (apart > 0.02 || Math.abs(a.getArea() - b.getArea()) > 0.02 * a.getLength())
        return false
    return DiscreteHausdorffDistance.distance(a, b) <= 0.02
}

/** The largest part of an area that rounding may explain. */
double rounding(Geometry geometry) {
    return Math.min(0.02 * geometry.getLength(), geometry.getArea() / 2)
}

Geometry multiPolygon(List coordinates) {
    def factory = new GeometryFactory()
    def ring = { points -> factory.createLinearRing(points.collect { new Coordinate(it[0] as double, it[1] as double) } as Coordinate[]) }
    return factory.createMultiPolygon(coordinates.collect { rings ->
        factory.createPolygon(ring(rings[0]), rings.drop(1).collect { ring(it) } as LinearRing[])
    } as Polygon[])
}

Geometry valid(Geometry geometry) {
    return geometry.isValid() ? geometry : GeometryFixer.fix(geometry)
}

Geometry unionOf(List geometries) {
    return geometries ? OverlayNGRobust.union(geometries) : new GeometryFactory().createPolygon()
}

Geometry both(Geometry a, Geometry b) {
    return OverlayNGRobust.overlay(a, b, OverlayNG.INTERSECTION)
}

Geometry without(Geometry a, Geometry b) {
    return OverlayNGRobust.overlay(a, b, OverlayNG.DIFFERENCE)
}

/** Those that show a nucleus which another one shows, too: of other programs, and of other runs of qpnuclei. */
Map repeatedNuclei(List nuclei) {
    def repeated = [others: [] as Set, runs: [] as Set]
    for (here in nuclei.groupBy { it.plane }.values()) {
        def (ours, others) = here.split { it.isOurs }
        def outlines = treeOf(ours.collect { it.bounds })
        others.each { nucleus ->
            if (outlines.query(nucleus.bounds).any { isSameNucleus(ours[it], nucleus) })
                repeated.others << nucleus.id
        }
        ours.eachWithIndex { nucleus, i ->
            if (outlines.query(nucleus.bounds).any { it < i && isSameNucleus(ours[it], nucleus) })
                repeated.runs << nucleus.id
        }
    }
    return repeated
}

STRtree treeOf(List bounds) {
    def tree = new STRtree()
    bounds.eachWithIndex { envelope, i -> tree.insert(envelope, i) }
    return tree
}

boolean isSameNucleus(a, b) {
    def (one, other) = [a.outline.call(), b.outline.call()]
    def least = Math.min(one.getArea(), other.getArea()) / 2
    // Nuclei of one run touch, but their boxes rarely share so much: few outlines are intersected.
    return a.bounds.intersection(b.bounds).getArea() > least && both(one, other).getArea() > least
}

/** What the column "check" says of nuclei that are counted twice. */
String noteOf(ids, repeated) {
    def others = ids.count { it in repeated.others }
    def runs = ids.count { it in repeated.runs }
    def parts = others ? ["nuclei of other programs on nuclei of qpnuclei ($others)"] : []
    parts += runs ? ["nuclei of qpnuclei on those of another run ($runs)"] : []
    return parts ? "counted twice: " + parts.join(", ") : ""
}

/** The columns of counts for classes, with the classes that each one counts; "" is no class. */
Map columnsOf(List names) {
    def columns = [:]
    for (base in basesOf(names, ["Positive", "Negative", "1+", "2+", "3+"]) - "")
        columns["Num " + base + " (base)"] = derivedFrom(names, base)
    for (name in names.findAll()) {
        def column = "Num " + name
        columns[column in columns.keySet() || column == "Num Detections" ? column + " (class)" : column] = [name]
    }
    return columns
}

Map numbersOf(List names, Map counts) {
    return columnsOf(names).collectEntries { column, counted -> [column, counted.sum { counts[it] ?: 0 }] }
}

/** QuPath's percentages of positive detections, and its H-scores: of each base class, and of all together. */
Map sharesOf(List names, Map counts) {
    def found = [:]
    def grades = ["1+", "2+", "3+"]
    def positive = [Negative: 0, Positive: 100, "1+": 100, "2+": 100, "3+": 100]
    def score = [Negative: 0, "1+": 100, "2+": 200, "3+": 300]
    for (kind in [["Positive %", positive.keySet() as List, positive], ["H-score", grades, score]]) {
        def (column, intensities, weights) = kind
        def bases = basesOf(names, intensities)
        for (members in bases.collect { [it] } + (bases.size() > 1 ? [bases] : [])) {
            def weighed = members.collectMany { derivedFrom(names, it) }.findAll { lastPart(it) in weights.keySet() }
            def total = weighed.sum { counts[it] ?: 0 } ?: 0
            def sum = weighed.sum { (counts[it] ?: 0) * weights[lastPart(it)] } ?: 0
            def title = members.size() > 1 ? members.collect { lastPart(it) }.sort().join(" + ") + ": " + column :
                    members[0] ? members[0].split(": ")[0] + ": " + column : column
            // QuPath gives two columns the same name.
            found[title in found.keySet() ? members.join(" + ") + ": " + column : title] = total ? (double) sum / total : Double.NaN
        }
    }
    return found
}

/** Rows of images, those that were counted with the counts of the classes of all images. */
List<Map> withAllClasses(List images) {
    def classes = images.collectMany { it.classes }.toSet().sort()
    def scores = images.collectMany { it.rows }.collectMany { it.keySet() }.findAll { it.contains("H-score") } as Set
    return images.collectMany { image ->
        def own = columnsOf(image.classes)
        return image.rows.collect { row ->
            if (row["Num Detections"] == null || image.classes == classes)
                return row
            def counts = own.findAll { it.value.size() == 1 }.collectEntries { column, names -> [names[0], row[column]] }
            def numbers = numbersOf(classes, counts)
            // Nuclei that are all negative have the H-score 0. Positive ones without a grade have none.
            if (!image.classes.any { lastPart(it) == "Positive" })
                numbers += sharesOf(classes, counts).findAll { it.key in scores }
            def complete = [:]
            row.each { column, value ->
                if (!(column in own.keySet()))
                    complete[column] = value
                if (column == "Num Detections")
                    complete += numbers
            }
            return complete
        }
    }
}

boolean isShare(String column) {
    return column.endsWith("Positive %") || column.endsWith("H-score")
}

/** The classes that have subclasses of these names; "" stands for no class. */
List basesOf(List names, List intensities) {
    return names.findAll { lastPart(it) in intensities }.collect { it.contains(": ") ? it.substring(0, it.lastIndexOf(": ")) : "" }.toSet().sort()
}

/** A class and its subclasses; without a name, all that are no subclass. */
List derivedFrom(List names, String base) {
    return names.findAll { base ? (it + ": ").startsWith(base + ": ") : !it.contains(": ") }
}

String lastPart(String name) {
    return name.substring(name.contains(": ") ? name.lastIndexOf(": ") + 2 : 0)
}

/** Width and height of a pixel in µm; nothing if they are not known. */
List micronsOf(pixels) {
    return pixels.hasPixelSizeMicrons() ? [pixels.getPixelWidthMicrons(), pixels.getPixelHeightMicrons()] : null
}

/** Whether an image has its pixel size from the project: from its `stored` entry or, not saved yet, from the user. */
boolean isOfProject(stored, own, ofSlide) {
    // As in qpnuclei, of builders within each other the outermost with metadata counts.
    while (stored != null && stored.metadata == null)
        stored = stored.builder
    def calibration = stored?.metadata?.pixelCalibration
    return calibration?.pixelWidth?.unit == "µm" && calibration.pixelHeight?.unit == "µm" || !isSameSize(own, ofSlide)
}

/** Width and height of a pixel in mm: what the last run used, unless the project's has changed since; nothing if they cannot be right. */
List pixelSizeMm(record, own, isOfProject) {
    def used = record.used
    def microns = used != null && isSameSize(used.project, isOfProject ? own : null) ? used.um : own
    return microns?.every { it >= 0.05 && it <= 2.5 } ? microns.collect { it / 1000 } : null
}

/** Whether two pixel sizes are the same, or both unknown: programs round differently when they store one. */
boolean isSameSize(a, b) {
    if (a == null || b == null)
        return a == b
    return (0..1).every { Math.abs(a[it] - b[it]) <= 1e-6 * Math.max(a[it], b[it]) }
}

String className(pathObject) {
    return pathObject.getPathClass()?.toString()
}

/** The outline of a nucleus: of a cell that has one, not of the whole cell. */
def nucleusOf(detection) {
    return detection.isCell() && detection.getNucleusROI() != null ? detection.getNucleusROI() : detection.getROI()
}

Geometry centreOf(detection) {
    def roi = nucleusOf(detection)
    return new GeometryFactory().createPoint(new Coordinate(roi.getCentroidX(), roi.getCentroidY()))
}

/** Whether a detection counts. */
boolean isNucleus(detection, nucleusClasses) {
    if (nucleusClasses)
        return (className(detection) ?: "") in nucleusClasses
    return isOurs(detection) || className(detection) == "Nucleus"
}

/** Whether qpnuclei wrote a detection: its ID is of version 8 and begins with "qpnucl". */
boolean isOurs(detection) {
    def id = detection.getID()
    return id.version() == 8 && (id.getMostSignificantBits() >>> 16) == 0x71706e75636cL
}

/** A value as a cell of a CSV table. */
String cell(value) {
    if (value == null || value instanceof Double && !Double.isFinite(value))
        return ""
    // Half of a pair of UTF-16 is no character, and UTF-8 has none for it.
    def text = value.toString().replaceAll(/[\x{d800}-\x{dfff}]/) { "\\u" + Integer.toHexString(it.codePointAt(0)) }
    // Spreadsheet programs would take such a text for a formula.
    if (value instanceof CharSequence && text =~ /^[=+@\t\r-]/)
        text = "'" + text
    return text =~ /[",\r\n]/ ? '"' + text.replace('"', '""') + '"' : text
}
