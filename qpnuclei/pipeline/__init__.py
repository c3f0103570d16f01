"""A run: plan, infer, commit.

==================  ================================================================================
all of it           `run` in one process, `phases` each on its own, `image` of an array of pixels
what is asked       `options`, `selection` of annotations, `positivity` (classes of nuclei by DAB)
plan                `planning` of the images, `image_plan` of one, `tiles`, `layout` (units), `keys`
                    (hashes of what results depend on), `plan_file` and `plan_parts`
                    (``plan.json``), `artefacts`
infer               `infer` (a tile to nuclei), `units` (what is to be done), `executors` (who does
                    it): `computing`, `processes`, `cluster`, `remote`
join                `join`, `shards` (files of nuclei), `cells`, `plausibility`
commit              `commit_image`, `new_nuclei`, `write_back`, `replan`, `copies`
beside              `folder` of the run, `summary` (``run.json``), `space` on the disk
==================  ================================================================================
"""
