"""Nuclei that somebody drew, as examples in addition to those without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import cv2
import numpy as np

from qpnuclei.errors import number_of
from qpnuclei.evaluation.boxes import BoxImage
from qpnuclei.evaluation.scoring import image_mpp
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.resolution import Scale, working_downsample
from qpnuclei.slides.scaling import scaled
from qpnuclei.training.student.batches import TrainingExample, make_examples
from qpnuclei.training.student.pseudo_labels import PseudoLabels
from qpnuclei.training.student.recipe import StudentRecipe


@dataclass(frozen=True, eq=False)
class Correction:
    """A box in which all nuclei were drawn, with its surroundings.

    Parameters
    ----------
    name : str
    rgb : (H, W, 3) uint8 ndarray
        At the model's resolution.
    mpp : (float, float)
        µm/px of `rgb` in x and y: up to 10 % from the model's.
    known : PseudoLabels
        Weight 1 in the box, and 0 around it.
    nuclei : int
        Number of nuclei in the box.
    """

    name: str
    rgb: RGB
    mpp: tuple[float, float]
    known: PseudoLabels
    nuclei: int


def read_corrections(boxes: Iterable[BoxImage], model_mpp: float) -> list[Correction]:
    """Read boxes, and bring them to a model's resolution, unless within 10 % of it.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If an image cannot be read.
    """
    made = []
    for box in boxes:
        rgb, labels, inside = box.read_around()
        mpp = image_mpp(box, None)
        scale = Scale((mpp, mpp), working_downsample((mpp, mpp), model_mpp))
        rgb = scaled(rgb, 1 / scale.downsample[0])
        nuclei, weight = (
            cv2.resize(values, rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            for values in (labels.astype(np.float32), inside.astype(np.float32))
        )
        known = PseudoLabels(nuclei.astype(np.int32), weight.astype(np.float32))
        made.append(
            Correction(
                box.name,
                rgb,
                scale.working_mpp,
                known,
                int(np.count_nonzero(box.counts)),
            )
        )
    return made


def drawn_nuclei(nuclei: int, boxes: int) -> str:
    """Return the statement in a model's metadata and card that it learned from drawn nuclei.

    Examples
    --------
    >>> drawn_nuclei(12, 1)
    '12 nuclei drawn in 1 box'
    """
    return f"{number_of(nuclei, 'nucleus')} drawn in {number_of(boxes, 'box')}"


def digest(corrections: Iterable[Correction]) -> str:
    """Return a hash of the drawn nuclei and their images."""
    known = blake2b(digest_size=16)
    for correction in corrections:
        for values in (correction.rgb, correction.known.labels, correction.known.weight):
            known.update(repr(values.shape).encode())
            known.update(np.ascontiguousarray(values).tobytes())
    return known.hexdigest()


def correction_examples(
    corrections: Sequence[Correction],
    others: Sequence[TrainingExample],
    recipe: StudentRecipe,
    rng: np.random.Generator,
) -> Iterator[TrainingExample]:
    """Return the boxes and their renditions as examples.

    Together they are sampled as often, relative to `others`, as ``corrections_share`` says: by size
    alone, a few boxes would hardly be sampled.
    """
    examples = [
        example
        for correction in corrections
        for example in make_examples(correction.rgb, correction.known, correction.mpp, recipe, rng)
    ]
    area, of_others = (sum(_area(example) for example in some) for some in (examples, others))
    share = recipe.corrections_share
    for example in examples:
        yield replace(example, likelihood=share / (1 - share) * of_others / area)


def _area(example: TrainingExample) -> int:
    height, width = example.targets.shape[:2]
    return int(height * width)
