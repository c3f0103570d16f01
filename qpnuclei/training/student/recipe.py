"""The recipe of a student: every choice of its training, validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from qpnuclei.models.metadata import Decoder
from qpnuclei.training.config import validated
from qpnuclei.training.tile_index import MAX_ENLARGEMENT

_ARCHITECTURE = {
    "base_channels",
    "levels",
    "max_channels",
    "stem_stride",
    "encoder_convolutions",
    "decoder",
    "subpixel",
}

#: Fields for pseudo-labels, which a student with a teacher does not use.
_OF_SELF_TRAINING = {
    "vote_share",
    "min_solidity",
    "min_area_um2",
    "max_area_um2",
    "min_probability",
    "max_hole_um2",
    "max_background",
}


class StudentRecipe(BaseModel):
    """How to train a student. Sizes in px are at `mpp`, and were chosen at 0.25 µm/px."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["student"] = "student"
    name: str = Field(description="name of the recipe, and of the model it makes")
    origin: Literal["ours"] = "ours"
    description: str = ""
    data_licence: str = Field("", description="of the images, as the model's metadata record it")

    mpp: float = Field(0.25, gt=0.05, lt=2.5, description="resolution of the model in µm/px")
    patch_px: int = Field(
        1024,
        ge=256,
        description="side of the patches it learns from, at the resolution of the teacher if it "
        "has one",
    )
    patches_per_slide: int = Field(8, ge=1, description="sample of a whole slide")
    max_patches: int = Field(
        96, ge=1, description="of all slides together; each takes about 30 MB of memory"
    )
    min_tissue: float = Field(0.7, ge=0, le=1, description="patches with less tissue are not taken")
    max_enlargement: float = Field(
        MAX_ENLARGEMENT, ge=1, description="images coarser than so many `mpp` are refused"
    )

    base_channels: int = Field(24, ge=4, description="channels of the finest level")
    levels: int = Field(4, ge=2, description="resolutions of the U-Net")
    max_channels: int = Field(96, ge=4, description="of any level")
    stem_stride: Literal[2, 4] = Field(2, description="the finest level has 1/2 or 1/4 of `mpp`")
    encoder_convolutions: tuple[int, ...] | None = Field(
        None, description="of each level of the encoder, finest first; two each"
    )
    decoder: Decoder = Field("concatenating", description="adding costs less than half of it")
    subpixel: bool = Field(
        False, description="cells predict their own pixels; with stem_stride 4 they always do"
    )

    teacher: str | None = Field(
        None,
        description="name or file of the model that teaches it (distillation), at `mpp` or finer; "
        "without a teacher it learns from its own votes and rounds",
    )
    teacher_views: Literal[1, 8] = Field(
        8, description="flips and rotations over which the teacher's maps are averaged"
    )

    start: str | None = Field(
        None,
        description="name or file of a student to start from, with the same architecture or one "
        "that this one can inherit from (qpnuclei.training.student.inheritance); without it, "
        "random weights",
    )

    start_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="after each round, weights move back towards the start by this share of the "
        "way: so less is forgotten",
    )

    corrections_share: float = Field(
        0.5, gt=0, lt=1, description="of the crops, from boxes in which nuclei were drawn, if any"
    )

    rounds: int = Field(4, ge=1, description="more brought nothing on MoNuSeg")
    first_round_batches: int = Field(600, ge=1)
    batches_per_round: int = Field(800, ge=1, description="of the later rounds")
    batch_size: int = Field(8, ge=2)
    crop_px: int = Field(192, ge=64, description="side of the crops, a multiple of the stride")
    learning_rate: float = Field(2e-3, gt=0, description="of the first round")
    later_learning_rate: float = Field(
        1.5e-3, gt=0, description="of the later rounds, which continue from the first"
    )
    weight_decay: float = Field(1e-4, ge=0)
    gradient_clip: float = Field(5.0, gt=0)
    ema_decay: float = Field(0.998, ge=0, lt=1, description="the student kept is this average")
    centre_loss_weight: float = Field(4.0, ge=0)
    dice_loss_weight: float = Field(0.5, ge=0)

    strong_colours: float = Field(
        0.6, ge=0, le=1, description="share of the crops in the colours of a far-off laboratory"
    )
    borrowed_colours: float = Field(
        0.15, ge=0, le=1, description="share of the crops in the colours of another training image"
    )

    vote_share: float = Field(
        0.15, ge=0, le=1, description="of the haematoxylin vote in the later rounds"
    )
    min_solidity: float = Field(0.9, ge=0, le=1, description="of a nucleus that is trusted")
    min_area_um2: float = Field(7.5, ge=0, description="of a nucleus that is trusted")
    max_area_um2: float = Field(310.0, gt=0, description="of a nucleus that is trusted")
    min_probability: float = Field(
        0.7, ge=0, le=1, description="mean over a nucleus that is trusted, in the later rounds"
    )
    max_hole_um2: float = Field(
        12.5, ge=0, description="holes in what may be a nucleus are filled up to this area"
    )
    max_background: float = Field(
        0.3, ge=0, le=1, description="background is trusted where nuclei are less probable"
    )
    renditions: int = Field(
        3, ge=0, description="repainted versions of each patch, beside the original"
    )
    pastes_per_mm2: float = Field(
        2400.0, ge=0, description="nuclei pasted into each of these (150 in 1000x1000 px)"
    )
    seam_weight: float = Field(
        3.0, ge=1, description="of pixels between nuclei that touch, elsewhere it is 1"
    )
    repainted_share: float = Field(0.6, ge=0, le=1, description="of the nuclei in them")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        stride = self.stem_stride * 2 ** (self.levels - 1)
        if self.crop_px % stride:
            raise ValueError(f"crop_px {self.crop_px} must be a multiple of {stride}")
        if self.stem_stride == 4 and "subpixel" in self.model_fields_set and not self.subpixel:
            raise ValueError("subpixel must be true with a stem_stride of 4")
        if self.start_share and self.start is None:
            raise ValueError("start_share has no effect without a start")
        if self.teacher is not None and (unused := self.model_fields_set & _OF_SELF_TRAINING):
            raise ValueError(f"{', '.join(sorted(unused))}: has no effect with a teacher")
        return self

    @property
    def architecture(self) -> dict[str, Any]:
        """Keyword arguments of `StudentNet`."""
        given = self.model_dump(mode="json", include=_ARCHITECTURE)
        # Older models lack this field: leave out its default, so that they stay comparable.
        return given if self.subpixel else {k: v for k, v in given.items() if k != "subpixel"}


def student_recipe(fields: Mapping[str, Any]) -> StudentRecipe:
    """Validate the fields of a recipe of the student family.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming the first field that is unknown or out of range.
    """
    return validated(StudentRecipe, fields)
