"""A run: plan, infer, commit.

==================  ================================================================================
all of it           `run` in one process, `phases` each on its own, `image` of an array of pixels
what is asked       `options`, `selection` of annotations, `positivity` (classes of nuclei by DAB)
plan                `plan_project` of all images; `planning`: an image, its units, ``plan.json``
infer               `inference`: from slides and plan to files of nuclei
commit              `commit`: from these files into the project
beside              `folder` of the run, `summary` (``run.json``), `space` on the disk
==================  ================================================================================
"""
