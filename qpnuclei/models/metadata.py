"""What a model file says about itself: everything needed to run it and to repeat it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: Raised whenever a model file of an older program could no longer be understood.
FORMAT_VERSION = 1

#: How a `qpnuclei.models.student.StudentNet` joins its levels.
Decoder = Literal["concatenating", "adding"]

#: Mean and standard deviation of ImageNet's RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PostProcessing(_Frozen):
    """Parameters from attention to instances (section 3.4), in px of the model's resolution."""

    threshold: float = Field(0.5, gt=0, lt=1, description="attention above it is foreground")
    coarse_radius_px: int = Field(2, ge=0, description="disk of the first opening and closing")
    fine_radius_px: int = Field(1, ge=0, description="disk of the second opening and closing")
    smoothing_sigma_px: float = Field(1.0, ge=0, description="Gaussian on the distance transform")
    maxima_radius_px: int = Field(7, ge=1, description="disk in which a seed is the maximum")
    min_prominence_px: float = Field(
        0.0, ge=0, description="a seed rises this much above the saddle to a higher one"
    )
    centre_weight: float = Field(
        0.5, ge=0, le=1, description="share of the centre map in the seeds, where a model has one"
    )
    min_area_px: int = Field(0, ge=0, description="smaller instances are dropped")
    min_mean_attention: float = Field(0.0, ge=0, le=1, description="fainter instances are dropped")


class ColourNormalisation(_Frozen):
    """How a slide's colours are brought to those the model was trained on, once per slide."""

    method: Literal["none", "reinhard"] = "none"
    target_mean: tuple[float, float, float] | None = Field(
        None, description="CIELAB mean of the target"
    )
    target_std: tuple[float, float, float] | None = Field(
        None, description="CIELAB standard deviation of the target"
    )


class ModelMetadata(_Frozen):
    """Everything beside the weights.

    The network sees RGB in 0..1 minus `input_mean`, over `input_std`, after colour normalisation.
    """

    format_version: int = FORMAT_VERSION
    name: str = Field(description="short name, e.g. 'default'")
    family: Literal["attention", "student"]
    architecture: dict[str, Any] = Field(description="keyword arguments that rebuild the network")
    mpp: float = Field(gt=0.05, lt=2.5, description="µm/px of its input")
    tau: float | None = Field(None, description="sigmoid offset of the attention (equation 1)")
    sigmoid_gain: float = Field(20.0, description="r of the compressed sigmoid")
    input_mean: tuple[float, float, float] = IMAGENET_MEAN
    input_std: tuple[float, float, float] = IMAGENET_STD
    colour: ColourNormalisation = ColourNormalisation()
    post_processing: PostProcessing = PostProcessing()
    recipe: dict[str, Any] = Field(default_factory=dict, description="the training's configuration")
    data: dict[str, Any] = Field(default_factory=dict, description="its training data, licence")
    validation: dict[str, Any] = Field(default_factory=dict, description="measured quality")
    versions: dict[str, str] = Field(default_factory=dict, description="git state and libraries")
