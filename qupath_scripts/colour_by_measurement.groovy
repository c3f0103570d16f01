/*
 * Colours the nuclei by a measurement.
 *
 * What it does
 *   Asks for a measurement, and colours all detections of the open image by it; "none" brings their
 *   own colours back. Nothing is changed. QuPath's Measure > Show measurement maps does the same with
 *   more settings.
 *
 * In QuPath (0.4 to 0.7)
 *   Choose qpnuclei > Colour by measurement; or Automate > User scripts > qpnuclei, then Run > Run.
 *
 * Headless
 *   Of no use there.
 */

import static qupath.lib.gui.scripting.QPEx.*
import javafx.application.Platform
import qupath.lib.color.ColorMaps
import qupath.lib.gui.tools.MeasurementMapper
import qupath.lib.objects.PathObjectTools

def none = "none"
def detections = getDetectionObjects()
def names = PathObjectTools.getAvailableFeatures(detections) as List
if (!names)
    throw new IllegalStateException("no detection here has a measurement: run qpnuclei first")
def first = "Attention: Mean" in names ? "Attention: Mean" : names[0]
def name = Dialogs.showChoiceDialog("qpnuclei", "Colour nuclei by", [none, *names], first)
if (name == null)
    return
def mapper = name == none ? null : new MeasurementMapper(ColorMaps.getDefaultColorMap(), name, detections)
def options = getCurrentViewer().getOverlayOptions()
Platform.runLater { options.setMeasurementMapper(mapper) }
