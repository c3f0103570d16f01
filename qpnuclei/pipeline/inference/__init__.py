"""Nuclei from pixels, unit by unit, without the project: ``shards/``.

`infer` finds the nuclei of a tile. `units` lists the units of work. `executors` compute them: in
this process, in `processes`, or on a `cluster`; `computing` chooses the executor, and `remote` is
the code for another process. `shards` are the files of nuclei. `join` joins the units of an image,
`cells` adds the cells, and `plausibility` checks the nuclei against the stain.
"""
