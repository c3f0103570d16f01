"""The commands and the Python of the docs, run as shown, page by page, on small painted slides."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import textwrap
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet
import pytest
import shapely
from PIL import Image
from scipy import ndimage

from qpnuclei.datasets.synthetic.slide import write_slide
from qpnuclei.demo import demonstration
from qpnuclei.models.registry import resolve_model
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import open_project
from tests.cli.conftest import Outcome
from tests.masks import mask_of
from tests.paths import ROOT
from tests.test_docs import PAGES, commands

pytestmark = [
    pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="not in a checkout"),
    pytest.mark.slow,
]

Call = Callable[..., Outcome]

#: Commands with these words are not run here.
NOT_RUN = {
    "--device cuda:0,cuda:1": "needs two GPUs; tests/pipeline/inference/test_processes.py",
    "--dask tcp://head-node:8786": "needs a cluster; tests/pipeline/inference/test_cluster.py",
    "--dask local:4": "starts four processes; tests/pipeline/inference/test_cluster.py",
    "-o runs/open": "trains for a quarter of an hour; training/README.md has the same recipes",
}
#: Nor is Python with these.
NO_PYTHON = {"dask_jobqueue": "needs Slurm"}

#: Pages whose commands build on each other: they are run even if another page has them, too.
WHOLE = ("docs/artefacts.md", "docs/corrections.md")
#: The images of the project, elsewhere slide.svs alone.
IMAGES = {"README.md": ("ward 3 a.svs",), "docs/pixel-size.md": ("a.png", "b.tif")}
#: What the reader has done before.
BEFORE = {
    "docs/export.md": ["run project.qpproj --roi Tumor"],
    "docs/qupath.md": [
        "run project.qpproj --roi Tumor",
        "geojson export project.qpproj -o . --objects detections",
        "project restore project.qpproj --image slide.svs --latest",
    ],
    "docs/report.md": ["run project.qpproj --roi Tumor"],
}
#: What other machines do at the same time.
BESIDE = {"infer the-run --shard 3/20": ["infer the-run"]}

#: Words that stand for others, by the option before them, or anywhere.
OF_OPTION = {
    ("--roi", "CLASS"): "Tumor",
    ("--corrections", "CLASS"): "Box",
    ("--truth-class", "CLASS"): "Nucleus",
    ("--image", "PATTERN"): "slide*",
    ("--config", "NAME"): "student",
    ("--model", "M"): "default",
    ("--to", "FOLDER"): "user-folder",
}
ANYWHERE = {
    "PROJECT": "project.qpproj",
    "SOURCE...": "slides",
    "DATASET": "DATA",
    "/data/slides": "elsewhere",
}

#: Settings that make a training short, by recipe; what the docs set themselves stays.
SHORT = (
    *("rounds=1", "first_round_batches=3", "batch_size=2", "crop_px=64", "renditions=0"),
    *("max_patches=1", "patch_px=256", "min_tissue=0.1"),
)
STUDENT = (*SHORT, "base_channels=8", "max_channels=16")
ATTENTION = (
    *("width=4", "dilations=[1,2]", "scale_network=resnet10", "scale_width=4", "starts=1"),
    *("scales=[0.25,0.5]", "tile_px=112", "crop_px=64", "batch_size=4", "batches_per_epoch=2"),
    "epochs=1",
)
SETTINGS = {
    "proposed": ATTENTION,
    "anchored": ATTENTION,
    # It teaches others, and has to find nuclei.
    "student": ("first_round_batches=60", *STUDENT),
    # It goes on from one that finds few: the stain says where they are.
    "continued": ("vote_share=1", *STUDENT),
}

#: Side of the tissue in px.
SIDE = 480
AREAS = {
    "Tumor": shapely.box(40, 40, 240, 240),
    "Box": shapely.box(270, 40, 470, 240),
    "Held-out": shapely.box(40, 270, 240, 470),
}


@dataclass
class Tissue:
    """Pixels, with glass around, and the outlines of the nuclei that are painted in them."""

    rgb: npt.NDArray[np.uint8]
    nuclei: list[shapely.Polygon]

    def labels(self) -> npt.NDArray[np.uint16]:
        labels = np.zeros(self.rgb.shape[:2], np.uint16)
        for label, nucleus in enumerate(self.nuclei, start=1):
            labels[mask_of(nucleus, labels.shape)] = label
        return labels


@pytest.fixture(scope="module")
def tissue() -> Tissue:
    rng = np.random.default_rng(0)
    rgb = np.full((SIDE + 40, SIDE + 40, 3), (220.0, 150, 190))
    nuclei = []
    for x, y in np.ndindex(12, 12):
        radii = rng.uniform(8, 12, 2)
        place = np.array((x, y)) * 40 + 20 + rng.uniform(-5, 5, 2)
        disc = shapely.affinity.scale(shapely.Point(*place).buffer(1), *radii)
        nuclei.append(disc)
        rgb[mask_of(disc, rgb.shape[:2])] = (85, 55, 130)
    rgb = ndimage.gaussian_filter(rgb, (0.7, 0.7, 0)) + rng.uniform(-8, 8, (*rgb.shape[:2], 1))
    rgb[SIDE:], rgb[:, SIDE:] = 245, 245
    return Tissue(rgb.clip(0, 255).astype(np.uint8), nuclei)


def put_slides(folder: Path, rgb: npt.NDArray[np.uint8], *names: str) -> list[Path]:
    """Write a slide under some names. As PNG it has no pixel size."""
    folder.mkdir(exist_ok=True)
    for name in names:
        if name.endswith(".png"):
            Image.fromarray(rgb).save(folder / name)
        else:
            write_slide(folder / name, rgb)
    return [folder / name for name in names]


def put_data(folder: Path, tissue: Tissue, step: int = 1) -> None:
    """Write two images with labels, one to learn from and one to validate on."""
    for kind, pixels in (("images", tissue.rgb), ("labels", tissue.labels())):
        (folder / kind).mkdir(parents=True)
        for name, side in (("a", 240), ("b", 120)):
            part = pixels[:side:step, SIDE - side : SIDE : step]
            Image.fromarray(part).save(folder / kind / f"{name}.png")
    (folder / "splits.json").write_text('{"train": ["a"], "val": ["b"]}')


def draw(nuclei: Sequence[shapely.Polygon]) -> None:
    """Draw in each image of the project what the docs speak of: a tumor, boxes, and nuclei."""
    boxes = AREAS["Box"] | AREAS["Held-out"]
    inside = [("Nucleus", nucleus) for nucleus in nuclei if boxes.contains(nucleus.centroid)]
    for image in open_project(Path("project.qpproj")).images:
        new = [
            NewAnnotation(shape, uuid.uuid4(), None, PathClass(name))
            for name, shape in [*AREAS.items(), *inside]
        ]
        image.write(Edit(annotations=new), image.read().fingerprint)


@pytest.fixture
def world(
    request: pytest.FixtureRequest,
    tissue: Tissue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    qpnuclei: Call,
) -> str:
    """The working folder as the reader of a page has it; returns the page."""
    page: str = request.param
    here = tmp_path / "here"
    names = IMAGES.get(page, ("slide.svs",))
    create_from_slides(here, put_slides(tmp_path / "of-the-project", tissue.rgb, *names))
    monkeypatch.chdir(here)
    draw(tissue.nuclei)
    corner = tissue.rgb[SIDE // 2 :, SIDE // 2 :]
    put_slides(Path("slides"), corner, *names)
    put_slides(Path(), corner, "slide.svs", "a.svs", "b.svs")
    put_data(Path("DATA"), tissue)
    put_data(Path("DATA20"), tissue, 2)
    (tmp_path / "QuPath" / "v0.5").mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    Path("user-folder").mkdir()

    for line in BEFORE.get(page, ()):
        assert qpnuclei(*shlex.split(line)).exit_code == 0, line
    if page == "docs/moved-project.md":
        Path("../of-the-project").rename("elsewhere")
    elif page == "docs/pixel-size.md":
        Path("sizes.csv").write_text("image,mpp\na.png,0.25\nb.tif,0.5\n")
    elif page == "docs/qupath.md":
        Path("1-slide.svs.geojson.gz").rename(newest("qpnuclei") / "1-slide.svs.rescued.geojson.gz")
        Path("nuclei.geojson").write_text(
            shapely.to_geojson(shapely.MultiPolygon(tissue.nuclei[:9]))
        )
    elif page == "docs/report.md":
        Path("runs/ours").mkdir(parents=True)
        shutil.copy(resolve_model("default-40x"), "runs/ours/model.safetensors")
    elif page == "docs/training.md":
        Path("HALF").mkdir()
        shutil.copy("DATA/images/a.png", "HALF")
        Path("HALVES.json").write_text('{"a": ["a"], "b": ["b"]}')
    elif page == "training/README.md":
        for name in ("monusac", "nulite", "other", "brecahad", "oral", "os1"):
            shutil.copytree("DATA/images", Path("TISSUE", name))
    return page


def newest(folder: str) -> Path:
    return max(Path(folder).glob("2*"))


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands_by_page() -> dict[str, list[list[str]]]:
    """Return the commands that are run, each on the first page that has it, in order."""
    seen: set[str] = set()
    found: dict[str, list[list[str]]] = {}
    for path in filter(Path.is_file, PAGES):
        page = page_id(path)
        if page == "docs/tutorial.md":  # tests/cli/test_tutorial.py runs it
            continue
        for words in commands(path.read_text(encoding="utf-8")):
            line = shlex.join(words)
            if not any(part in line for part in NOT_RUN) and (line not in seen or page in WHOLE):
                found.setdefault(page, []).append(words)
                seen.add(line)
    return found


def meant(words: list[str], trained: int) -> list[str]:
    """Return the words with real names for those that stand for any."""
    result = []
    for before, word in pairwise(["", *words]):
        word = OF_OPTION.get((before, word), ANYWHERE.get(word, word))
        word = word.replace("RUN_DIR", f"runs/{trained}")
        if "qpnuclei/" in word:
            word = re.sub(r"^.*qpnuclei/[^/]+", str(newest("qpnuclei")), word)
        if before == "--backup":
            word = newest("data/1/qpnuclei-backups").name.partition("-")[0]
        # As a shell does it.
        result += map(str, sorted(Path().glob(word))) if "/*" in word else [word]
    return result


def shortening(words: list[str]) -> Iterator[str]:
    """Yield the options that make a training short."""
    if words[0] not in ("train", "adapt"):
        return
    usual = SHORT if words[0] == "adapt" else STUDENT
    # Of two values of a field the last counts: even the 300 batches of a short trial are many.
    taken = {word.partition("=")[0] for word in words} - {"first_round_batches"}
    for setting in next((SETTINGS[word] for word in words if word in SETTINGS), usual):
        if (field := setting.partition("=")[0]) not in taken:
            taken.add(field)
            yield from ("--set", setting)


@pytest.mark.parametrize("world", COMMANDS := commands_by_page(), indirect=True)
def test_the_commands_of_a_page_go_through(
    world: str, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = functools.partial(demonstration.demonstrate, size=(640, 512))
    monkeypatch.setattr(demonstration, "demonstrate", small)
    trained = 0
    for shown in COMMANDS[world]:
        trained += shown[0] in ("train", "adapt")
        words = meant(shown, trained)
        written = [
            Path(value) for option, value in pairwise(words) if option in ("-o", "--write-model")
        ]
        for path in filter(Path.is_file, written):
            path.unlink()  # of the command before
        for line in (words, *map(shlex.split, BESIDE.get(shlex.join(shown), ()))):
            outcome = qpnuclei(*line, *shortening(line))
            assert outcome.exit_code == 0, (shlex.join(line), outcome)
        assert [path for path in written if not path.exists()] == [], words
    if world == "README.md":
        assert pyarrow.parquet.read_metadata("nuclei.parquet").num_rows > 10


def python_by_page() -> dict[str, list[str]]:
    """Return the indented Python of each page that has any."""
    found: dict[str, list[str]] = {}
    for path in filter(Path.is_file, PAGES):
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^ {4}\S.*\n(?: {4}.*\n|\n)*", text, re.MULTILINE):
            code = textwrap.dedent(block)
            is_python = re.search(r"^(import|from) \w", code, re.MULTILINE)
            if is_python and not any(part in code for part in NO_PYTHON):
                found.setdefault(page_id(path), []).append(code)
    return found


@pytest.mark.parametrize("world", PYTHON := python_by_page(), indirect=True)
def test_the_python_of_a_page_goes_through(world: str, tissue: Tissue) -> None:
    names: dict[str, Any] = {"rgb": tissue.rgb}
    for code in PYTHON[world]:
        exec(compile(code, world, "exec"), names)  # noqa: S102 - the docs' own code


def test_what_is_not_run_is_in_the_docs() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert [part for part in (*NOT_RUN, *NO_PYTHON) if part not in text] == []
    assert set(WHOLE) | set(BEFORE) <= set(COMMANDS) | set(PYTHON)
    assert set(PYTHON) == {"docs/export.md", "docs/python.md"}
