"""The sidecar of a third-party model: its pixel size, its input, and its output.

A sidecar is a JSON file beside the model, with the same name: ``nuclei.onnx`` has ``nuclei.json``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from qpnuclei.errors import ModelError, NotFoundError, UsageError
from qpnuclei.models.metadata import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Deviation,
    Mean,
    ModelMpp,
    PostProcessing,
    model_hash,
)
from qpnuclei.segmentation.engine import EngineOptions, EngineSpec
from qpnuclei.segmentation.postprocess import interaction_radius_px
from qpnuclei.system.checked import FieldError, as_json, checked
from qpnuclei.system.files import read_regular
from qpnuclei.system.json_text import parse_json

#: The measurement that says how sure a third-party model is of a nucleus.
PROBABILITY = "Probability: Mean"

#: A sidecar of more bytes is an error.
_MOST_BYTES = 1 << 20


class Normalisation(Struct, frozen=True, forbid_unknown_fields=True):
    """The network's input: ``(rgb / scale - mean) / std``, channel by channel."""

    #: Divisor of the 8-bit values.
    scale: Annotated[float, Meta(gt=0, le=1e6)] = 255.0
    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Deviation, Deviation, Deviation] = IMAGENET_STD


class StarDistOutput(Struct, frozen=True, forbid_unknown_fields=True):
    """How the probability and the radial distances of a StarDist network become polygons."""

    #: Candidates have a higher probability.
    probability: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    #: A candidate is dropped if a better one covers more of it.
    overlap: Annotated[float, Meta(ge=0, le=1)] = 0.3
    #: px of the input per px of the output. Tiles begin at multiples of it, too.
    grid: Annotated[int, Meta(ge=1, le=16)] = 1


class Sidecar(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a sidecar.

    ``output`` says what the network predicts:

    * ``maps``: (1, C, H, W). Channel 0 is the probability of nucleus in 0..1. Channel 1, if there
      is one, rises from 0 at the border of a nucleus to 1 at its centre. `post_processing` splits
      the maps into nuclei.
    * ``labels``: (1, 1, H, W) or (1, H, W), a number for every nucleus, 0 for background.
    * ``stardist``: two outputs, probability (1, 1, h, w) and distances (1, R, h, w). Distances are
      in px of the input, along R rays that turn from the x axis downwards to the y axis.
    * ``instanseg``: as ``labels``; the first of several channels holds the nuclei.

    With ``channels: last``, input and output have their channels last, as in TensorFlow.
    """

    #: Name of the model; by default that of its file.
    name: str = ""
    #: µm/px of the input.
    mpp: ModelMpp
    output: Literal["maps", "labels", "stardist", "instanseg"]
    channels: Literal["first", "last"] = "first"
    normalisation: Normalisation = Normalisation()
    #: Receptive radius, in px of the input.
    context_px: Annotated[int, Meta(ge=0, le=1024)]
    #: Height and width of the input must be multiples of it.
    stride: Annotated[int, Meta(ge=1, le=256)] = 1
    post_processing: PostProcessing = PostProcessing()
    stardist: StarDistOutput = StarDistOutput()

    @property
    def scored(self) -> bool:
        """Whether the output has a probability."""
        return self.output in ("maps", "stardist")


def read_sidecar(model: Path) -> Sidecar:
    """Read the sidecar of a model file.

    Raises
    ------
    NotFoundError
        If the model or its sidecar does not exist.
    ModelError
        If the sidecar is not valid.
    """
    if not model.is_file():
        raise NotFoundError(f"no model file at {model}")
    path = model.with_suffix(".json")
    if not path.is_file():
        raise NotFoundError(
            f"{model} has no sidecar {path.name}",
            "it states the µm/px, the input and the output of the model: see docs/engines.md",
        )
    if path.stat().st_size > _MOST_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size} bytes: that is too large for a sidecar")
    try:
        content = parse_json(read_regular(path).decode())
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", "see docs/engines.md") from error
    try:
        return checked(content, Sidecar)
    except FieldError as error:
        raise ModelError(f"{path}: {error}", "see docs/engines.md") from error


def spec_of(model: Path, sidecar: Sidecar | None = None) -> EngineSpec:
    """Return the spec of a third-party model; see `read_sidecar` for the errors.

    The sidecar is read unless given.
    """
    sidecar = sidecar or read_sidecar(model)
    interaction = interaction_radius_px(sidecar.post_processing) if sidecar.output == "maps" else 0
    stride = sidecar.stride
    if sidecar.output == "stardist":  # a pixel of the output must lie on the corner of each tile
        stride = math.lcm(stride, sidecar.stardist.grid)
    return EngineSpec(
        name=sidecar.name or model.stem,
        sha256=model_hash(model),
        mpp=sidecar.mpp,
        context_px=sidecar.context_px,
        stride=stride,
        interaction_px=interaction,
        columns=(PROBABILITY,) if sidecar.scored else (),
        details={"sidecar": as_json(sidecar)},
    )


def with_options(sidecar: Sidecar, engine: str, options: EngineOptions) -> Sidecar:
    """Return a sidecar with the threshold that the options ask for.

    Raises
    ------
    UsageError
        If only our own models support the options, or if they have a threshold but the model
        predicts labels and no probability.
    """
    refuse_options(engine, options)
    if options.threshold is None:
        return sidecar
    if sidecar.output == "maps":
        parameters = replace(sidecar.post_processing, threshold=options.threshold)
        return replace(sidecar, post_processing=parameters)
    if sidecar.output == "stardist":
        stardist = replace(sidecar.stardist, probability=options.threshold)
        return replace(sidecar, stardist=stardist)
    raise UsageError(
        f"--threshold: a model with the output {sidecar.output!r} predicts no probability",
        "leave the option out",
    )


def refuse_options(engine: str, options: EngineOptions) -> None:
    """Reject options that only our own models support.

    Raises
    ------
    UsageError
        If the options ask for several views or a precision.
    """
    if options.views not in (None, 1):
        raise UsageError(f"--tta: the {engine} engine does not average over flips and rotations")
    if options.precision not in ("auto", "float32"):
        raise UsageError(
            f"--precision {options.precision}: a model of the {engine} engine computes in the "
            "precision it was exported with"
        )
