"""Metadata of a model file: everything needed to run the model and to train it again.

The metadata are JSON in the header of the file. Planning a run needs only them, and reads them
without torch and without the weights.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
import safetensors
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from qpnuclei.errors import ModelError, NotFoundError
from qpnuclei.models.geometry import NetworkGeometry, geometry_of
from qpnuclei.system.json_text import parse_json

#: The entry of the header of a safetensors file that holds the metadata.
HEADER_KEY = "qpnuclei"
RETRAIN = "use a model made by this version of qpnuclei, or train it again"

#: Increased whenever the format changes incompatibly.
FORMAT_VERSION = 1

#: How a `qpnuclei.models.student.StudentNet` joins its levels.
Decoder = Literal["concatenating", "adding"]

#: Mean and standard deviation of ImageNet's RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


#: Mean and standard deviation of a channel of RGB in 0..1, or of CIELAB.
_Mean = Annotated[FiniteFloat, Field(ge=-1000, le=1000)]
_Deviation = Annotated[FiniteFloat, Field(ge=1e-3, le=1000)]

#: Limits of an architecture; larger values mean a broken file.
_MOST_PARTS, _LARGEST_PART = 64, 4096


class _Frozen(BaseModel):
    # A model file is untrusted input: values must be finite and plausible for nuclei.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PostProcessing(_Frozen):
    """Parameters of the post-processing (section 3.4), in px of the resolution of the model.

    At 0.05 µm/px, the finest resolution of a model, a large nucleus (25 µm) is 500 px wide.
    """

    threshold: float = Field(0.5, gt=0, lt=1, description="attention above it is foreground")
    coarse_radius_px: int = Field(
        2, ge=0, le=100, description="disk of the first opening and closing"
    )
    fine_radius_px: int = Field(
        1, ge=0, le=100, description="disk of the second opening and closing"
    )
    smoothing_sigma_px: float = Field(
        1.0, ge=0, le=100, description="Gaussian on the distance transform"
    )
    maxima_radius_px: int = Field(
        7, ge=1, le=200, description="disk in which a seed is the maximum"
    )
    min_prominence_px: float = Field(
        0.0, ge=0, le=1000, description="least height of a seed above the saddle to a higher one"
    )
    centre_weight: float = Field(
        0.5, ge=0, le=1, description="share of the centre map in the seeds, if the model has one"
    )
    min_area_px: int = Field(0, ge=0, le=1_000_000, description="smaller instances are dropped")
    min_mean_attention: float = Field(0.0, ge=0, le=1, description="fainter instances are dropped")

    def at_resolution(self, mpp: float, new_mpp: float) -> Self:
        """Convert sizes in px of `mpp` to px of `new_mpp`, both in µm/px. Radii are rounded up.

        Examples
        --------
        >>> halved = PostProcessing(coarse_radius_px=1, min_area_px=80).at_resolution(0.25, 0.5)
        >>> halved.coarse_radius_px, halved.min_area_px
        (1, 20)
        """
        ratio = mpp / new_mpp
        disks = ("coarse_radius_px", "fine_radius_px", "maxima_radius_px")
        lengths = ("smoothing_sigma_px", "min_prominence_px")
        return self.model_copy(
            update={
                **{name: math.ceil(getattr(self, name) * ratio) for name in disks},
                **{name: getattr(self, name) * ratio for name in lengths},
                "min_area_px": round(self.min_area_px * ratio**2),
            }
        )


class ColourNormalisation(_Frozen):
    """Colour normalisation of a slide to the training images, estimated once per slide."""

    method: Literal["none", "reinhard"] = "none"
    target_mean: tuple[_Mean, _Mean, _Mean] | None = Field(
        None, description="CIELAB mean of the target"
    )
    target_std: tuple[_Deviation, _Deviation, _Deviation] | None = Field(
        None, description="CIELAB standard deviation of the target"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "reinhard" and (self.target_mean is None or self.target_std is None):
            raise ValueError("method 'reinhard' needs target_mean and target_std")
        return self


class ModelMetadata(_Frozen):
    """All data of a model file except the weights.

    The input of the network is ``(rgb - input_mean) / input_std``, for RGB in 0..1 after colour
    normalisation.
    """

    format_version: int = FORMAT_VERSION
    name: str = Field(min_length=1, max_length=200, description="short name, e.g. 'default'")
    family: Literal["attention", "student"]
    architecture: dict[str, Any] = Field(description="keyword arguments that rebuild the network")
    mpp: float = Field(gt=0.05, lt=2.5, description="µm/px of the input")
    geometry: NetworkGeometry | None = Field(
        None,
        description="receptive field and stride; in older files, derived from the architecture",
    )
    tau: float | None = Field(
        None, ge=-1e6, le=1e6, description="sigmoid offset of the attention (equation 1)"
    )
    sigmoid_gain: float = Field(20.0, gt=0, le=1e6, description="r of the compressed sigmoid")
    input_mean: tuple[_Mean, _Mean, _Mean] = IMAGENET_MEAN
    input_std: tuple[_Deviation, _Deviation, _Deviation] = IMAGENET_STD
    colour: ColourNormalisation = ColourNormalisation()
    post_processing: PostProcessing = PostProcessing()
    recipe: dict[str, Any] = Field(default_factory=dict, description="training configuration")
    data: dict[str, Any] = Field(default_factory=dict, description="training data and licence")
    validation: dict[str, Any] = Field(default_factory=dict, description="measured quality")
    versions: dict[str, str] = Field(default_factory=dict, description="git state and libraries")

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        for key, value in self.architecture.items():
            parts = value if isinstance(value, list | tuple) else [value]
            if len(parts) > _MOST_PARTS or any(
                isinstance(part, int | float) and not abs(part) <= _LARGEST_PART for part in parts
            ):
                raise ValueError(f"architecture: {key} is too large for a network")
        return self

    def network_geometry(self) -> NetworkGeometry:
        """Return the receptive field and stride of the network.

        Raises
        ------
        qpnuclei.errors.ModelError
            If an older file does not store the geometry, and it cannot be derived from
            `architecture`.
        """
        if self.geometry is not None:
            return self.geometry
        try:
            return geometry_of(self.family, self.architecture)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"model {self.name!r}: its receptive field cannot be derived from its architecture "
                f"{self.architecture!r}: {error}",
                RETRAIN,
            ) from error


def read_metadata(path: Path) -> ModelMetadata:
    """Read the metadata of a model file without the weights.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.ModelError
        If the file is not safetensors, has no qpnuclei metadata, or has a newer format.
    """
    if not path.is_file():
        raise NotFoundError(
            f"no model file at {path}", "give --model a name or a .safetensors file"
        )
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(
            f"model file {path} is not safetensors, or is truncated: {error}",
            "copy or download it again",
        ) from error
    if HEADER_KEY not in header:
        raise ModelError(
            f"model file {path} has no qpnuclei metadata (its header has {sorted(header)!r})",
            "give a file written by `qpnuclei train`; weights alone are not enough",
        )
    try:
        fields = parse_json(header[HEADER_KEY])
    except ValueError as error:
        raise ModelError(
            f"model file {path}: its metadata is not JSON: {error}", RETRAIN
        ) from error
    try:
        # A newer format may have unknown fields: check its version first.
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelError(
                f"model file {path} has format {version}; this qpnuclei reads up to "
                f"{FORMAT_VERSION}",
                "update qpnuclei",
            )
        return ModelMetadata.model_validate(fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"model file {path}: its metadata field {field!r} is {shortened(first['input'])}: "
            f"{first['msg']}",
            RETRAIN,
        ) from error


def model_hash(path: Path) -> str:
    """Return the SHA-256 of a model file in hexadecimal, to identify the model of a result.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    """
    if not path.is_file():
        raise NotFoundError(
            f"no model file at {path}", "give --model a name or a .safetensors file"
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shortened(value: object, most: int = 200) -> str:
    """Return the repr of a value, truncated if long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
