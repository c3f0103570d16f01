"""``qpnuclei qc`` as its users call it."""

import json

import numpy as np
from PIL import Image

from qpnuclei.qupath.create import create_from_slides


def test_images_are_judged_one_by_one(tmp_path, qpnuclei):
    for name in ("good", "gone"):
        rgb = np.full((160, 160, 3), 243, np.uint8)
        rgb[64:128, 32:128] = (50, 90, 170)
        Image.fromarray(rgb).save(tmp_path / f"{name}.png")
    slides = [tmp_path / "good.png", tmp_path / "gone.png"]
    project = create_from_slides(tmp_path / "project", slides, 1.0)
    (tmp_path / "gone.png").unlink()
    done = qpnuclei("qc", project.path, "--json")
    assert done.exit_code == 1
    good, gone = json.loads(done.stdout)
    assert (good["image"], good["added"]) == ("good.png", 1)
    assert good["area_mm2"]["pen"] > 0
    assert gone["image"] == "gone.png"
    assert "gone.png" in gone["error"]
    assert len(project.images[0].read().annotations) == 1


def test_said_in_words(tmp_path, qpnuclei):
    Image.fromarray(np.full((160, 160, 3), 243, np.uint8)).save(tmp_path / "x.png")
    project = create_from_slides(tmp_path / "project", [tmp_path / "x.png"], 1.0)
    done = qpnuclei("qc", project.path)
    assert done.exit_code == 0
    assert done.stdout == (
        "x.png: pen 0.000 mm², fold 0.000 mm², blur 0.000 mm²; "
        "annotations: 0 added, 0 removed, 0 kept\n"
    )
