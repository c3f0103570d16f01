/*
 * Adds the menu "qpnuclei" to QuPath.
 *
 * What it does
 *   Adds a menu to the menu bar, with an entry for each script beside this one. It is there until
 *   QuPath is closed; where this script is QuPath's start-up script, it is always there.
 *
 * In QuPath (0.4 to 0.7)
 *   Choose Automate > User scripts > qpnuclei > add menu, then Run > Run. In 0.5 and later, to have it
 *   always: Edit > Preferences > General > Startup script path, and choose this file.
 *
 * Headless
 *   Of no use there.
 */

import java.util.concurrent.atomic.AtomicBoolean

def entries = [
    "Run on the selection": "run_qpnuclei.groovy",
    "Preview in the view...": "preview_view.groovy",
    "Remove the preview": "remove_preview.groovy",
    "Compare settings": "compare_settings.groovy",
    "Sensitivity...": "sensitivity.groovy",
    "Colour by measurement...": "colour_by_measurement.groovy",
    "Accept nuclei": "accept_nuclei.groovy",
    "Reject nuclei": "reject_nuclei.groovy",
    "Restore the last backup": "restore_backup.groovy",
    "Settings...": "settings.groovy",
]

def folder = new File(getProperty("qupath.script.file") as String).getParentFile()
def qupath = QuPathGUI.getInstance()
def isBusy = new AtomicBoolean()
entries.each { label, name ->
    def act = {
        if (!isBusy.compareAndSet(false, true)) {
            Dialogs.showInfoNotification("qpnuclei", "still at work: see View > Show log")
            return
        }
        // In a thread of its own: a run takes minutes, and QuPath stays usable.
        Thread.start {
            try {
                qupath.runScript(new File(folder, name), null)
            } catch (Throwable e) {
                Dialogs.showErrorMessage("qpnuclei", e.getMessage() ?: e.toString())
            } finally {
                isBusy.set(false)
            }
        }
    }
    qupath.installCommand("qpnuclei>" + label, act as Runnable)
}
