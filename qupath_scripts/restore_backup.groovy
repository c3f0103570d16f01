/*
 * Brings back what the last run, filter or import of qpnuclei replaced in the current image.
 *
 * What it does
 *   Saves the image, runs "qpnuclei project restore --latest", and loads the result. The state before
 *   becomes a backup itself: done again, it is back.
 *
 * In QuPath (0.4 to 0.7)
 *   Choose qpnuclei > Restore the last backup; or Automate > User scripts > qpnuclei, then Run > Run.
 *
 * Headless, for one image
 *   QuPath script -p project.qpproj -i NAME restore_backup.groovy
 */

import static qupath.lib.scripting.QP.*

def qpnuclei = new GroovyShell(getClass().getClassLoader(), binding).parse(
        new File(new File(getProperty("qupath.script.file") as String).getParentFile(), "run_qpnuclei.groovy"))

def project = getProject()
def entry = getProjectEntry()
if (entry == null)
    throw new IllegalStateException("qpnuclei needs a project: open an image of one")
def image = qpnuclei.uniqueName(project, entry)
def imageData = getCurrentImageData()
entry.saveImageData(imageData)
project.syncChanges()
qpnuclei.execute([qpnuclei.programPath(), "project", "restore", project.getPath(), "--image=$image", "--latest"])
qpnuclei.reload(entry, imageData)
