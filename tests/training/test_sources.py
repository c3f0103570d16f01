from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpnuclei.errors import FormatError, MppError, NotFoundError, SlideError, UsageError
from qpnuclei.pipeline.selection import Selection, select_regions
from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.slides.hdab_as_he import as_h_and_e
from qpnuclei.slides.stains import DEFAULT_H_DAB
from qpnuclei.training.sources import find_sources
from qpnuclei.training.student.patches import sample_slides
from qpnuclei.training.tile_index import build_tile_index, sources_digest
from qpnuclei.training.tile_reader import TileReader
from tests.paths import SAMPLES
from tests.projects import annotate
from tests.qupath.test_areas import OUTLINES
from tests.slides.dicom import write_series
from tests.slides.pictures import picture, reduced


def test_a_data_set_gives_only_the_images_of_its_training_split(dataset: Path) -> None:
    found = find_sources([dataset], mpp=[0.25])
    assert [source.name for source in found] == ["a.png", "b.png"]
    assert (found[0].width, found[0].height, found[0].mpp) == (400, 400, (0.25, 0.25))
    assert found[0].is_patch
    assert found[0].roi is None


def test_a_plain_folder_gives_all_its_images_and_nothing_else(dataset: Path) -> None:
    (dataset / "images" / "notes.txt").write_text("no image")
    found = find_sources([dataset / "images"], mpp=[0.25])
    assert [source.name for source in found] == ["a.png", "b.png", "c.png"]


def test_single_files_and_folders_add_up(dataset: Path) -> None:
    found = find_sources([dataset / "images" / "c.png", dataset], mpp=[0.25])
    assert [source.name for source in found] == ["c.png", "a.png", "b.png"]


def test_an_image_without_resolution_wants_mpp(dataset: Path) -> None:
    with pytest.raises(MppError, match=r"a\.png") as caught:
        find_sources([dataset])
    assert "--mpp" in caught.value.hint


def test_each_source_can_have_its_own_resolution(dataset: Path) -> None:
    images = dataset / "images"
    found = find_sources([images / "a.png", images / "b.png"], mpp=[0.25, 0.5])
    assert [source.mpp[0] for source in found] == [0.25, 0.5]
    with pytest.raises(UsageError, match="--mpp was given 3 times for 2 sources"):
        find_sources([images / "a.png", images / "b.png"], mpp=[0.25, 0.5, 1.0])


def test_what_is_not_there(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        find_sources([tmp_path / "absent"])
    with pytest.raises(UsageError, match="holds no image"):
        find_sources([tmp_path])
    with pytest.raises(UsageError, match="--roi 'Tumor' was given, but no source is a QuPath"):
        find_sources([dataset], mpp=[0.25], roi=["Tumor"])


def test_splits_that_cannot_be_understood(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    for content, error in (
        ("{", FormatError),
        ("[]", FormatError),
        ('{"train": "abc"}', FormatError),
        ('{"val": ["a"]}', UsageError),
        ('{"train": ["b"]}', UsageError),
    ):
        (tmp_path / "splits.json").write_text(content)
        with pytest.raises(error, match=r"splits\.json"):
            find_sources([tmp_path], mpp=[0.25])


def test_a_project_of_another_name_is_a_project(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "0.5.1", tmp_path / "sample")
    project = tmp_path / "sample" / "project"
    (project / "project.qpproj").rename(project / "study.qpproj")
    (found,) = find_sources([project], image_root=tmp_path / "sample" / "images")
    assert found.path.name == "pyramid.tif"


@pytest.mark.parametrize("version", ["0.2.3", "0.5.1", "0.7.0"])
def test_projects_give_their_calibrated_images(
    version: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SAMPLES / version
    # Of its three images only the pyramid has a pixel size; it was moved since.
    (whole,) = find_sources([folder / "project"], image_root=folder / "images")
    assert (whole.path.name, whole.mpp) == ("pyramid.tif", (0.5, 0.5))
    assert (whole.width, whole.height) == (1536, 1024)
    assert whole.roi is None
    assert "he small.png has no pixel size" in caplog.text
    (tumor,) = find_sources([folder / "project"], image_root=folder / "images", roi=["Tumor"])
    assert tumor.roi is not None
    assert tumor.roi.bounds == (200, 200, 420, 380)
    with pytest.raises(UsageError, match="no annotation has the class 'Tumour' or 'Nerve'"):
        find_sources([folder / "project"], image_root=folder / "images", roi=["Tumour", "Nerve"])
    everything = find_sources([folder / "project"], image_root=folder / "images", mpp=[0.5])
    assert len(everything) == 3


@pytest.mark.parametrize("name", ["parts that overlap", "nested parts", "bow tie", "hole outside"])
def test_training_takes_the_area_that_a_run_analyses(
    name: str, dataset: Path, tmp_path: Path
) -> None:
    outline, area = OUTLINES[name]
    project = create_from_slides(tmp_path / "project", [dataset / "images" / "a.png"], 0.25)
    annotate(project.images[0], outline)
    (source,) = find_sources([tmp_path / "project"], roi=["Tumor"])
    annotations = project.images[0].read().annotations
    (region,) = select_regions(Selection(("Tumor",)), annotations, source.width, source.height)
    assert source.roi is not None
    assert source.roi.equals(region.geometry)
    assert source.roi.area == area


def test_files_of_one_slide_are_one_image_to_learn_from(tmp_path: Path) -> None:
    full = picture(256, 192)
    files = write_series(tmp_path, [full, reduced(full, 2)], 0.25)
    for paths in ([tmp_path], files):
        (found,) = find_sources(paths)
        assert (found.path, found.width) == (files[0], 256)


def note_run(project: Project, mpp: float) -> None:
    """Note in every image what ``run --mpp`` does."""
    for entry in project.images:
        record = Record(used=UsedMpp((mpp, mpp), "--mpp", entry.calibration.mpp_xy))
        entry.write(Edit(properties=record.to_properties()), entry.read().fingerprint)


@pytest.mark.parametrize("in_project", [0.5, None])
def test_images_are_learned_at_the_pixel_size_of_the_last_run(
    dataset: Path, tmp_path: Path, in_project: float | None
) -> None:
    slides = [dataset / "images" / "a.png"]
    create_from_slides(tmp_path / "project", slides, in_project)
    note_run(open_project(tmp_path / "project"), 0.25)
    (found,) = find_sources([tmp_path / "project"])
    assert found.mpp == (0.25, 0.25)
    (found,) = find_sources([tmp_path / "project"], mpp=[0.3])
    assert found.mpp == (0.3, 0.3)


def test_an_image_whose_data_file_is_damaged_is_left_out(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slides = [dataset / "images" / name for name in ("a.png", "b.png")]
    create_from_slides(tmp_path / "project", slides, 0.25)
    (tmp_path / "project" / "data" / "1" / "data.qpdata").write_bytes(b"torn")
    (found,) = find_sources([tmp_path / "project"])
    assert found.name == "b.png"
    assert "an image is left out" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_a_slide_whose_name_is_not_utf8_is_refused_at_the_start(
    dataset: Path, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(b"sl\xe4.png")
    shutil.copy(dataset / "images" / "a.png", path)
    with pytest.raises(SlideError, match="its name is not UTF-8") as refused:
        find_sources([tmp_path], mpp=[0.25])
    assert refused.value.hint == "rename it"


def test_dab_is_learned_in_the_colours_that_a_run_shows_the_network(
    dataset: Path, tmp_path: Path
) -> None:
    slide = dataset / "images" / "a.png"
    create_from_slides(tmp_path / "project", [slide], 0.25, stains=DEFAULT_H_DAB)
    sources = find_sources([tmp_path / "project"])
    rgb = np.asarray(Image.open(slide))
    (sample,) = sample_slides(
        sources,
        mpp=0.25,
        patch_px=400,
        patches_per_slide=1,
        max_patches=1,
        min_tissue=0.7,
        seed=0,
    )
    np.testing.assert_array_equal(sample.patches[0], as_h_and_e(rgb, DEFAULT_H_DAB))
    reader = TileReader(sources, build_tile_index(sources, (0.25,), 400, 0.7), (0.25,), 400)
    np.testing.assert_array_equal(reader.read(0), sample.patches[0])
    reader.close()

    other = dataclasses.replace(DEFAULT_H_DAB, background=(240.0, 240.0, 240.0))
    digests = {
        sources_digest([dataclasses.replace(sources[0], **changes)], (0.25,), 400, 0.7)
        for changes in ({}, {"stains": other}, {"stains": find_sources([slide], mpp=[1])[0].stains})
    }
    assert len(digests) == 3
