// Runs a script for each image of a project, and saves the image, as QuPath's own "script --save" does:
//   run_in_qupath.groovy PROJECT SCRIPT SELECTED ARGUMENT...
// SELECTED is the UUID of the annotation to select in each image that has it; "-" for none.
import java.awt.image.BufferedImage
import qupath.lib.projects.ProjectIO
import qupath.lib.scripting.QP

QP.getCoreClasses() // registers what the project's JSON needs
def (projectFile, script, selected) = args
def project = ProjectIO.loadProject(new File(projectFile), BufferedImage)
project.getImageList().eachWithIndex { entry, index ->
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    hierarchy.getAnnotationObjects().findAll { it.getID().toString() == selected }.each {
        hierarchy.getSelectionModel().setSelectedObject(it)
    }
    QP.setBatchProjectAndImage(project, imageData)
    def variables = [args: args.drop(3) as String[], "qupath.script.batchIndex": index]
    new GroovyShell(new Binding(variables)).evaluate(new File(script))
    QP.resetBatchProjectAndImage()
    println "in memory: ${entry.getImageName()}: ${hierarchy.getDetectionObjects().size()}"
    entry.saveImageData(imageData)
    imageData.getServer().close()
}
System.exit(0) // threads of the image servers would wait
