"""`qpnuclei geojson`, as a user calls it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import shapely

from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.writing import write_objects
from qpnuclei.qupath.native import open_project
from tests.cli.conftest import Outcome, tree

Call = Callable[..., Outcome]
Sample = Callable[[str], Path]
NATIVE = ("--backend", "native")


def test_export_and_import(sample: Sample, qpnuclei: Call, tmp_path: Path) -> None:
    project = sample("0.5.1")
    folder = tmp_path / "geojson"
    outcome = qpnuclei("geojson", "export", project, "-o", folder, *NATIVE)
    assert outcome.exit_code == 0
    names = ["1-he small.png", "2-renamed pyramid", "3-plain.tif"]
    assert sorted(p.name for p in folder.iterdir()) == [f"{n}.geojson.gz" for n in names]
    assert "1-he small.png.geojson.gz: 9 annotations, 7 detections" in outcome.stdout

    (project / "data" / "1" / "data.qpdata").unlink()
    outcome = qpnuclei("geojson", "import", project, *sorted(folder.iterdir()), *NATIVE)
    assert outcome.exit_code == 0
    assert "into he small.png: 9 annotations, 7 detections imported" in outcome.stdout
    assert (
        "into plain.tif: 0 annotations, 0 detections imported; 1 already existed" in outcome.stdout
    )
    assert len(open_project(project).images[0].read().annotations) == 9


@pytest.mark.parametrize("version", ["0.2.3", "0.3.2", "0.4.4"])
def test_new_uuids_of_an_old_project_double_nothing(
    sample: Sample, qpnuclei: Call, tmp_path: Path, version: str
) -> None:
    """QuPath makes new UUIDs each time that it opens a file without any."""
    project = sample(version)
    folder = tmp_path / "geojson"
    assert qpnuclei("geojson", "export", project, "-o", folder, *NATIVE).exit_code == 0
    objects = [image.read() for image in open_project(project).images]
    before = [(len(one.annotations), len(one.detections)) for one in objects]
    has_ids = version == "0.4.4"
    assert all(a.id is not None for one in objects for a in one.annotations) == has_ids
    for _ in range(2):
        for path in folder.iterdir():
            content = json.loads(gzip.decompress(path.read_bytes()))
            for feature in content["features"]:
                if not has_ids:
                    feature["id"] = str(uuid4())
            path.write_bytes(gzip.compress(json.dumps(content).encode()))
        qpnuclei("geojson", "import", project, *sorted(folder.iterdir()), *NATIVE)
    after = [image.read() for image in open_project(project).images]
    assert [(len(one.annotations), len(one.detections)) for one in after] == before


def test_into_a_named_image(sample: Sample, qpnuclei: Call, tmp_path: Path) -> None:
    project = sample("0.5.1")
    path = tmp_path / "any name.geojson"
    write_objects(path, [GeoJsonObject("detection", shapely.box(0, 0, 3, 3))])
    refused = qpnuclei("geojson", "import", project, path, *NATIVE)
    assert refused.exit_code == 2
    assert refused.error is not None
    assert "--image" in refused.error.hint
    before = len(open_project(project).images[2].read().detections)
    options = ("--image", "plain.tif", "--class", "Nucleus")
    assert qpnuclei("geojson", "import", project, path, *options, *NATIVE).exit_code == 0
    found = open_project(project).images[2].read().detections
    assert len(found) == before + 1
    assert found.class_names[-1] == "Nucleus"


def test_nothing_is_imported_unless_every_file_has_its_image(
    sample: Sample, qpnuclei: Call, tmp_path: Path
) -> None:
    project = sample("0.5.1")
    before = tree(project)
    for name in ("plain.tif.geojson", "nobody.geojson"):
        write_objects(tmp_path / name, [GeoJsonObject("annotation", shapely.box(0, 0, 3, 3))])
    files = [tmp_path / name for name in ("plain.tif.geojson", "nobody.geojson")]
    assert qpnuclei("geojson", "import", project, *files, *NATIVE).exit_code == 2
    assert tree(project) == before


def test_one_bad_file_does_not_stop_the_others(
    sample: Sample, qpnuclei: Call, tmp_path: Path
) -> None:
    project = sample("0.5.1")
    bad, good = tmp_path / "he small.png.geojson", tmp_path / "plain.tif.geojson"
    bad.write_text('{"type":"FeatureCollection","features":[{"type":"Feature"}]}')
    write_objects(good, [GeoJsonObject("annotation", shapely.box(0, 0, 3, 3))])
    outcome = qpnuclei("geojson", "import", project, bad, good, *NATIVE)
    assert outcome.exit_code == 1
    assert "into plain.tif: 1 annotation, " in outcome.stdout


def test_a_class_that_is_not_there(sample: Sample, qpnuclei: Call, tmp_path: Path) -> None:
    refused = qpnuclei(
        "geojson", "export", sample("0.5.1"), "-o", tmp_path / "g", "--roi", "Tumour", *NATIVE
    )
    assert refused.exit_code == 2
    assert refused.error is not None
    assert "Tumor" in refused.error.hint
    assert not (tmp_path / "g").exists()


def test_a_file_of_the_nuclei_of_several_images(
    sample: Sample, qpnuclei: Call, tmp_path: Path
) -> None:
    project, path = sample("0.5.1"), tmp_path / "all.geojson"
    assert qpnuclei("export", project, "--by", "nucleus", "-o", path, *NATIVE).exit_code == 0
    (project / "data" / "2" / "data.qpdata").unlink()
    command = ("geojson", "import", project, path, *NATIVE, "--image")
    outcome = qpnuclei(*command, "renamed pyramid")
    assert outcome.exit_code == 0
    assert "50 detections imported; 6 belong to other images" in outcome.stdout
    assert "not imported: 6 objects of image 'he small.png' (ID 1)" in outcome.stderr
    (result,) = json.loads(qpnuclei(*command, "renamed pyramid", "--json").stdout)
    assert result["other_images"] == [{"image": "he small.png", "image_id": "1", "objects": 6}]
    before = tree(project)
    refused = qpnuclei(*command, "plain.tif")
    assert refused.exit_code == 1
    assert "nothing in it belongs to plain.tif" in " ".join(refused.stderr.split())
    assert tree(project) == before
