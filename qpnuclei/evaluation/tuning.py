"""Score a model on validation images, and choose its post-processing.

Their labels are used for nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from qpnuclei.errors import number_of
from qpnuclei.evaluation.bootstrap import bootstrap_interval
from qpnuclei.evaluation.datasets import AnnotatedImage, doubts_about_labels
from qpnuclei.evaluation.formats import SPLITS_FILE, read_dataset
from qpnuclei.evaluation.metrics import Scores, mean_scores, score
from qpnuclei.evaluation.scoring import image_mpp
from qpnuclei.models.metadata import PostProcessing
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.recolour import recolour
from qpnuclei.slides.reinhard import reinhard_statistics
from qpnuclei.slides.resolution import working_downsample
from qpnuclei.slides.scaling import scaled
from qpnuclei.system.files import unreadable

_log = logging.getLogger(__name__)

FloatMap = npt.NDArray[np.float32]

#: Number of recoloured copies of each validation image, in addition to the image itself.
RECOLOURINGS = 2


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image with its nuclei, at the model's resolution.

    Parameters
    ----------
    name : str
    rgb : (H, W, 3) uint8 ndarray
    labels : (H, W) int32 ndarray
        0 is background, every other value one nucleus.
    """

    name: str
    rgb: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


def read_validation(folder: Path, mpp: float | None, model_mpp: float) -> list[LabelledImage]:
    """Read a folder with ``images/`` and ``labels/``; with ``splits.json``, its split ``val``.

    Parameters
    ----------
    folder : pathlib.Path
    mpp : float or None
        Resolution of the images in µm/px; None to read it from the files.
    model_mpp : float
        Resolution to which the images are resampled, in µm/px.

    Raises
    ------
    qpnuclei.errors.NotFoundError, qpnuclei.errors.FormatError, qpnuclei.errors.UsageError
        As `qpnuclei.evaluation.formats.read_dataset`, and if labels differ from their image in
        size.
    qpnuclei.errors.MppError
        If the resolution is unknown or implausible.
    """
    images = at_resolution(_validation_images(folder), mpp, model_mpp)
    _log.info("validation on %s of %s", number_of(len(images), "image"), folder)
    return images


def validation_digest(folder: Path, mpp: float | None) -> str:
    """Return the number of images that `read_validation` reads, and a hash of their content.

    The hash is of names, files and µm/px, but not of the folder, which may be moved.

    Raises
    ------
    qpnuclei.errors.NotFoundError, qpnuclei.errors.FormatError, qpnuclei.errors.UsageError,
    qpnuclei.errors.MppError
        As `read_validation`.
    """
    images = _validation_images(folder)
    total = hashlib.sha256()
    for image in images:
        files = [_digest_of(path) for path in (image.image_path, image.labels_path)]
        total.update(repr((image.name, image_mpp(image, mpp), *files)).encode())
    return f"{number_of(len(images), 'image')}, {total.hexdigest()[:16]}"


def validation_doubts(folder: Path) -> list[str]:
    """Return what is doubtful about the labels that `read_validation` reads.

    Raises
    ------
    qpnuclei.errors.NotFoundError, qpnuclei.errors.FormatError, qpnuclei.errors.UsageError
        As `read_validation`.
    """
    return doubts_about_labels(_validation_images(folder))


def _validation_images(folder: Path) -> list[AnnotatedImage]:
    split = "val" if (folder / SPLITS_FILE).is_file() else None
    return read_dataset(folder, "folder", split)[1]


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def at_resolution(
    images: Iterable[AnnotatedImage], mpp: float | None, model_mpp: float
) -> list[LabelledImage]:
    """Read annotated images, and resample them to a model's resolution unless within 10 % of it.

    Parameters
    ----------
    images : iterable of AnnotatedImage
    mpp : float or None
        µm/px of all images; overrides data set and files.
    model_mpp : float

    Raises
    ------
    qpnuclei.errors.SlideError, qpnuclei.errors.FormatError
        If an image or its annotation cannot be read, or they differ in size.
    qpnuclei.errors.MppError
        If the resolution is unknown or implausible.
    """
    made = []
    for image in images:
        rgb, labels = image.read_alone()
        true_mpp = image_mpp(image, mpp)
        rgb = scaled(rgb, 1 / working_downsample((true_mpp, true_mpp), model_mpp)[0])
        if rgb.shape[:2] != labels.shape:
            labels = cv2.resize(
                labels, rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT
            ).astype(np.int32)
        made.append(LabelledImage(image.name, rgb, labels))
    return made


def recoloured(images: Sequence[LabelledImage], seed: int = 0) -> list[LabelledImage]:
    """Return images with the stain and scanner of other laboratories simulated.

    Parameters
    ----------
    images : sequence of LabelledImage
    seed : int
        The same seed makes the same changes; they differ between images.

    Returns
    -------
    list of LabelledImage
        See `qpnuclei.slides.recolour.recolour`. The labels are unchanged.
    """
    made = []
    for number, image in enumerate(images):
        changed = recolour(image.rgb, np.random.default_rng((seed, number)))
        rgb = np.rint(255 * changed).astype(np.uint8)
        made.append(LabelledImage(image.name, rgb, image.labels))
    return made


@dataclass(frozen=True, eq=False)
class PredictedImage:
    """The maps that a model predicts for a labelled image.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
    attention : (H, W) float32 ndarray
    centre : (H, W) float32 ndarray or None
    """

    labels: npt.NDArray[np.int32]
    attention: FloatMap
    centre: FloatMap | None

    def score(self, parameters: PostProcessing) -> Scores:
        """Score the instances that result from the attention with these parameters."""
        found = segment_instances(self.attention, parameters, self.centre)
        return score(self.labels, found)


def predict(
    predictor: Predictor,
    images: Sequence[LabelledImage],
    before_image: Callable[[], object] = lambda: None,
) -> list[PredictedImage]:
    """Run a model on labelled images. `before_image` is called before each, and may raise."""
    predicted = []
    for image in images:
        before_image()
        attention, centre = predictor.predict_image(image.rgb, reinhard_statistics(image.rgb))
        predicted.append(PredictedImage(image.labels, attention, centre))
    return predicted


def summarise(images: Sequence[PredictedImage], parameters: PostProcessing) -> dict[str, Any]:
    """Return the scores of a model on labelled images, for its metadata.

    Returns
    -------
    dict
        ``images`` (their number), ``mean`` (see `mean_scores`), and for AJI, ADC and PQ ``sd`` over
        the images and ``interval``, the 95 % bootstrap interval of the mean. The last two are empty
        for one image.
    """
    scores = [image.score(parameters) for image in images]
    values = {key: np.array([getattr(s, key) for s in scores]) for key in ("AJI", "ADC", "PQ")}
    return {
        "images": len(scores),
        "mean": {key: round(mean, 4) for key, mean in mean_scores(scores).items()},
        "sd": {k: round(float(v.std(ddof=1)), 4) for k, v in values.items() if len(v) > 1},
        "interval": {
            key: [round(end, 4) for end in bootstrap_interval(v)]
            for key, v in values.items()
            if len(v) > 1
        },
    }


#: The values that `tune_post_processing` tries, one group of parameters after the other, in px at
#: 0.25 µm/px. They are coarse on purpose: a few images do not support a finer choice.
_GRIDS_MPP = 0.25
_GRIDS: tuple[dict[str, tuple[float, ...]], ...] = (
    {"threshold": (0.3, 0.4, 0.5, 0.6, 0.7), "min_mean_attention": (0.0, 0.65, 0.8)},
    {"smoothing_sigma_px": (1.0, 2.0, 3.0), "maxima_radius_px": (4, 6, 9)},
    {"centre_weight": (0.5, 0.65, 0.8, 0.9), "min_prominence_px": (0.0, 1.0, 1.5, 2.0)},
    {"coarse_radius_px": (0, 1, 2), "fine_radius_px": (0, 1)},
    {"min_area_px": (0, 40, 80, 120)},
)

#: Parameters that decide how faint or small a nucleus may be, with the most harmful one first. On a
#: few similar images the strictest values look best, but they lose nuclei on paler slides.
_STRICTNESS = ("min_mean_attention", "threshold", "min_area_px")
#: Accepted loss of quality for less strict values.
_ACCEPTED_LOSS = 0.01


def _grids(mpp: float) -> list[dict[str, list[float]]]:
    """Return the values to try at `mpp` µm/px, without duplicates that result from rounding."""
    if mpp == _GRIDS_MPP:
        return [{name: list(values) for name, values in grid.items()} for grid in _GRIDS]

    def at_mpp(name: str, value: float) -> Any:
        parameters = replace(PostProcessing(), **{name: value})
        return getattr(parameters.at_resolution(_GRIDS_MPP, mpp), name)

    return [
        {name: sorted({at_mpp(name, value) for value in values}) for name, values in grid.items()}
        for grid in _GRIDS
    ]


def tune_post_processing(
    images: Sequence[PredictedImage],
    start: PostProcessing,
    on_trial: Callable[[PostProcessing, float], None] = lambda _p, _s: None,
    *,
    mpp: float = _GRIDS_MPP,
) -> PostProcessing:
    """Choose the post-processing with the best mean of AJI and PQ, then make it less strict.

    Parameters
    ----------
    images : sequence of PredictedImage
    start : PostProcessing
        Parameters that are not varied keep these values.
    on_trial : callable
        Called with every choice that was tried, and its score; it may raise to end the search.
    mpp : float
        µm/px of the images. Sizes in px depend on it.

    Returns
    -------
    PostProcessing

    Notes
    -----
    This is a coordinate search over a few coarse values, in groups of parameters that depend on
    each other. A best value at the end of its range is logged. Then minimum mean attention,
    threshold and minimum area are lowered, in this order, while the total loss of quality is at
    most 0.01.
    """
    tried: dict[PostProcessing, float] = {}

    def quality(parameters: PostProcessing) -> float:
        if parameters not in tried:
            scores = [image.score(parameters) for image in images]
            tried[parameters] = float(np.mean([(s.AJI + s.PQ) / 2 for s in scores]))
            on_trial(parameters, tried[parameters])
        return tried[parameters]

    best = start
    has_centre = images[0].centre is not None
    tried_values: dict[str, list[float]] = {}
    for grid in _grids(mpp):
        values_of = {k: v for k, v in grid.items() if has_centre or k != "centre_weight"}
        tried_values |= values_of
        choices = [
            replace(best, **dict(zip(values_of, values, strict=True)))
            for values in itertools.product(*values_of.values())
        ]
        best = max([best, *choices], key=quality)
    for name, values in tried_values.items():
        value = getattr(best, name)
        if value == max(values) or (value == min(values) and value > 0):
            _log.info("the best value of %s, %g, is at the end of its range", name, value)
    least = quality(best) - _ACCEPTED_LOSS
    for name in _STRICTNESS:
        for value in sorted(v for v in tried_values[name] if v < getattr(best, name)):
            choice = replace(best, **{name: value})
            if quality(choice) >= least:
                best = choice
                break
    return best
