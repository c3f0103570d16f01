"""Metadata of a model file: everything needed to run the model and to train it again.

The metadata are JSON in the header of the file. Planning a run needs only them, and reads them
without torch and without the weights.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import safetensors
from msgspec import Meta, Struct
from msgspec.structs import replace

from qpnuclei.choices import MAX_MPP, MIN_MPP
from qpnuclei.errors import ModelError, NotFoundError
from qpnuclei.models.geometry import NetworkGeometry, geometry_of
from qpnuclei.system.checked import FieldError, checked
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
Mean = Annotated[float, Meta(ge=-1000, le=1000)]
LEAST_DEVIATION = 1e-3
Deviation = Annotated[float, Meta(ge=LEAST_DEVIATION, le=1000)]

#: Resolution of a model in µm/px.
ModelMpp = Annotated[float, Meta(gt=MIN_MPP, lt=MAX_MPP)]

#: Short name of a model, such as ``default-40x``.
ModelName = Annotated[str, Meta(min_length=1, max_length=200)]

#: r of the compressed sigmoid (equation 1).
SigmoidGain = Annotated[float, Meta(gt=0, le=1e6)]

#: Limits of an architecture; larger values mean a broken file.
MOST_PARTS, LARGEST_PART = 64, 4096
#: Characters of a wrong value that a message shows.
_LONGEST_REPR = 200


# A model file is untrusted input: every number has limits that are plausible for nuclei, so that
# infinite ones and NaN are refused, too.


class PostProcessing(Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of the post-processing (section 3.4), in px of the resolution of the model.

    At 0.05 µm/px, the finest resolution of a model, a large nucleus (25 µm) is 500 px wide.
    """

    #: Attention above it is foreground.
    threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    #: Disk of the first opening and closing.
    coarse_radius_px: Annotated[int, Meta(ge=0, le=100)] = 2
    #: Disk of the second opening and closing.
    fine_radius_px: Annotated[int, Meta(ge=0, le=100)] = 1
    #: Gaussian on the distance transform.
    smoothing_sigma_px: Annotated[float, Meta(ge=0, le=100)] = 1.0
    #: Disk in which a seed is the maximum.
    maxima_radius_px: Annotated[int, Meta(ge=1, le=200)] = 7
    #: Least height of a seed above the saddle to a higher one.
    min_prominence_px: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    #: Share of the centre map in the seeds, if the model has one.
    centre_weight: Annotated[float, Meta(ge=0, le=1)] = 0.5
    #: Smaller instances are dropped.
    min_area_px: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    #: Fainter instances are dropped.
    min_mean_attention: Annotated[float, Meta(ge=0, le=1)] = 0.0

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
        return replace(
            self,
            **{name: math.ceil(getattr(self, name) * ratio) for name in disks},
            **{name: getattr(self, name) * ratio for name in lengths},
            min_area_px=round(self.min_area_px * ratio**2),
        )


class ColourNormalisation(Struct, frozen=True, forbid_unknown_fields=True):
    """Colour normalisation of a slide to the training images, estimated once per slide."""

    method: Literal["none", "reinhard"] = "none"
    #: CIELAB mean and standard deviation of the target.
    target_mean: tuple[Mean, Mean, Mean] | None = None
    target_std: tuple[Deviation, Deviation, Deviation] | None = None

    def __post_init__(self) -> None:
        if self.method == "reinhard" and (self.target_mean is None or self.target_std is None):
            raise ValueError("method 'reinhard' needs target_mean and target_std")


#: Entry ``labels`` of `ModelMetadata.data` of a model that learned without labels.
NO_LABELS = "none"
#: Entry ``labels`` or ``licence``, or a part of it, where a model learned from one whose metadata
#: lack it, or from own images whose licence nobody gave.
NOT_STATED = "not stated"


class ModelMetadata(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All data of a model file except the weights.

    The input of the network is ``(rgb - input_mean) / input_std``, for RGB in 0..1 after colour
    normalisation.
    """

    format_version: int = FORMAT_VERSION
    name: ModelName
    family: Literal["attention", "student"]
    #: Keyword arguments that rebuild the network.
    architecture: dict[str, Any]
    #: µm/px of the input.
    mpp: ModelMpp
    #: Receptive field and stride; older files lack them: see `network_geometry`.
    geometry: NetworkGeometry | None = None
    #: Sigmoid offset of the attention (equation 1).
    tau: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    sigmoid_gain: SigmoidGain = 20.0
    #: Flips and right-angle rotations of the image over which the maps are averaged.
    views: Literal[1, 8] = 1
    input_mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    input_std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD
    colour: ColourNormalisation = ColourNormalisation()
    post_processing: PostProcessing = PostProcessing()
    #: Training configuration.
    recipe: dict[str, Any] = {}
    #: Training data and their licence.
    data: dict[str, Any] = {}
    #: Measured quality.
    validation: dict[str, Any] = {}
    #: Git state and versions of libraries.
    versions: dict[str, str] = {}

    def __post_init__(self) -> None:
        for key, value in self.architecture.items():
            parts = value if isinstance(value, list | tuple) else [value]
            if len(parts) > MOST_PARTS or any(
                isinstance(part, int | float) and not abs(part) <= LARGEST_PART for part in parts
            ):
                raise ValueError(f"architecture: {key} is too large for a network")

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
        return checked(fields, ModelMetadata)
    except FieldError as error:
        raise ModelError(f"model file {path}: its metadata: {error}", RETRAIN) from error


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


def shortened(value: object) -> str:
    """Return the repr of a value, truncated if long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}…"
