"""Examples for a student without a teacher: first from the stain, then from its own predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qpnuclei.models.metadata import PostProcessing
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import Stains, separate
from qpnuclei.training.student.batches import TrainingExample, make_examples
from qpnuclei.training.student.labellers import Labeller
from qpnuclei.training.student.patches import SlideSample
from qpnuclei.training.student.pseudo_labels import (
    PseudoLabels,
    blur,
    fill_holes,
    haematoxylin_votes,
    snap_to_edges,
    trusted_labels,
)
from qpnuclei.training.student.recipe import StudentRecipe

FloatMap = npt.NDArray[np.float32]

#: From a vote of haematoxylin masks to candidate nuclei. Here and below, the seeds are smoother and
#: fewer than in the paper: the model would learn a split-off half of a nucleus as a nucleus.
VOTE_INSTANCES = PostProcessing(smoothing_sigma_px=2.0, maxima_radius_px=9, min_area_px=60)

#: From a student's maps to candidate nuclei; also for a model without validation images.
STUDENT_INSTANCES = PostProcessing(
    maxima_radius_px=6, min_prominence_px=1.0, centre_weight=0.65, min_area_px=80
)

#: Scale in µm/px of the sizes in px of both.
INSTANCES_MPP = 0.25


def instances_at(parameters: PostProcessing, mpp: float) -> PostProcessing:
    """Return `VOTE_INSTANCES` or `STUDENT_INSTANCES` for a model of `mpp` µm/px.

    Parameters
    ----------
    parameters : PostProcessing
        In px of `INSTANCES_MPP` µm/px.
    mpp : float
    """
    return parameters.at_resolution(INSTANCES_MPP, mpp)


class ExampleSource(Protocol):
    """The source of the examples of a round."""

    def known(self, labeller: Labeller | None) -> Iterator[PseudoLabels]:
        """Yield the pseudo-labels of each patch.

        `labeller` is usually the student of the previous round; None without one.
        """

    def examples(
        self, known: Sequence[PseudoLabels], rng: np.random.Generator
    ) -> Iterator[TrainingExample]:
        """Make examples from pseudo-labels, with random changes that differ between rounds."""


@dataclass(eq=False)
class SelfTraining:
    """Examples from a vote of haematoxylin masks, then from the student of the previous round.

    Parameters
    ----------
    recipe : StudentRecipe
    samples : sequence of SlideSample
    """

    recipe: StudentRecipe
    samples: Sequence[SlideSample]

    @cached_property
    def _votes(self) -> list[FloatMap]:
        return [
            vote
            for sample in self.samples
            for vote in haematoxylin_votes(sample.patches, sample.stains)
        ]

    def known(self, labeller: Labeller | None) -> Iterator[PseudoLabels]:
        """Yield the pseudo-labels of each patch; without `labeller`, from the vote alone."""
        patches = ((sample, patch) for sample in self.samples for patch in sample.patches)
        for (sample, patch), vote in zip(patches, self._votes, strict=True):
            if labeller is None:
                yield labels_from_vote(patch, vote, sample.stains, self.recipe)
            else:
                yield labels_from_model(labeller, patch, vote, self.recipe)

    def examples(
        self, known: Sequence[PseudoLabels], rng: np.random.Generator
    ) -> Iterator[TrainingExample]:
        """Return the patches and their renditions."""
        patches = ((sample, patch) for sample in self.samples for patch in sample.patches)
        for (sample, patch), labels in zip(patches, known, strict=True):
            yield from make_examples(patch, labels, sample.mpp, self.recipe, rng)


def labels_from_vote(
    rgb: RGB, vote: FloatMap, stains: Stains, recipe: StudentRecipe
) -> PseudoLabels:
    """Return the pseudo-labels of one patch from the haematoxylin vote.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    vote : (H, W) float32 ndarray
        See `haematoxylin_votes`.
    stains : Stains
        Of the slide.
    recipe : StudentRecipe
    """
    parameters = instances_at(VOTE_INSTANCES, recipe.mpp)
    candidates = segment_instances(_filled(vote, parameters, recipe), parameters)
    haematoxylin = np.ascontiguousarray(separate(rgb, stains)[..., 0])
    snapped = snap_to_edges(candidates, blur(haematoxylin, 1.0))
    # Outlines have moved: separated parts are two candidates now, touching ones are split again.
    foreground = _filled((snapped > 0).astype(np.float32), parameters, recipe)
    candidates = segment_instances(foreground, parameters)
    return _trusted(candidates, vote, recipe, min_probability=0.0)


def labels_from_model(
    labeller: Labeller, rgb: RGB, vote: FloatMap, recipe: StudentRecipe
) -> PseudoLabels:
    """Return the pseudo-labels of one patch from a trained model.

    Parameters
    ----------
    labeller : Labeller
        Such as the student of the previous round.
    rgb : (H, W, 3) uint8 ndarray
    vote : (H, W) float32 ndarray
        See `haematoxylin_votes`; mixed in, so that no round forgets where the stain is.
    recipe : StudentRecipe
    """
    attention, centre = labeller.predict_image(rgb)
    probability = (1 - recipe.vote_share) * attention + recipe.vote_share * vote
    parameters = instances_at(STUDENT_INSTANCES, recipe.mpp)
    filled = _filled(probability, parameters, recipe)
    candidates = segment_instances(filled, parameters, centre)
    return _trusted(candidates, probability, recipe, min_probability=recipe.min_probability)


def _filled(probability: FloatMap, parameters: PostProcessing, recipe: StudentRecipe) -> FloatMap:
    max_area_px = round(recipe.max_hole_um2 / recipe.mpp**2)
    return fill_holes(probability, parameters.threshold, max_area_px)


def _trusted(
    candidates: npt.NDArray[np.int32],
    probability: FloatMap,
    recipe: StudentRecipe,
    min_probability: float,
) -> PseudoLabels:
    return trusted_labels(
        candidates,
        probability,
        min_solidity=recipe.min_solidity,
        min_area_px=round(recipe.min_area_um2 / recipe.mpp**2),
        max_area_px=round(recipe.max_area_um2 / recipe.mpp**2),
        min_probability=min_probability,
        max_background=recipe.max_background,
    )
