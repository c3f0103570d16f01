from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from qpnuclei.datasets.synthetic.layout import demo_annotations
from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan, plan_images
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass, Project
from qpnuclei.report.page import write_report_of_run
from tests.report.pages import Page

#: A name that would be markup, and end an attribute.
NAME = "<img src=x onerror=\"alert(1)\"> & 'Co'"


@dataclass(frozen=True)
class Made:
    """A project of one synthetic slide after a run of several tiles, and its report."""

    project: Project
    plan: ImagePlan
    path: Path
    page: Page


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    slide = make_slide(folder / "synthetic.tif", (1300, 1100))
    project = create_from_slides(folder / "project", [slide.path])
    (entry,) = project.images
    first, *others = demo_annotations((1300, 1100))[:3]
    annotations = [
        NewAnnotation(a.geometry, uuid4(), a.name, PathClass(a.class_name or "Other"))
        for a in [replace(first, name=NAME), *others]
    ]
    entry.write(Edit(annotations=annotations), entry.read().fingerprint)
    options = RunOptions(Selection(everything=True), device="cpu", tile_px=320)
    (plan,), _ = plan_images(project.images, options)
    summary = analyse_project(project, project.images, options)
    path, failed = write_report_of_run(project, summary.run_dir)
    assert failed == []
    return Made(project, plan, path, Page.of(path))
