"""Kill a real run again and again, and compare what is there in the end with an undisturbed one.

A script: ``python -m tests.pipeline.killing WORKPLACE KILLS SEED IMAGES``. The process imports all
that a run needs, and forks one for each run, which is killed at a random moment: in every second
kill somewhere about the renaming of a file, which is where something could be lost.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import shapely

from qpnuclei.pipeline.planning import layout
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.native import open_project
from qpnuclei.slides.stains import DEFAULT_HE, Stains
from tests.projects import IMAGE, annotate
from tests.segmentation.onnx_models import dark_in_onnx

#: Each of its images has four units of one tile.
OPTIONS = (
    *("--roi", "Tumor", "--device", "cpu", "--quiet", "--backend", "native", "--workers", "1"),
    *("--no-report", "--tile", "128", "--max-nucleus", "8"),
)


def make_project(folder: Path, images: int, stains: Stains = DEFAULT_HE) -> Path:
    folder.mkdir(parents=True)
    slides = [Path(shutil.copy(IMAGE, folder / f"{number}.tif")) for number in range(images)]
    project = create_from_slides(folder / "project", slides, mpp=0.25, stains=stains)
    for image in open_project(project.path).images:
        annotate(image, shapely.box(20, 20, 140, 230), shapely.box(150, 60, 240, 240))
    return folder


def content(folder: Path) -> dict[str, object]:
    """Return what a project holds; when it was saved is no matter."""
    found: dict[str, object] = {}
    for path in sorted((folder / "project").rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or "qpnuclei" in name.split("/", 1)[1]:
            continue
        found[name] = path.read_bytes()
        if path.name == "summary.json":
            found[name] = {**json.loads(path.read_text()), "timestamp": None}
    return found


def found(folder: Path) -> list[object]:
    """Return all detections in the images of a project."""
    nuclei = [image.read().detections for image in open_project(folder / "project").images]
    return [
        (list(d.ids), shapely.to_wkb(d.geometries).tolist(), pickle.dumps(dict(d.measurements)))
        for d in nuclei
    ]


def tables(folder: Path) -> list[dict[str, object]]:
    """Return the results in the newest record, without what they took."""
    record = json.loads(max((folder / "project" / "qpnuclei").glob("*/run.json")).read_text())
    timeless = ("seconds", "waited")
    return [
        {key: value for key, value in image.items() if key not in timeless}
        for image in record["images"]
    ]


def start(folder: Path, dies_at: int = -1, after: float = 0.0) -> int:
    """Fork a process that runs; return its number.

    Parameters
    ----------
    dies_at : int
        Which renaming of a file it does not survive by more than `after` seconds.
    """
    number = os.fork()
    if number:
        return number
    from qpnuclei.cli.app import app

    code = 1
    try:
        renamings = 0
        rename = os.replace

        def counted(*arguments: object) -> None:
            nonlocal renamings
            if renamings == dies_at:
                threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            renamings += 1
            rename(*arguments)

        os.replace = counted
        model = dark_in_onnx(folder)  # it is loaded, and computes, quickly
        app(["run", str(folder / "project"), *OPTIONS, "--model", model], standalone_mode=False)
        (folder / "renamings").write_text(str(renamings))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def finish(folder: Path) -> None:
    assert os.waitpid(start(folder), 0)[1] == 0


def is_done(folder: Path) -> bool:
    """Return whether the run has come to its end: the same command would begin another one."""
    records = [*(folder / "project").glob("qpnuclei/*/run.json")]
    return any(json.loads(path.read_text())["state"] == "done" for path in records)


def main(workplace: Path, kills: int, seed: int, images: int) -> None:
    # What a run imports later.
    import numba  # noqa: F401
    import onnxruntime  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import qpnuclei.cli.running
    import qpnuclei.cli.tables
    import qpnuclei.pipeline.run
    import qpnuclei.segmentation.onnx_engine  # noqa: F401

    layout.UNIT_SIDE = 1
    pristine = make_project(workplace / "pristine", images)
    place = workplace / "place"

    def anew() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(pristine, place)
        project = place / "project" / "project.qpproj"
        project.write_text(project.read_text().replace(pristine.as_uri(), place.as_uri()))

    anew()
    begun = time.monotonic()
    finish(place)
    lasts = time.monotonic() - begun
    renamings = int((place / "renamings").read_text())
    whole, table = content(place), tables(place)
    anew()
    chance = random.Random(seed)
    killed = 0
    for turn in range(kills):
        if turn % 2:
            number = start(place)
            time.sleep(chance.uniform(0, lasts))
            os.kill(number, signal.SIGKILL)
        else:
            # A run that goes on has fewer files to write: the later, the less is left of it.
            at = chance.randrange(renamings // (1 + turn % 8))
            number = start(place, at, chance.choice([0, 0.001, 0.01]))
        killed += os.waitpid(number, 0)[1] == signal.SIGKILL
        if turn % 8 == 7 or is_done(place):
            if not is_done(place):
                finish(place)
            assert tables(place) == table
            assert content(place) == whole
            anew()
    finish(place)
    assert tables(place) == table
    assert content(place) == whole
    runs = [path for path in (place / "project" / "qpnuclei").iterdir() if path.is_dir()]
    summary = {"killed": killed, "renamings": renamings, "runs": len(runs)}
    sys.stderr.write(f"{json.dumps(summary)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
