"""QuPath projects, GeoJSON and counts, with QuPath (`paquo`) or without it (`native`).

A project is a folder. What is in it, and which module knows it:

==============================  =================  ==============================================
file                            module             content
==============================  =================  ==============================================
``project.qpproj``              `project_file`     JSON: the images, each with its server (where
                                                   the pixels are) and pixel calibration
``classifiers/classes.json``    `project_file`     JSON: the class list
``data/<id>/data.qpdata``       `qpdata`           a Java object stream: type, stains, workflow,
                                                   objects of one image
``data/<id>/summary.json``      `native`           JSON: counts; QuPath writes it and never reads
``data/<id>/qpnuclei-backups``  `backups`          what runs of qpnuclei replaced
==============================  =================  ==============================================

`project` opens a project with the backend that suits the machine, `native` edits it without QuPath
or a JVM, `paquo` through a real QuPath. `transaction` replaces files so that a failure leaves the
old ones, `backups` keeps what was replaced, `create` makes new projects.
"""
