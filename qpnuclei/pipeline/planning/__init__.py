"""What a run has to do, from the project, the slides and the model's header: ``plan.json``.

`image_plan` plans an image; `tiles` and `layout` divide it into units, `keys` are hashes of what
results depend on, `plan_file` and `plan_parts` the content of ``plan.json``, `artefacts` what is
marked and left out before.
"""
