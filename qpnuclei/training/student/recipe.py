"""The recipe of a student: every choice of its training, validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from qpnuclei.errors import UsageError
from qpnuclei.models.metadata import Decoder, ModelMpp, ModelName
from qpnuclei.models.student_layout import student_layout
from qpnuclei.system.checked import as_json
from qpnuclei.training.config import (
    MOST_CHANNELS,
    GradientNorm,
    LearningRate,
    LossWeight,
    validated,
)
from qpnuclei.training.tile_index import MAX_ENLARGEMENT

#: Fields that are arguments of `StudentNet`, with the same defaults.
ARCHITECTURE = (
    "base_channels",
    "levels",
    "max_channels",
    "stem_stride",
    "encoder_convolutions",
    "decoder",
    "subpixel",
)

#: Fields for pseudo-labels, which a student with a teacher does not use.
_OF_SELF_TRAINING = {
    "labellers",
    "vote_share",
    "min_solidity",
    "min_area_um2",
    "max_area_um2",
    "min_probability",
    "max_hole_um2",
    "max_background",
}


#: A square millimetre; in px of the finest resolution of a model it is still an integer of OpenCV.
_LARGEST_UM2 = 1e6


class StudentRecipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train a student. Sizes in px are at `mpp`, and were chosen at 0.25 µm/px."""

    family: Literal["student"] = "student"
    #: Name of the recipe, and of the model it makes.
    name: ModelName
    origin: Literal["ours"] = "ours"
    description: str = ""
    #: Of the images, as the model's metadata record it, beside those of the models it learns from;
    #: if empty, the metadata say that it is not stated.
    data_licence: str = ""

    #: Resolution of the model in µm/px.
    mpp: ModelMpp = 0.25
    #: Side of the patches it learns from, at the resolution of the teacher if it has one.
    patch_px: Annotated[int, Meta(ge=256)] = 1024
    #: Sample of a whole slide.
    patches_per_slide: Annotated[int, Meta(ge=1)] = 8
    #: Of all slides together; each takes about 30 MB of memory.
    max_patches: Annotated[int, Meta(ge=1)] = 96
    #: Patches with less tissue are not taken.
    min_tissue: Annotated[float, Meta(ge=0, le=1)] = 0.7
    #: Images coarser than so many `mpp` are refused.
    max_enlargement: Annotated[float, Meta(ge=1, le=100)] = MAX_ENLARGEMENT

    #: Channels of the finest level.
    base_channels: Annotated[int, Meta(ge=4, le=MOST_CHANNELS)] = 24
    #: Resolutions of the U-Net.
    levels: Annotated[int, Meta(ge=2, le=8)] = 4
    #: Of any level.
    max_channels: Annotated[int, Meta(ge=4, le=MOST_CHANNELS)] = 96
    #: The finest level has 1/2 or 1/4 of `mpp`.
    stem_stride: Literal[2, 4] = 2
    #: Of each level of the encoder, finest first; two each.
    encoder_convolutions: tuple[int, ...] | None = None
    #: Adding costs less than half of it.
    decoder: Decoder = "concatenating"
    #: Cells predict their own pixels; with stem_stride 4 they always do.
    subpixel: bool = False

    #: Name or file of the model that teaches it (distillation), at `mpp` or finer; without a
    #: teacher it learns from its own votes and rounds.
    teacher: str | None = None
    #: Flips and rotations over which the teacher's maps are averaged.
    teacher_views: Literal[1, 8] = 8

    #: Name or file of a student to start from, with the same architecture or one that this one can
    #: inherit from (qpnuclei.training.student.inheritance); without it, random weights.
    start: str | None = None

    #: After each round, weights move back towards the start by this share of the way: so less is
    #: forgotten.
    start_share: Annotated[float, Meta(ge=0, lt=1)] = 0.0

    #: Names or files of students, at `mpp`, whose mean prediction gives the labels of the first
    #: round; without them, those are from the start, or from a vote of haematoxylin masks.
    labellers: tuple[str, ...] = ()

    #: Labels are the mean of what their model predicts for the image at these sizes.
    label_scales: Annotated[
        tuple[Annotated[float, Meta(ge=0.25, le=4)], ...], Meta(min_length=1)
    ] = (1.0,)

    #: Of the crops, from boxes in which nuclei were drawn, if any.
    corrections_share: Annotated[float, Meta(gt=0, lt=1)] = 0.5

    #: More brought nothing on MoNuSeg.
    rounds: Annotated[int, Meta(ge=1)] = 4
    first_round_batches: Annotated[int, Meta(ge=1)] = 600
    #: Of the later rounds.
    batches_per_round: Annotated[int, Meta(ge=1)] = 800
    batch_size: Annotated[int, Meta(ge=2)] = 8
    #: Side of the crops, a multiple of the stride.
    crop_px: Annotated[int, Meta(ge=64)] = 192
    #: Of the first round.
    learning_rate: LearningRate = 2e-3
    #: Of the later rounds, which continue from the first.
    later_learning_rate: LearningRate = 1.5e-3
    weight_decay: LossWeight = 1e-4
    gradient_clip: GradientNorm = 5.0
    #: The student kept is this average.
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.998
    centre_loss_weight: LossWeight = 4.0
    dice_loss_weight: LossWeight = 0.5

    #: Share of the crops in the colours of a far-off laboratory.
    strong_colours: Annotated[float, Meta(ge=0, le=1)] = 0.6
    #: Share of the crops in the colours of another training image.
    borrowed_colours: Annotated[float, Meta(ge=0, le=1)] = 0.15

    #: Of the haematoxylin vote in the later rounds.
    vote_share: Annotated[float, Meta(ge=0, le=1)] = 0.15
    #: Of a nucleus that is trusted.
    min_solidity: Annotated[float, Meta(ge=0, le=1)] = 0.9
    #: Of a nucleus that is trusted.
    min_area_um2: Annotated[float, Meta(ge=0, le=_LARGEST_UM2)] = 7.5
    #: Of a nucleus that is trusted.
    max_area_um2: Annotated[float, Meta(gt=0, le=_LARGEST_UM2)] = 310.0
    #: Mean over a nucleus that is trusted, in the later rounds.
    min_probability: Annotated[float, Meta(ge=0, le=1)] = 0.7
    #: Holes in what may be a nucleus are filled up to this area.
    max_hole_um2: Annotated[float, Meta(ge=0, le=_LARGEST_UM2)] = 12.5
    #: Background is trusted where nuclei are less probable.
    max_background: Annotated[float, Meta(ge=0, le=1)] = 0.3
    #: Repainted versions of each patch, beside the original.
    renditions: Annotated[int, Meta(ge=0)] = 3
    #: Nuclei pasted into each of these (150 in 1000x1000 px).
    pastes_per_mm2: Annotated[float, Meta(ge=0, le=1e6)] = 2400.0
    #: Of pixels between nuclei that touch, elsewhere it is 1. Weights are stored in 8 bits, which
    #: express ratios of up to 25 within 5 %.
    seam_weight: Annotated[float, Meta(ge=1, le=25)] = 3.0
    #: Of the nuclei in them.
    repainted_share: Annotated[float, Meta(ge=0, le=1)] = 0.6

    def __post_init__(self) -> None:
        stride = student_layout(**self.architecture).geometry.stride
        if self.crop_px % stride:
            raise ValueError(f"crop_px {self.crop_px} must be a multiple of {stride}")
        if self.start_share and self.start is None:
            raise ValueError("start_share has no effect without a start")
        voted = self.teacher is None and self.start is None and not self.labellers
        if self.label_scales != (1.0,) and voted and self.rounds == 1:
            raise ValueError("label_scales has no effect on the only round: a vote labels it")

    @property
    def batches_of_rounds(self) -> list[int]:
        """Number of batches of each round."""
        return [self.first_round_batches] + [self.batches_per_round] * (self.rounds - 1)

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of `StudentNet`."""
        # Older models lack subpixel: leave out its default, so that they stay comparable.
        names = [name for name in ARCHITECTURE if self.subpixel or name != "subpixel"]
        fields = as_json(self)
        return {name: fields[name] for name in names}


def student_recipe(fields: Mapping[str, Any]) -> StudentRecipe:
    """Validate the fields of a recipe of the student family.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming the first field that is unknown, out of range, or has no effect.
    """
    recipe = validated(StudentRecipe, fields)
    if recipe.stem_stride == 4 and "subpixel" in fields and not recipe.subpixel:
        raise UsageError("recipe: subpixel must be true with a stem_stride of 4")
    if recipe.teacher is not None and (unused := fields.keys() & _OF_SELF_TRAINING):
        raise UsageError(f"recipe: {', '.join(sorted(unused))}: has no effect with a teacher")
    return recipe
