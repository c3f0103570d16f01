"""From what is known of a patch to the lessons that a student learns from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.training.student.batches import Lesson
from qpnuclei.training.student.pseudo_labels import PseudoLabels
from qpnuclei.training.student.recipe import StudentRecipe
from qpnuclei.training.student.synthesis import cut_nuclei, paste_nuclei, repaint_nuclei

RGB = npt.NDArray[np.uint8]


def make_lessons(
    rgb: RGB, known: PseudoLabels, recipe: StudentRecipe, rng: np.random.Generator
) -> list[Lesson]:
    """Return a patch as it is, and its renditions with nuclei pasted and repainted."""
    lessons = [Lesson.of(rgb, known, recipe.seam_weight)]
    cuts = cut_nuclei(rgb, known.labels)
    area_mm2 = known.labels.size * (recipe.mpp / 1000) ** 2
    for _ in range(recipe.renditions):
        new_rgb, new_known = paste_nuclei(
            rgb, known, cuts, round(recipe.pastes_per_mm2 * area_mm2), rng
        )
        new_rgb = repaint_nuclei(new_rgb, new_known.labels, rng, share=recipe.repainted_share)
        lessons.append(Lesson.of(new_rgb, new_known, recipe.seam_weight))
    return lessons
