"""Batches for the student: random crops of patches and their pseudo-labels, in random colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpnuclei.slides.calibration import area_mm2
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.recolour import recolour
from qpnuclei.slides.stains import HE_MATRIX, HE_UNMIXING, optical_density
from qpnuclei.training.student.pseudo_labels import PseudoLabels, centre_map, seams
from qpnuclei.training.student.recipe import StudentRecipe
from qpnuclei.training.student.synthesis import cut_nuclei, paste_nuclei, repaint_nuclei

FloatImage = npt.NDArray[np.float32]

#: Pixels paler than this in all channels are glass; their colour is not used.
_GLASS = 225
#: Colours of a patch are measured on every n-th pixel.
_COLOUR_STEP = 7


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """One patch and its training targets.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    targets : (H, W, 3) uint8 ndarray
        Foreground, centre map and weight, each 0..1 times 255.
    likelihood : float
        Factor on the probability of drawing it, which is otherwise proportional to its size.
    """

    rgb: RGB
    targets: npt.NDArray[np.uint8]
    likelihood: float = 1.0

    @cached_property
    def colours(self) -> npt.NDArray[np.float32]:
        """Mean and standard deviation of L*, a*, b* of the tissue: (2, 3) float32."""
        pixels = self.rgb.reshape(-1, 3)[::_COLOUR_STEP]
        tissue = pixels[pixels.min(axis=1) < _GLASS]
        lab = _lab((tissue if len(tissue) else pixels)[None].astype(np.float32) / np.float32(255))
        return np.stack([lab.mean(axis=(0, 1)), lab.std(axis=(0, 1))])

    @classmethod
    def of(cls, rgb: RGB, known: PseudoLabels, seam_weight: float = 1.0) -> TrainingExample:
        """Make an example of a patch and its pseudo-labels.

        Between nuclei that touch or nearly do, pixels weigh `seam_weight` (1 to 25) times as much
        as elsewhere: they are few, but they separate the nuclei (Ronneberger et al., "U-Net",
        MICCAI 2015, equation 2).
        """
        weight = known.weight * np.where(seams(known.labels), 1.0, 1 / seam_weight)
        maps = (known.labels > 0, centre_map(known.labels), weight)
        return cls(rgb, np.rint(255 * np.stack(maps, axis=-1)).astype(np.uint8))


def make_examples(
    rgb: RGB,
    known: PseudoLabels,
    mpp: tuple[float, float],
    recipe: StudentRecipe,
    rng: np.random.Generator,
) -> list[TrainingExample]:
    """Return a patch as it is, and its renditions with nuclei pasted and repainted.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    known : PseudoLabels
    mpp : (float, float)
        µm/px of the patch in x and y.
    recipe : StudentRecipe
    rng : numpy.random.Generator
    """
    examples = [TrainingExample.of(rgb, known, recipe.seam_weight)]
    cuts = cut_nuclei(rgb, known.labels)
    pastes = round(recipe.pastes_per_mm2 * area_mm2(known.labels.size, mpp))
    for _ in range(recipe.renditions):
        new_rgb, new_known = paste_nuclei(rgb, known, cuts, pastes, rng)
        new_rgb = repaint_nuclei(new_rgb, new_known.labels, rng, share=recipe.repainted_share)
        examples.append(TrainingExample.of(new_rgb, new_known, recipe.seam_weight))
    return examples


def random_batch(
    examples: Sequence[TrainingExample],
    size: int,
    crop_px: int,
    rng: np.random.Generator,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    strong_colours: float,
    borrowed_colours: float,
) -> tuple[Tensor, Tensor]:
    """Draw a batch of crops; an example's probability is its size times its likelihood.

    Parameters
    ----------
    examples : sequence of TrainingExample
    size : int
        Number of crops.
    crop_px : int
        Side of the crops.
    rng : numpy.random.Generator
    mean, std : three floats each
        The network sees RGB in 0..1 minus `mean`, over `std`.
    strong_colours : float
        Share of the crops that are recoloured strongly, see `random_appearance`.
    borrowed_colours : float
        Share of the crops that first get the colours of another example.

    Returns
    -------
    images : (size, 3, crop_px, crop_px) float32 Tensor
    targets : (size, 3, crop_px, crop_px) float32 Tensor
        Foreground, centre map and weight, each 0..1.
    """
    offset, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    images = np.empty((size, crop_px, crop_px, 3), np.float32)
    targets = np.empty((size, crop_px, crop_px, 3), np.float32)
    areas = np.array(
        [math.prod(example.rgb.shape[:2]) * example.likelihood for example in examples]
    )
    share = areas / areas.sum()
    for i in range(size):
        example = examples[int(rng.choice(len(examples), p=share))]
        rgb, crop_targets = random_crop_of(example, crop_px, rng)
        if rng.random() < borrowed_colours:
            lender = examples[int(rng.integers(len(examples)))]
            rgb = with_colours_of(rgb, example.colours, lender.colours)
        images[i] = (random_appearance(rgb, rng, strong_colours) - offset) / scale
        targets[i] = crop_targets / np.float32(255)
    return _channels_first(images), _channels_first(targets)


def with_colours_of(rgb: RGB, own: npt.NDArray[np.float32], lent: npt.NDArray[np.float32]) -> RGB:
    """Give a crop the colours of another slide (Reinhard et al., IEEE CG&A 21, 2001).

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    own, lent : (2, 3) float32 ndarray
        `TrainingExample.colours` of the crop's example and of the lender's.

    Returns
    -------
    (H, W, 3) uint8 ndarray
    """
    # A patch of one colour has no spread to scale; and the factor is limited.
    gain = np.clip(lent[1] / np.maximum(own[1], np.float32(1)), 0.5, 2)
    lab = (_lab(rgb.astype(np.float32) / np.float32(255)) - own[0]) * gain + lent[0]
    image = cv2.cvtColor(np.asarray(lab, np.float32), cv2.COLOR_Lab2RGB)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _lab(rgb: FloatImage) -> FloatImage:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab), np.float32)


def _channels_first(batch: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def random_crop_of(
    example: TrainingExample, size: int, rng: np.random.Generator
) -> tuple[RGB, npt.NDArray[np.uint8]]:
    """Cut a crop out of an example, mirrored, turned and scaled at random.

    Half of the crops are rotated by right angles only, so that their pixels stay sharp. The scale
    is 0.74 to 1.65, with more enlargement than reduction because large nuclei are rarer in
    pseudo-labels than in tissue. Beyond its border the image is mirrored.

    Parameters
    ----------
    example : TrainingExample
    size : int
        Side of the crop in px.
    rng : numpy.random.Generator

    Returns
    -------
    rgb : (size, size, 3) uint8 ndarray
    targets : (size, size, 3) uint8 ndarray
    """
    height, width = example.rgb.shape[:2]
    quarter = np.pi / 2
    angle = rng.uniform(0, 4 * quarter) if rng.random() < 0.5 else rng.integers(4) * quarter
    step = np.exp(rng.uniform(-0.5, 0.3))  # px of the patch per px of the crop
    cos, sin = np.cos(angle) * step, np.sin(angle) * step
    turn = np.array([[cos, -sin], [sin, cos]])
    if rng.random() < 0.5:
        turn[:, 0] *= -1
    reach = np.abs(turn).sum(axis=1) * size / 2
    centre = [
        rng.uniform(min(r, extent / 2), max(extent - r, extent / 2))
        for r, extent in zip(reach, (width, height), strict=True)
    ]
    middle = (size - 1) / 2
    offset = np.array(centre) - turn @ np.array([middle, middle])
    matrix = np.hstack([turn, offset[:, None]])
    rgb, targets = (
        cv2.warpAffine(
            image,
            matrix,
            (size, size),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for image in (example.rgb, example.targets)
    )
    return rgb.astype(np.uint8), targets.astype(np.uint8)


def random_appearance(
    rgb: RGB, rng: np.random.Generator, strong_colours: float = 0.0
) -> FloatImage:
    """Give a crop the colours, brightness, sharpness and noise of another laboratory.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    rng : numpy.random.Generator
    strong_colours : float
        Probability that the colours change as by `recolour`; else they change mildly.

    Returns
    -------
    (H, W, 3) float32 ndarray
        RGB in 0..1.

    Notes
    -----
    Mildly: stain concentrations (haematoxylin, eosin, residual) are scaled by up to 30 % and
    shifted; their overall strength follows a gamma; then brightness. After the colours: one of
    blur, sharpening, or the loss of detail of a coarser scan; noise; JPEG.
    """
    change = recolour if rng.random() < strong_colours else _mildly_recoloured
    image = change(rgb, rng)
    image = _random_sharpness(image, rng)
    if rng.random() < 0.3:
        deviation = np.float32(rng.uniform(0.005, 0.04))
        image = image + deviation * rng.standard_normal(image.shape, np.float32)
    image = np.clip(image, 0, 1)
    if rng.random() < 0.25:
        image = _random_jpeg(image, rng)
    return np.asarray(image, np.float32)


def _mildly_recoloured(rgb: RGB, rng: np.random.Generator) -> FloatImage:
    factors, shifts = rng.uniform(0.7, 1.3, 3), rng.uniform(-0.026, 0.026, 3)
    mix = (HE_UNMIXING @ np.diag(factors) @ HE_MATRIX).astype(np.float32)
    strength = np.exp(rng.uniform(-0.25, 0.25))
    density = cv2.transform(optical_density(rgb), mix.T) + (shifts @ HE_MATRIX).astype(np.float32)
    np.maximum(density, 0, out=density)
    density = density * np.float32(-np.log(10) * strength)
    brightness = np.float32(rng.uniform(0.9, 1.05))
    return np.asarray(brightness * np.exp(density), np.float32)


def _random_jpeg(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Return an RGB image in 0..1 after JPEG, its colours at full or at half the resolution."""
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    )[int(rng.integers(2))]
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        int(rng.integers(30, 95)),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        sampling,
    ]
    bgr = np.rint(255 * image[..., ::-1]).astype(np.uint8)
    decoded = np.asarray(cv2.imdecode(cv2.imencode(".jpg", bgr, options)[1], cv2.IMREAD_COLOR))
    return decoded[..., ::-1].astype(np.float32) / np.float32(255)


def _random_sharpness(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    choice = rng.random()
    if choice < 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6)), np.float32)
    elif choice < 0.4:
        blurred = cv2.GaussianBlur(image, (0, 0), 1.5)
        image = image + np.float32(rng.uniform(0.3, 1.0)) * (image - blurred)
    elif choice < 0.55:
        size = image.shape[1::-1]
        factor = rng.uniform(0.4, 0.8)
        coarse = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR), np.float32)
    return image
