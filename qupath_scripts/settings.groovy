/*
 * Sets where the program qpnuclei is, and options for every run from QuPath.
 *
 * What it does
 *   Asks for both, and keeps them in settings.conf beside the scripts. Options with spaces need
 *   quotes: --exclude "Necrosis old".
 *
 * In QuPath (0.4 to 0.7)
 *   Choose qpnuclei > Settings; or Automate > User scripts > qpnuclei, then Run > Run.
 *
 * Headless
 *   Edit settings.conf.
 */

def qpnuclei = new GroovyShell(getClass().getClassLoader(), binding).parse(
        new File(new File(getProperty("qupath.script.file") as String).getParentFile(), "run_qpnuclei.groovy"))

def settings = qpnuclei.settings()
def program = Dialogs.showInputDialog("qpnuclei", "Path of the program qpnuclei", settings.program)
if (program == null)
    return
def options = Dialogs.showInputDialog("qpnuclei", "Options of every run, for example: --mpp 0.25 --exclude Necrosis", settings.options)
if (options == null)
    return
qpnuclei.saveSettings([program: program.trim(), options: options.trim()])
