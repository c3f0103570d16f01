"""Nuclei from pixels, unit by unit, without the project: ``shards/``.

`infer` goes from a tile to its nuclei. `units` knows what is to be done, `executors` who does it:
this process, `processes`, or a `cluster`; `computing` chooses, `remote` is what another process
does. `shards` are the files of nuclei, `join` makes an image of its units, with `cells` and
`plausibility` (whether they agree with the stain).
"""
