"""Adapt a model to the slides of one laboratory, without labels, and report what changed.

``qpnuclei adapt`` calls `adapt`. It continues the training of a student with the recipe ``adapted``
(`qpnuclei.training.student.rounds`), then compares both models on patches of the same slides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from PIL import Image, ImageColor, ImageDraw
from skimage.segmentation import find_boundaries

from qpnuclei.errors import UsageError, number_of
from qpnuclei.evaluation.boxes import BoxImage
from qpnuclei.models.metadata import ModelMetadata, read_metadata
from qpnuclei.models.registry import DEFAULT_MODEL, FINE_NETWORK, network_for, resolve_model
from qpnuclei.report.pictures import PALETTE
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.calibration import area_mm2
from qpnuclei.slides.pixels import RGB, write_png
from qpnuclei.slides.stains import separate
from qpnuclei.system.files import write_atomically
from qpnuclei.system.one_line import in_one_line
from qpnuclei.training.callbacks import TrainingCallbacks, TrainingResult
from qpnuclei.training.config import read_recipe
from qpnuclei.training.sources import Source
from qpnuclei.training.student.ancestors import ancestors_of, labels_of, licences_of
from qpnuclei.training.student.corrections import drawn_nuclei
from qpnuclei.training.student.patches import SlideSample, sample_slides
from qpnuclei.training.student.pseudo_labels import blur
from qpnuclei.training.student.recipe import ARCHITECTURE, StudentRecipe, student_recipe
from qpnuclei.training.student.rounds import train_student

RECIPE = "adapted"
CARD_FILE, CHANGES_FILE, PICTURE_FILE = "card.md", "changes.json", "changes.png"

#: Number of images that are compared, and of patches of each.
_COMPARED_IMAGES, _COMPARED_PATCHES = 24, 2
_PICTURE_IMAGES, _PICTURE_PX = 6, 512

#: Side of the crops in µm: 192 px of 0.25 µm.
_CROP_UM = 48.0

#: Agreement with haematoxylin is compared on every such pixel.
_STEP = 4

#: An agreement that falls by more than this, or a count that changes by more than this share, is
#: a change for the worse more often than not.
_LESS_AGREEMENT, _OTHER_COUNT = 0.03, 0.5

#: Yellow, vermilion and sky blue: people with any kind of colour vision tell them apart.
COLOURS = {"both": PALETTE[3], "before": PALETTE[1], "after": PALETTE[4]}

_CARD = jinja2.Environment(
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
).from_string(
    Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"),
    globals={"number_of": number_of, "in_one_line": in_one_line},
)

#: Fields of the recipe that are of the model to start from, and what to do instead of setting them.
_NOT_SET = {
    "mpp": "leave it out, or train a network for another pixel size with qpnuclei train",
    "start": "name the model to start from with --model",
}

_LabelMap = npt.NDArray[np.int32]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class ImageChange:
    """The results of both models on some patches of one image.

    Parameters
    ----------
    image : str
    area_mm2 : float
        Area of the compared patches.
    nuclei_before, nuclei_after : int
        On these patches.
    agreement_before, agreement_after : float or None
        Rank correlation of nuclear probability and haematoxylin over their pixels, mean over the
        patches; None where every pixel is the same.
    """

    image: str
    area_mm2: float
    nuclei_before: int
    nuclei_after: int
    agreement_before: float | None
    agreement_after: float | None


@dataclass(frozen=True)
class Adaptation:
    """The result of an adaptation.

    Parameters
    ----------
    training : TrainingResult
    changes : list of ImageChange
        Empty if it was stopped.
    doubts : list of str
        Why the new model may be worse than the one it started from.
    """

    training: TrainingResult
    changes: list[ImageChange]
    doubts: list[str]


def adapt(
    sources: Sequence[Source],
    folder: Path,
    *,
    model: str = DEFAULT_MODEL,
    settings: Mapping[str, Any] | None = None,
    device: torch.device,
    seed: int = 0,
    resume: bool = False,
    callbacks: TrainingCallbacks | None = None,
    corrections: Sequence[BoxImage] = (),
) -> Adaptation:
    """Adapt a student to slides, and compare it with the original model.

    Parameters
    ----------
    sources : sequence of Source
    folder : pathlib.Path
        For the model, its card, the changes as JSON and as a picture, and the state of the run.
    model : str
        Name or file of the student to start from. Of the default model, it is the network that
        `network_to_adapt` names.
    settings : mapping, optional
        Fields of the recipe ``adapted`` to change.
    device : torch.device
    seed : int
    resume : bool
        Continue the run in `folder`.
    callbacks : TrainingCallbacks, optional
        Called with the progress; they may stop the run.
    corrections : sequence of BoxImage
        Boxes in which nuclei were drawn, to learn from as well.

    Raises
    ------
    qpnuclei.errors.UsageError
        If the model is not a student, or the sources or the folder do not allow the run.
    qpnuclei.errors.QpnucleiError
        If the model or an image cannot be read, or the training went wrong.
    """
    callbacks = callbacks or TrainingCallbacks()
    model = network_to_adapt(model, sources)
    start = resolve_model(model)
    metadata = read_metadata(start)
    for name, instead in _NOT_SET.items():
        if name in (settings or {}):
            raise UsageError(
                f"{name} is not a setting of adapt: both models are compared at the pixel size of "
                "the one that is adapted",
                instead,
            )
    if metadata.family != "student":
        raise UsageError(
            f"model {model!r} is of the family {metadata.family!r}: only students are adapted",
            "leave --model out, or name a model of train --config student",
        )
    packaged = read_recipe(RECIPE)
    fields = {
        # What an older model does not state has the default, not the value of the packaged model.
        **{name: packaged[name] for name in packaged.keys() - set(ARCHITECTURE)},
        **metadata.architecture,
        "mpp": metadata.mpp,
        "crop_px": _crop_px(metadata.mpp),
        "start": model,
        **(settings or {}),
    }
    recipe = student_recipe(fields)
    ancestors = ancestors_of(recipe)
    training = train_student(
        fields,
        sources,
        folder,
        device=device,
        seed=seed,
        resume=resume,
        callbacks=callbacks,
        corrections=corrections,
    )
    if training.stopped or training.model is None:
        return Adaptation(training, [], [])
    before = Predictor.load(start, str(device))
    after = Predictor.load(training.model, str(device))
    changes: list[ImageChange] = []
    views: list[_View] = []
    compared = _evenly(sources, _COMPARED_IMAGES)
    # In place of those without tissue, the ones between them.
    between = [source for source in sources if source not in compared]
    for source in [*compared, *between]:
        callbacks.on_tiles(len(changes), len(compared))
        if callbacks.stop_requested():
            return Adaptation(replace(training, stopped=True), [], [])
        if sample := _sample(source, recipe, seed):
            change, view = _compare(sample, before, after)
            changes.append(change)
            views.append(view)
        if len(changes) == len(compared):
            break
    callbacks.on_tiles(len(compared), len(compared))
    doubts = find_doubts(changes)
    result = Adaptation(training, changes, doubts)
    _write(folder, recipe, ancestors, metadata, after.metadata, result)
    _write_picture(folder / PICTURE_FILE, _evenly(views, _PICTURE_IMAGES))
    return result


def network_to_adapt(model: str, sources: Sequence[Source]) -> str:
    """Return the model to start from: of the default, the network that a run gives these slides.

    An adapted model is one network. Where slides are of both kinds, it is the fine one, for which
    the coarse slides are enlarged.

    Parameters
    ----------
    model : str
        As the user names it; any but the default one is returned as it is.
    sources : sequence of Source
        Their level-0 µm/px, mean of x and y, choose.
    """
    networks = {network_for(model, sum(source.mpp) / 2) for source in sources}
    return networks.pop() if len(networks) == 1 else FINE_NETWORK


def _crop_px(mpp: float) -> int:
    """Return the side of crops of about 48 µm: to the nearest 32 px, and at least 64 px."""
    return max(64, 32 * round(_CROP_UM / mpp / 32))


def find_doubts(changes: Sequence[ImageChange]) -> list[str]:
    """Return why a new model may be worse than the one it started from, in sentences."""
    doubts = []
    before, after = (sum(getattr(c, f"nuclei_{when}") for c in changes) for when in _WHEN)
    if abs(after - before) > _OTHER_COUNT * before:
        doubts.append(
            f"it finds {number_of(after, 'nucleus')} where the original model finds {before}"
        )
    known = [c for c in changes if c.agreement_before is not None and c.agreement_after is not None]
    if known:
        was, now = (np.mean([getattr(c, f"agreement_{when}") for c in known]) for when in _WHEN)
        if now < was - _LESS_AGREEMENT:
            doubts.append(f"its agreement with haematoxylin fell from {was:.2f} to {now:.2f}")
    return doubts


_WHEN = ("before", "after")


@dataclass(frozen=True, eq=False)
class _View:
    """A patch as both models see it."""

    title: str
    rgb: RGB
    before: _LabelMap
    after: _LabelMap


def _evenly(items: Sequence[_Item], most: int) -> Sequence[_Item]:
    """Return `most` items at most, evenly spread."""
    return items[:: math.ceil(len(items) / most)]


def _sample(source: Source, recipe: StudentRecipe, seed: int) -> SlideSample | None:
    """Return a few patches of an image; None if it has no tissue."""
    samples = sample_slides(
        [source],
        mpp=recipe.mpp,
        patch_px=recipe.patch_px,
        patches_per_slide=_COMPARED_PATCHES,
        max_patches=_COMPARED_PATCHES,
        min_tissue=recipe.min_tissue,
        max_enlargement=recipe.max_enlargement,
        seed=seed,
        warns=False,  # the training has said it
    )
    return samples[0] if samples else None


def _compare(sample: SlideSample, before: Predictor, after: Predictor) -> tuple[ImageChange, _View]:
    patches = sample.patches
    counts = dict.fromkeys(_WHEN, 0)
    agreements: dict[str, list[float]] = {when: [] for when in _WHEN}
    first: dict[str, _LabelMap] = {}
    for rgb in patches:
        haematoxylin = blur(np.ascontiguousarray(separate(rgb, sample.stains)[..., 0]), 1.0)
        for when, predictor in zip(_WHEN, (before, after), strict=True):
            attention, centre = predictor.predict_image(rgb)
            labels = segment_instances(attention, predictor.metadata.post_processing, centre)
            counts[when] += int(labels.max(initial=0))
            first.setdefault(when, labels)
            pair = attention[::_STEP, ::_STEP].ravel(), haematoxylin[::_STEP, ::_STEP].ravel()
            if all(np.ptp(values) > 0 for values in pair):
                agreements[when].append(float(scipy.stats.spearmanr(*pair).statistic))
    mean = {
        when: round(float(np.mean(values)), 4) if values else None
        for when, values in agreements.items()
    }
    area = area_mm2(sum(rgb.shape[0] * rgb.shape[1] for rgb in patches), sample.mpp)
    change = ImageChange(
        sample.name,
        round(area, 4),
        counts["before"],
        counts["after"],
        mean["before"],
        mean["after"],
    )
    return change, _View(sample.name, patches[0], first["before"], first["after"])


def _write(
    folder: Path,
    recipe: StudentRecipe,
    ancestors: Sequence[ModelMetadata],
    was: ModelMetadata,
    now: ModelMetadata,
    adaptation: Adaptation,
) -> None:
    """Write the changes as JSON, and the card of the new model."""
    content = {
        "changes": [asdict(change) for change in adaptation.changes],
        "doubts": adaptation.doubts,
    }
    write_atomically(folder / CHANGES_FILE, (json.dumps(content, indent=2) + "\n").encode())
    drawn = now.data.get("corrections")
    card = _CARD.render(
        was=was,
        now=now,
        start_sha256=now.recipe["start_sha256"],
        batches=number_of(sum(recipe.batches_of_rounds), "batch", "batches"),
        rounds=recipe.rounds,
        drawn=drawn and drawn_nuclei(**drawn),
        others=[model.name for model in ancestors if model != was],
        inherited="; ".join(labels_of(ancestors)),
        licences=licences_of(ancestors),
        **content,
    )
    write_atomically(folder / CARD_FILE, card.encode())


def _write_picture(path: Path, views: Sequence[_View]) -> None:
    """Write patches with the outlines of both models: before on the left, after on the right."""
    rows = []
    for view in views:
        y, x = _busiest_corner(view.after)
        window = slice(y, y + _PICTURE_PX), slice(x, x + _PICTURE_PX)
        before, after = view.before[window], view.after[window]
        row = Image.new("RGB", (2 * _PICTURE_PX + 4, _PICTURE_PX + 16), "white")
        pair = (("before", before, after), ("after", after, before))
        for number, (when, own, other) in enumerate(pair):
            left = number * (_PICTURE_PX + 4)
            shown = _outlined(view.rgb[window], own, other, COLOURS[when])
            row.paste(Image.fromarray(shown), (left, 16))
            text = f"{when}: {number_of(len(np.unique(own)) - 1, 'nucleus')}"
            title = view.title.encode("latin-1", "replace").decode("latin-1")
            ImageDraw.Draw(row).text((left + 2, 2), f"{title}, {text}", fill="black")
        rows.append(np.asarray(row))
    write_png(path, np.vstack(rows))


def _busiest_corner(labels: _LabelMap) -> tuple[int, int]:
    """Return the upper left corner of the window, of those in a grid, with most nuclear pixels."""
    corners = [
        (y, x)
        for y in range(0, max(1, labels.shape[0] - _PICTURE_PX + 1), _PICTURE_PX // 2)
        for x in range(0, max(1, labels.shape[1] - _PICTURE_PX + 1), _PICTURE_PX // 2)
    ]
    return max(
        corners,
        key=lambda at: int(
            np.count_nonzero(labels[at[0] : at[0] + _PICTURE_PX, at[1] : at[1] + _PICTURE_PX])
        ),
    )


def _outlined(rgb: RGB, own: _LabelMap, other: _LabelMap, only_own: str) -> RGB:
    """Draw outlines: in the colour `only_own` those that meet no nucleus of the other model."""
    shown = rgb.copy()
    met = np.zeros(int(own.max(initial=0)) + 1, bool)
    met[np.unique(own[other > 0])] = True
    edge = find_boundaries(own, mode="inner")  # type: ignore[no-untyped-call]
    shown[edge & met[own]] = ImageColor.getrgb(COLOURS["both"])
    shown[edge & ~met[own]] = ImageColor.getrgb(only_own)
    return shown
