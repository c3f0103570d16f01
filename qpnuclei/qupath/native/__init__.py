"""QuPath projects without QuPath or a JVM.

A project is a folder. What is in it, and which module knows it:

==============================  =================  ==============================================
file                            module             content
==============================  =================  ==============================================
``project.qpproj``              `project_file`     JSON: the images, each with its server (where
                                                   the pixels are) and pixel calibration
``classifiers/classes.json``    `project_file`     JSON: the class list
``data/<id>/data.qpdata``       `data_file`        a Java object stream: type, stains, workflow,
                                                   objects of one image
``data/<id>/summary.json``      `project`          JSON: counts; QuPath writes it and never reads
``data/<id>/qpnuclei-backups``  `backups`          what runs of qpnuclei replaced
==============================  =================  ==============================================

Where to begin: `data_file` says what a ``data.qpdata`` holds, `path_objects` how an object in it is
laid out, and `NativeImage.write` in `project` how one is edited. ``data.qpdata`` from the bytes up:

1. `java_stream`: any Java object stream to a graph of nodes and back, byte for byte. Handles are
   numbered anew when a graph is written.
2. `records`: detections come by the million and are alike. They are recognised while the stream is
   parsed and stay byte ranges of it, until someone asks for what they hold. The loops over all
   of them are in `kernels`.
3. `java_classes`: fields of the Java and QuPath classes, and new instances.
4. `path_objects`: the tree of QuPath's objects as views of nodes.
5. `sources`, `rois`, `detections`: values of one object, or of all records alike, as columns,
   each made when it is first asked for.
6. `new_detections`: what an `Edit` adds, group by group: written from tables, and compared with
   what reads back.
7. `data_file`: the whole file: read, remove, add, write.

What is not understood stays a node and is written back as it was. `files` replaces files so that a
failure leaves the old ones, `backups` keeps what was replaced; `project` saves with them and
verifies by reading back; `create` makes new projects. In memory are the bytes of one file (a
million nuclei are some 400 MB), 24 bytes for each detection in it, one group of new ones, and the
UUIDs of all of them.
"""

from qpnuclei.qupath.native.create import NewImage, create_project
from qpnuclei.qupath.native.project import NativeImage, NativeProject, open_project

__all__ = ["NativeImage", "NativeProject", "NewImage", "create_project", "open_project"]
