"""Score a method on annotated images, with the same steps as a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import MppError
from qpnuclei.evaluation.agreement import classify
from qpnuclei.evaluation.bootstrap import bootstrap_interval
from qpnuclei.evaluation.datasets import AnnotatedImage
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.evaluation.metrics import Scores, mean_of_known, mean_scores, score
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.slides.resolution import resolve_mpp
from qpnuclei.slides.slide import open_slide

#: Finds the nuclei of an (H, W, 3) uint8 image, given its µm/px; returns them in px of the image.
Finder = Callable[[npt.NDArray[np.uint8], float], NucleiTable]

#: Names of all scores of an image.
SCORES = tuple(f.name for f in fields(Scores))


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """An annotated image, the nuclei that a method found in it, and their scores.

    Parameters
    ----------
    image : AnnotatedImage
    mpp : float
        µm/px.
    nuclei : NucleiTable
        In px of the image.
    scores : Scores
    errors : dict of str to int
        See `qpnuclei.evaluation.agreement.Agreement.counts`.
    """

    image: AnnotatedImage
    mpp: float
    nuclei: NucleiTable
    scores: Scores
    errors: dict[str, int]


@dataclass(eq=False)
class Evaluation:
    """A method's results on a data set.

    Parameters
    ----------
    name : str
        Name of the method.
    images : list of ScoredImage
    """

    name: str
    images: list[ScoredImage] = field(default_factory=list)

    @property
    def mean(self) -> dict[str, float]:
        """Mean of every score, with equal weights of images; see `mean_scores`."""
        return dict(mean_scores(result.scores for result in self.images))

    @property
    def interval(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap interval of every mean."""
        return {name: bootstrap_interval(self.values(name)) for name in SCORES}

    @property
    def pooled_count_error(self) -> float:
        """Count error of all images together, as for the total of a slide; NaN without nuclei.

        In the mean over images, an image with few nuclei has the same weight as one with hundreds.
        """
        true = sum(result.scores.true_count for result in self.images)
        predicted = sum(result.scores.predicted_count for result in self.images)
        return (predicted - true) / true if true else float("nan")

    @property
    def errors(self) -> dict[str, int]:
        """Number of nuclei by kind of match, over all images."""
        return {
            kind: sum(result.errors[kind] for result in self.images)
            for kind in self.images[0].errors
        }

    def values(self, name: str) -> npt.NDArray[np.float64]:
        """Return one score of every image."""
        return np.array([asdict(result.scores)[name] for result in self.images], np.float64)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Differences between two methods on the same images: the first minus the second."""

    first: Evaluation
    second: Evaluation

    @property
    def mean(self) -> dict[str, float]:
        """Mean difference of every score, over the images where both methods have it."""
        return {name: mean_of_known(self._differences(name)) for name in SCORES}

    @property
    def interval(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap interval of every mean difference; images are resampled, not scores."""
        return {name: bootstrap_interval(self._differences(name)) for name in SCORES}

    def _differences(self, name: str) -> npt.NDArray[np.float64]:
        return self.first.values(name) - self.second.values(name)


def image_mpp(image: AnnotatedImage, override: float | None) -> float:
    """Return an image's µm/px: the user's, otherwise the data set's, otherwise the file's.

    Raises
    ------
    qpnuclei.errors.MppError
        If there is none, it is implausible, or pixels are not square.
    """
    if override is not None or image.mpp is not None:
        stated = override if override is not None else image.mpp
        (mpp, _), _ = resolve_mpp(stated, None, None, str(image.image_path))
        return mpp
    with open_slide(image.image_path) as slide:
        (x, y), _ = resolve_mpp(None, None, slide.mpp, str(image.image_path))
    if not math.isclose(x, y, rel_tol=0.01):
        raise MppError(
            f"{image.image_path} has pixels of {x:.4g} x {y:.4g} µm, which are not square",
            "give one --mpp for both, or resample the image and its labels",
        )
    return x


def score_images(
    name: str,
    find: Finder,
    images: Sequence[AnnotatedImage],
    mpp: float | None = None,
    on_image: Callable[[ScoredImage], None] = lambda result: None,
) -> Evaluation:
    """Find the nuclei of every image and score them in the image's own pixels.

    Parameters
    ----------
    name : str
        Name of the method in the report.
    find : callable
        For example `qpnuclei.pipeline.image.segment` with an engine, which resamples, tiles and
        segments as ``qpnuclei run`` does, except at the border of an image of a data set.
    images : sequence of AnnotatedImage
    mpp : float, optional
        µm/px of all images; overrides data set and files.
    on_image : callable
        Called with each result.

    Raises
    ------
    qpnuclei.errors.SlideError, qpnuclei.errors.FormatError
        If an image or its annotation cannot be read.
    qpnuclei.errors.MppError
        As `image_mpp`.
    """
    evaluation = Evaluation(name)
    for image in images:
        true_mpp = image_mpp(image, mpp)
        rgb, true = image.read()
        nuclei = image.counted(find(rgb, true_mpp))
        predicted = label_map(nuclei.polygons(), true.shape)
        result = ScoredImage(
            image, true_mpp, nuclei, score(true, predicted), classify(true, predicted).counts()
        )
        evaluation.images.append(result)
        on_image(result)
    return evaluation
