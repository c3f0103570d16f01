/*
 * Hides, and removes if wanted, the nuclei of which qpnuclei was least sure.
 *
 * What it does
 *   Opens a window with a slider. Nuclei whose "Attention: Mean" is below its value are hidden, the
 *   others are coloured by it; nothing is changed. "Remove" removes the hidden ones, "Put back" brings
 *   them back as long as the window is open, later File > Reload data does so, until the image is
 *   saved. Nuclei that are locked (accepted) are hidden, but never removed. The doubts of runs are
 *   about the nuclei before: they are marked so, and the value is stored in the image, as by
 *   "qpnuclei filter".
 *
 * In QuPath (0.4 to 0.7)
 *   Choose qpnuclei > Sensitivity; or Automate > User scripts > qpnuclei, then Run > Run.
 *
 * Headless
 *   Use "qpnuclei filter".
 */

import static qupath.lib.gui.scripting.QPEx.*
import javafx.application.Platform
import javafx.beans.value.ChangeListener
import javafx.geometry.Insets
import javafx.scene.Scene
import javafx.scene.control.Button
import javafx.scene.control.Label
import javafx.scene.control.Slider
import javafx.scene.layout.HBox
import javafx.scene.layout.VBox
import javafx.stage.Stage
import qupath.lib.color.ColorMaps
import qupath.lib.gui.tools.MeasurementMapper
import qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep

// The measurement that says how sure the model was.
def CERTAINTY = "Attention: Mean"
// The property of an image that records which areas were analysed, and the doubts about their nuclei.
def RECORD = "qpnuclei analysed"
// The property of an image that has the filters of its nuclei, for the methods section of a report.
def FILTERS = "qpnuclei filters"

/** Marks the doubts in a record as older than the removal of nuclei, and forgets their numbers; what is no record stays as it is. */
String beforeFilter(String record) {
    // Within texts, quotes follow a backslash: only keys are found.
    record?.replaceAll(/("(?:image )?check":")(?!before the filter: )/, '$1before the filter: ')
            ?.replaceAll(/,"nuclei":\d+/, '')
}

/** Adds a filter to those of an image, with the runs that its record names. */
String withFilter(String filters, String record, double least) {
    def named = [/"earlier runs":\[(.*?)\]/, /"run":("[^"]*")/].collectMany { (record =~ it).collect { found -> found[1] } }
    def runs = named ? ',"runs":[' + named.join(",") + "]" : ""
    def others = (filters ?: "[]")[1..<-1]
    return "[" + [others, String.format(Locale.US, '{"least":%.3f%s}', least, runs)].findAll().join(",") + "]"
}

def viewer = getCurrentViewer()
def imageData = getCurrentImageData()
if (imageData == null)
    throw new IllegalStateException("open an image")
def hierarchy = imageData.getHierarchy()
def certainty = { it.getMeasurementList().get(CERTAINTY) }
// Others than those of qpnuclei are hidden, but never removed; its IDs are of version 8 and begin so.
def isOurs = { it.getID().version() == 8 && (it.getID().getMostSignificantBits() >>> 16) == 0x71706e75636cL }
def known = hierarchy.getDetectionObjects().findAll { !Double.isNaN(certainty(it)) }
if (!known)
    throw new IllegalStateException("no detection here has '$CERTAINTY': run qpnuclei first")
def below = { least -> hierarchy.getDetectionObjects().findAll { isOurs(it) && !it.isLocked() && certainty(it) < (least as float) } }

Platform.runLater {
    def options = viewer.getOverlayOptions()
    def earlier = options.measurementMapperProperty().get()
    def removed = []
    def recordBefore = null
    def filtersBefore = null
    def slider = new Slider(0, 1, 0)
    slider.setShowTickLabels(true)
    slider.setMajorTickUnit(0.1)
    slider.setPrefWidth(500)
    def label = new Label()
    def show = {
        def mapper = new MeasurementMapper(ColorMaps.getDefaultColorMap(), CERTAINTY, known)
        mapper.setDisplayMinValue(slider.getValue())
        mapper.setDisplayMaxValue(1)
        mapper.setExcludeOutsideRange(true)
        options.setMeasurementMapper(mapper)
        def count = below(slider.getValue()).size()
        label.setText(String.format("below %.2f: %d nuclei; removed: %d", slider.getValue(), count, removed.size()))
    }
    def note = { text -> imageData.getHistoryWorkflow().addStep(new DefaultScriptableWorkflowStep("qpnuclei filter", "// " + text)) }
    def remove = new Button("Remove")
    remove.setOnAction {
        def least = slider.getValue()
        def going = below(least)
        hierarchy.removeObjects(going, true)
        removed.addAll(going)
        def record = imageData.getProperty(RECORD)
        if (going && record != null) {
            recordBefore = recordBefore ?: record
            filtersBefore = filtersBefore ?: imageData.getProperty(FILTERS) ?: "[]"
            imageData.setProperty(RECORD, beforeFilter(record))
            imageData.setProperty(FILTERS, withFilter(imageData.getProperty(FILTERS), record, least))
        }
        note(String.format(Locale.US, "removed %d detections by qpnuclei, whose '%s' is below %.3f", going.size(), CERTAINTY, least))
        show()
    }
    def back = new Button("Put back")
    back.setOnAction {
        hierarchy.insertPathObjects(removed)
        note("put back ${removed.size()} detections")
        removed.clear()
        // Unless a run has written another one meanwhile.
        if (recordBefore != null && imageData.getProperty(RECORD) == beforeFilter(recordBefore)) {
            imageData.setProperty(RECORD, recordBefore)
            imageData.setProperty(FILTERS, filtersBefore)
        }
        recordBefore = null
        filtersBefore = null
        show()
    }
    slider.valueProperty().addListener({ property, old, value -> show() } as ChangeListener)
    def box = new VBox(10, slider, label, new HBox(10, remove, back))
    box.setPadding(new Insets(10))
    def stage = new Stage()
    stage.setTitle("qpnuclei: sensitivity")
    stage.initOwner(getQuPath().getStage())
    stage.setScene(new Scene(box))
    stage.setOnHidden { options.setMeasurementMapper(earlier) }
    show()
    stage.show()
}
