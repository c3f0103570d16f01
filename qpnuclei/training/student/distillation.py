"""Distillation: a student learns what a trained model, its teacher, finds.

The teacher predicts on the original patches; the student has to predict the same in random colours,
sharpness and scale. It learns the teacher's probabilities rather than its nuclei, because they also
say where the teacher is unsure [1]_. Only where a nucleus was pasted into a patch, which the
teacher has not seen, the student learns that nucleus instead.

A teacher may work at a finer resolution than its student: patches and targets are made at the
teacher's resolution and then reduced together.

References
----------
.. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS
   workshop on deep learning, 2014.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from qpnuclei.errors import UsageError
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.scaling import scaled
from qpnuclei.training.student.batches import TrainingExample, make_examples
from qpnuclei.training.student.fit import has_bfloat16
from qpnuclei.training.student.labellers import AtSeveralScales, Labeller
from qpnuclei.training.student.patches import SlideSample
from qpnuclei.training.student.pseudo_labels import PseudoLabels
from qpnuclei.training.student.recipe import StudentRecipe


class Distillation:
    """Examples from a teacher, the same teacher in every round.

    Parameters
    ----------
    recipe : StudentRecipe
        Names the teacher.
    samples : sequence of SlideSample
        At the teacher's resolution.
    device : torch.device
        Where the teacher runs; on a CPU that has it, in bfloat16.

    Raises
    ------
    qpnuclei.errors.UsageError
        If the teacher has no centre map, or a coarser resolution than the recipe.
    qpnuclei.errors.NotFoundError, qpnuclei.errors.ModelError
        If there is no such teacher, or it cannot be loaded.
    """

    def __init__(
        self, recipe: StudentRecipe, samples: Sequence[SlideSample], device: torch.device
    ) -> None:
        assert recipe.teacher is not None
        teacher = Predictor.load(
            recipe.teacher,
            str(device),
            recipe.teacher_views,
            "bfloat16" if has_bfloat16(device) else "auto",
        )
        name = teacher.metadata.name
        if teacher.metadata.family != "student":
            raise UsageError(
                f"teacher {name!r} is of the family {teacher.metadata.family!r}: it has no centre "
                "map to teach",
                "take a model that train --config student made",
            )
        if teacher.mpp > recipe.mpp:
            raise UsageError(
                f"teacher {name!r} works at {teacher.mpp} µm/px, coarser than the recipe's mpp "
                f"{recipe.mpp}",
                f"leave --set mpp out, or give --set mpp={teacher.mpp}",
            )
        self._recipe = recipe
        self._ratio = recipe.mpp / teacher.mpp
        self._patches = [(patch, sample.mpp) for sample in samples for patch in sample.patches]
        self._known: list[PseudoLabels] = []
        self._maps: list[npt.NDArray[np.uint8]] = []
        self._instances = teacher.metadata.post_processing
        self._teacher = AtSeveralScales(teacher, recipe.label_scales)

    def known(self, labeller: Labeller | None) -> Iterator[PseudoLabels]:
        """Yield the nuclei that the teacher finds in each patch; `labeller` is not used."""
        del labeller
        yield from list(self._known)  # of an earlier round
        for patch, _ in self._patches[len(self._known) :]:
            attention, centre = self._teacher.predict_image(patch)
            labels = segment_instances(attention, self._instances, centre)
            self._known.append(PseudoLabels(labels, np.ones(labels.shape, np.float32)))
            self._maps.append(_eight_bits(attention, centre))
            yield self._known[-1]

    def examples(
        self, known: Sequence[PseudoLabels], rng: np.random.Generator
    ) -> Iterator[TrainingExample]:
        """Return the patches and their renditions, with the teacher's maps."""
        for (patch, mpp), labels, maps in zip(self._patches, known, self._maps, strict=True):
            original, *renditions = make_examples(patch, labels, mpp, self._recipe, rng)
            for example in (original, *renditions):
                yield reduced(soften(example, original, maps), self._ratio)


def soften(
    example: TrainingExample, original: TrainingExample, maps: npt.NDArray[np.uint8]
) -> TrainingExample:
    """Return a rendition's example with the teacher's maps where nothing was pasted.

    Parameters
    ----------
    example : TrainingExample
        Targets from the teacher's nuclei and the pasted ones.
    original : TrainingExample
        The same for the original patch.
    maps : (H, W, 2) uint8 ndarray
        The teacher's foreground and centre map of the patch, each 0..1 times 255.
    """
    as_it_was = (example.targets[..., :2] == original.targets[..., :2]).all(axis=-1)
    targets = example.targets.copy()
    targets[as_it_was, :2] = maps[as_it_was]
    return replace(example, targets=targets)


def reduced(example: TrainingExample, ratio: float) -> TrainingExample:
    """Return an example at a coarser resolution: pixels and targets are averaged.

    Parameters
    ----------
    example : TrainingExample
        Of (H, W) px.
    ratio : float
        Ratio of the µm/px after and before, at least 1.

    Returns
    -------
    TrainingExample
        Of (H / ratio, W / ratio) px, each rounded, at least 1.
    """
    rgb, targets = (scaled(image, 1 / ratio) for image in (example.rgb, example.targets))
    return replace(example, rgb=rgb, targets=targets)


def _eight_bits(*maps: npt.NDArray[np.float32] | None) -> npt.NDArray[np.uint8]:
    known = [m for m in maps if m is not None]
    return np.rint(255 * np.stack(known, axis=-1)).astype(np.uint8)
