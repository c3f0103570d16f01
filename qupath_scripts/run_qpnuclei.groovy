/*
 * Finds the nuclei in the current image with qpnuclei.
 *
 * What it does
 *   Saves the image, runs "qpnuclei run" on the selected annotations - on exactly these - or, where
 *   none is selected, on those that `unselected` below means, and loads the result: the nuclei
 *   appear under their annotations. What qpnuclei prints goes to the log as it comes. If it fails,
 *   the script fails with its message, and the image stays as it was.
 *
 * In QuPath (0.4 to 0.7)
 *   Open an image of a project, select annotations if you like, open this file in the script editor
 *   (Automate > Script editor), and choose Run > Run. For many images: Run > Run for project.
 *
 * Headless, for all images of a project or, with -i NAME, for one
 *   QuPath script -p project.qpproj run_qpnuclei.groovy
 *   QuPath script -p project.qpproj -a "[--roi,Tumor,--mpp,0.25]" run_qpnuclei.groovy
 *   What -a gives takes the place of `unselected` and `options`. The nuclei are saved in the project
 *   with or without --save; in a QuPath that has the image open, choose File > Reload data.
 */

import static qupath.lib.scripting.QP.*
import java.awt.geom.Rectangle2D
import qupath.lib.regions.ImagePlane
import qupath.lib.roi.ROIs

// The qpnuclei program. Empty: what settings.conf beside this script says, else the environment variable
// QPNUCLEI, else "qpnuclei" from the PATH (which programs started from a desktop often do not have).
def program = ""

// Which annotations to analyse when none is selected: ["--roi", "Tumor"], ["--tissue"], ...
def unselected = ["--roi-all"]

// More options of "qpnuclei run", for example ["--mpp", "0.25", "--on-existing", "skip"], before those
// in settings.conf.
def options = []


def project = getProject()
def entry = getProjectEntry()
if (entry == null)
    throw new IllegalStateException("qpnuclei needs a project: open an image of one")
def imageData = getCurrentImageData()
def image = uniqueName(project, entry)

def selected = getSelectedObjects().findAll { it.isAnnotation() }.collect { it.getID() }
def choice = selected.collectMany { ["--roi-id", it.toString()] } ?: unselected
def given = binding.hasVariable("args") && args ? args as List : choice + options + words(settings().options)

// What qpnuclei reads is what is saved, the pixel size in the project file included.
entry.saveImageData(imageData)
project.syncChanges()

execute([program ?: programPath(), "run", project.getPath(), "--image=$image", *given])

reload(entry, imageData, selected)
println "${entry.getImageName()}: saved in the project, loaded here; elsewhere choose File > Reload data"


// Other scripts use what follows, too.

/** The name of an image, which --image takes for this image and no other. */
String uniqueName(project, entry) {
    def name = entry.getImageName()
    if (project.getImageList().count { it.getImageName() == name } > 1)
        throw new IllegalStateException("the project has several images called '$name': rename them")
    return name
}

/** The part of an image that a viewer shows, as a rectangle. */
def viewRoi(viewer, server) {
    def all = new Rectangle2D.Double(0, 0, server.getWidth(), server.getHeight())
    def view = viewer.getDisplayedRegionShape().getBounds2D().createIntersection(all)
    if (view.isEmpty())
        throw new IllegalStateException("nothing of the image is in view")
    return ROIs.createRectangleROI(view.getX(), view.getY(), view.getWidth(), view.getHeight(), ImagePlane.getDefaultPlane())
}

/** File with what is set for all scripts in this folder; there is none without a folder. */
File settingsFile() {
    def file = binding.hasVariable("qupath.script.file") ? getProperty("qupath.script.file") : null
    return file == null ? null : new File(new File(file as String).getParentFile(), "settings.conf")
}

/** Settings: the program, and options for every run. */
Map settings() {
    def properties = new Properties()
    def file = settingsFile()
    if (file?.isFile())
        file.withReader("UTF-8") { properties.load(it) }
    return [program: properties.getProperty("program", ""), options: properties.getProperty("options", "")]
}

void saveSettings(Map settings) {
    def properties = new Properties()
    properties.putAll(settings)
    settingsFile().withWriter("UTF-8") { properties.store(it, "Settings of the scripts of qpnuclei for QuPath") }
}

/** Options as a list; those in single or double quotes may have spaces. Backslashes are kept. */
List words(String options) {
    def words = []
    // A word is a sequence of quoted and unquoted parts.
    def matcher = options =~ /(?:[^\s"']+|"[^"]*"|'[^']*')+|["']/
    while (matcher.find()) {
        def word = matcher.group()
        if (word in ['"', "'"])
            throw new IllegalArgumentException("a quote is not closed in the options: $options")
        words << word.replaceAll(/"([^"]*)"|'([^']*)'/) { whole, inDouble, inSingle -> inDouble ?: inSingle ?: "" }
    }
    return words
}

String programPath() {
    return settings().program ?: System.getenv("QPNUCLEI") ?: "qpnuclei"
}

/** Has the image in memory take over what was saved: it is shown, and a later save keeps it. */
void reload(entry, imageData, selected = []) {
    def saved = entry.readImageData()
    try {
        def hierarchy = imageData.getHierarchy()
        hierarchy.getSelectionModel().clearSelection()
        hierarchy.setHierarchy(saved.getHierarchy())
        selectObjects(hierarchy.getAnnotationObjects().findAll { it.getID() in selected })
        def runs = { workflow -> workflow.getSteps().findAll { it.getName().startsWith("qpnuclei ") } }
        def history = imageData.getHistoryWorkflow()
        history.addSteps(runs(saved.getHistoryWorkflow()).drop(runs(history).size()))
        takeProperties(saved, imageData)
        imageData.setChanged(false)
    } finally {
        // Until 0.5 it is the image's server that is closed, not the image.
        saved instanceof AutoCloseable ? saved.close() : saved.getServer().close()
    }
}

/** Has an image take over the properties of another that qpnuclei owns: which areas it has analysed. */
void takeProperties(saved, imageData) {
    def names = imageData.getProperties().keySet() + saved.getProperties().keySet()
    for (name in names.findAll { it.startsWith("qpnuclei ") }) {
        def value = saved.getProperty(name)
        value == null ? imageData.removeProperty(name) : imageData.setProperty(name, value)
    }
}

/** Runs a command, its output going to the log; fails with what it says if it fails. */
void execute(List command) {
    def builder = new ProcessBuilder(command.collect { it.toString() }).redirectErrorStream(true)
    builder.environment().putAll([PYTHONUTF8: "1", COLUMNS: "120"])
    def process
    try {
        process = builder.start()
    } catch (IOException e) {
        throw new IOException("cannot start '${command[0]}': give the path of qpnuclei in " +
                "qpnuclei > Settings, at the top of this script, or in the environment variable QPNUCLEI", e)
    }
    def lines = [].asSynchronized()
    // Read in a thread of its own: waiting for a process can be interrupted, reading cannot.
    def reader = Thread.start {
        process.getInputStream().eachLine("UTF-8") { line ->
            println line
            lines << line
        }
    }
    try {
        process.waitFor()
        reader.join()
    } finally {
        // On Windows, the program is a child of its launcher.
        process.descendants().forEach { it.destroy() }
        process.destroy()
    }
    if (process.exitValue() != 0) {
        def error = lines.findIndexOf { it.startsWith("error: ") }
        def message = error < 0 ? lines.takeRight(10) : lines.drop(error)
        throw new RuntimeException("qpnuclei: " + message.join("\n"))
    }
}
