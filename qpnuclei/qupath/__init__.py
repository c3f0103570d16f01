"""QuPath projects, GeoJSON and counts, with QuPath (`paquo`) or without it (`native`).

A project is a folder with these files:

==============================  =================  ==============================================
file                            module             content
==============================  =================  ==============================================
``project.qpproj``              `project_file`     JSON: the images, each with its server (where
                                                   the pixels are) and pixel calibration
``classifiers/classes.json``    `project_file`     JSON: the class list
``data/<id>/data.qpdata``       `qpdata`           a Java object stream: type, stains, workflow,
                                                   objects of one image
``data/<id>/summary.json``      `native`           JSON: counts; written by QuPath but never read
``data/<id>/qpnuclei-backups``  `backups`          data files that qpnuclei replaced
==============================  =================  ==============================================

`project` opens a project with the best available backend: `native` edits it without QuPath or a
JVM, `paquo` uses an installed QuPath. `transaction` replaces all files or none, `backups` keeps the
replaced data files, `create` makes new projects.
"""
