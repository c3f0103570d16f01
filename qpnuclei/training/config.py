"""Recipes: one validated YAML file per model of the paper, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from msgspec import Meta, Struct, structs

from qpnuclei.choices import MAX_MPP, MIN_MPP
from qpnuclei.errors import FormatError, NotFoundError, UsageError, quoted
from qpnuclei.models.geometry import attention_geometry, attention_min_size_px
from qpnuclei.models.metadata import MOST_PARTS, ModelName, SigmoidGain
from qpnuclei.system.checked import FieldError, checked

Recipe = TypeVar("Recipe", bound=Struct)

#: Architectures of the scale network G.
ScaleArchitecture: TypeAlias = Literal["resnet34", "resnet18", "efficientnet-lite0", "resnet10"]

#: The recipes that come with the package, as ``<name>.yaml``.
CONFIGS_FOLDER = Path(__file__).with_name("configs")

#: Exceptions of PyYAML. The last ones are for values that do not fit their type, such as
#: ``2024-02-30``, ``!!int a`` and ``!!bool a``.
_NOT_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError)

#: Wider networks need absurd memory.
MOST_CHANNELS = 1024

_Dilations = Annotated[
    tuple[Annotated[int, Meta(ge=1)], ...], Meta(min_length=1, max_length=MOST_PARTS)
]
# Every float has limits far beyond what trains, so that infinite ones, NaN and those that overflow
# are refused.
LossWeight = Annotated[float, Meta(ge=0, le=1000)]
LearningRate = Annotated[float, Meta(gt=0, le=1000)]
GradientNorm = Annotated[float, Meta(gt=0, le=1e6)]

_Decay = Annotated[float, Meta(ge=0, lt=1)]

#: Networks narrower than this are meant for two cores and a few minutes; fields that a recipe
#: leaves open then have these defaults instead of the paper's.
_LAPTOP_WIDTH = 32
_LAPTOP = {
    "stride": 2,
    "scale_network": "efficientnet-lite0",
    "learning_rate": 1e-3,
    "starts": 8,
    "batch_size": 12,
    "epochs": 4,
    # Steps that turn random weights into attention within 50 batches lead it away again later.
    "lr_factor": 0.2,
    "average_decay": 0.98,
}
#: After several starts. From random weights, the paper's share finds the nuclei more often.
_LAPTOP_AFTER_STARTS = {"start_eta": 0.07, "eta": 0.2}
#: An F at half resolution sees small nuclei better in enlarged images. It has learned from several
#: magnifications, and so it can see another one.
_ENLARGEMENT_OF_STRIDE_2 = 1.5
_HALF_RESOLUTION_DILATIONS = (1, 1, 2, 3, 5, 10)


class AttentionRecipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train the attention network of the paper, or a variant of it.

    The defaults are M_proposed, but for two that the paper does not give: the number of epochs
    (it only says that quality flattens after about 30) and reflection at the border. With `width`
    below 32 some fields have other defaults, for machines without a GPU: F at half
    resolution and with larger steps, EfficientNet-Lite0 as G, small batches, several starts.
    """

    family: Literal["attention"] = "attention"
    #: Name of the recipe, and of the model it makes.
    name: ModelName
    #: Who came up with it.
    origin: Literal["paper", "authors' code", "ours"]
    description: str = ""

    #: Magnifications to tell apart, in µm/px.
    scales: Annotated[tuple[float, ...], Meta(min_length=2)] = (0.25, 0.5, 1.0)
    #: Resolution at which the trained model sees images, in µm/px: the finest of `scales`; with a
    #: stride of 2, two thirds of it.
    model_scale: float | None = None
    #: Side of the tiles.
    tile_px: Annotated[int, Meta(gt=0)] = 224
    #: Side of the random crops of the tiles.
    crop_px: Annotated[int, Meta(ge=8)] = 160
    #: Tiles with less tissue are dropped.
    min_tissue: Annotated[float, Meta(ge=0, le=1)] = 0.7
    #: Refuse whole slides: M_-WSI.
    patches_only: bool = False
    #: Colour transfer, by the statistics of each slide.
    colour: Literal["reinhard", "none"] = "reinhard"
    #: Standard deviation of the factors on the HED concentrations.
    hed_jitter: Annotated[float, Meta(ge=0, le=1)] = 0.03

    #: Channels of F.
    width: Annotated[int, Meta(ge=1, le=MOST_CHANNELS)] = 64
    #: Beyond the border of F's input; the authors pad with zeros.
    padding: Literal["reflect", "zeros"] = "reflect"
    #: 2: F works at half resolution (ours; for width below 32).
    stride: Literal[1, 2] = 1
    #: Of F's blocks; about half of it with stride 2.
    dilations: _Dilations = (1, 2, 3, 5, 10, 20)
    #: False: the plain sigmoid, M_-sparse.
    sparse: bool = True
    #: Share of the pixels that attention holds; after several starts, 0.2 for width below 32, as
    #: much as nuclei have at 40x.
    eta: Annotated[float, Meta(ge=0, lt=1)] = 0.07
    #: r of the compressed sigmoid.
    sigmoid_gain: SigmoidGain = 20.0
    #: G; efficientnet-lite0 for width below 32.
    scale_network: ScaleArchitecture = "resnet34"
    #: Channels of resnet10's first stage.
    scale_width: Annotated[int, Meta(ge=1, le=MOST_CHANNELS)] = 16
    #: What G starts from; scratch for resnet10.
    scale_weights: Literal["imagenet", "scratch"] = "imagenet"

    #: Of equation 3.
    smoothness_weight: LossWeight = 1.0
    #: Of equation 4.
    equivariance_weight: LossWeight = 1.0
    #: Of the finest scale at half size (the authors' code, not the paper); after several starts, 1
    #: for width below 32.
    scale_equivariance_weight: LossWeight = 0.0
    #: Of the haematoxylin anchor (ours).
    anchor_weight: LossWeight = 0.0
    #: Share of the pixels that the anchor holds (ours).
    anchor_eta: Annotated[float, Meta(gt=0, lt=1)] = 0.2

    #: Crops; 12 for width below 32.
    batch_size: Annotated[int, Meta(ge=2)] = 32
    batches_per_epoch: Annotated[int, Meta(ge=1)] = 100
    #: 4 for width below 32.
    epochs: Annotated[int, Meta(ge=1)] = 60
    #: Of F; 1e-3 for width below 32.
    learning_rate: LearningRate = 2e-4
    #: Of G.
    scale_learning_rate: LearningRate = 2e-4
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    weight_decay: LossWeight = 1e-4
    #: Epochs after which the rate drops; 0, after the starts, for width below 32 (1 if there is one
    #: start).
    lr_steps: tuple[int, ...] = (300, 600)
    #: By how much it drops; 0.2 for width below 32.
    lr_factor: Annotated[float, Meta(gt=0, le=1)] = 0.1
    #: Largest norm of the gradient.
    gradient_clip: GradientNorm | None = None
    #: Of the running mean of F's weights that is measured and saved (ours, after Tarvainen and
    #: Valpola, see Learner); 0 saves the weights themselves; 0.98 for width below 32.
    average_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    #: Batches on which BatchNorm and tau of this mean are measured.
    average_batches: Annotated[int, Meta(ge=1)] = 20
    #: Starts from different random weights; training continues from the one with the attention that
    #: agrees best with haematoxylin; 8 for width below 32.
    starts: Annotated[int, Meta(ge=1)] = 1
    #: Batches of the best quarter of the starts. The worse half is given up after a quarter of
    #: them, and half of the rest after half of them.
    start_batches: Annotated[int, Meta(ge=4)] = 50
    #: Eta of the starts; that of the training if not given, 0.07 for width below 32.
    start_eta: Annotated[float, Meta(ge=0, lt=1)] | None = None
    #: Flips and rotations over which the trained model averages its attention. The authors' test
    #: code averages them, too.
    views: Literal[1, 8] = 8
    #: Stop when the attention holds nothing or everything, or G guesses.
    stop_on_collapse: bool = True

    def __post_init__(self) -> None:
        if not all(MIN_MPP <= scale <= MAX_MPP for scale in self.scales):
            raise ValueError(f"scales must be {MIN_MPP} to {MAX_MPP} µm/px: {self.scales!r}")
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales must increase: {self.scales!r}")
        if self.crop_px > self.tile_px or self.crop_px % 2:
            raise ValueError(
                f"crop_px {self.crop_px} must be even and no larger than tile_px {self.tile_px}"
            )
        attention_geometry(self.dilations, self.stride)
        # The network sees images of this size, too.
        least = self.crop_px // 2 if self.scale_equivariance_weight else self.crop_px
        needed = attention_min_size_px(self.dilations, self.stride, self.padding)
        if least < needed or least % self.stride:
            factor = self.crop_px // least
            raise ValueError(
                f"crop_px {self.crop_px} must be a multiple of {factor * self.stride} and at least "
                f"{factor * needed} px, for these dilations"
            )
        if not MIN_MPP < self.model_mpp < MAX_MPP:
            raise ValueError(
                f"model_scale {self.model_mpp:g} is not between {MIN_MPP} and {MAX_MPP} µm/px"
            )
        if self.scale_equivariance_weight and 2 * self.scales[0] not in self.scales:
            raise ValueError(f"scale equivariance needs {2 * self.scales[0]} among the scales")
        if self.starts == 1 and self.start_eta is not None:
            raise ValueError("start_eta has no effect with a single start")
        if self.batch_size < len(self.scales):
            raise ValueError(f"batch_size {self.batch_size} is less than one crop per scale")

    @property
    def model_mpp(self) -> float:
        """Resolution at which the trained model sees images, in µm/px."""
        if self.model_scale is not None:
            return self.model_scale
        return self.scales[0] / (_ENLARGEMENT_OF_STRIDE_2 if self.stride == 2 else 1)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in CONFIGS_FOLDER.glob("*.yaml"))


def read_recipe(name_or_path: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe's fields, with ``key=value`` settings put over them, unvalidated.

    Its field ``family`` says which kind of recipe it is: ``attention`` is `AttentionRecipe`.

    Parameters
    ----------
    name_or_path : str
        One of `recipe_names`, or a YAML file.
    settings : sequence of str
        Such as ``"width=16"`` or ``"scales=[0.5, 1.0]"``; values are YAML.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such recipe.
    qpnuclei.errors.FormatError
        If the file is not a YAML mapping.
    qpnuclei.errors.UsageError
        If a setting is not ``key=value``.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS_FOLDER / f"{name_or_path}.yaml"
        if not path.is_file():
            raise NotFoundError(
                f"no recipe named {name_or_path!r}",
                f"there are: {', '.join(recipe_names())}; or give a .yaml file",
            )
    if not path.is_file():
        raise NotFoundError(
            f"no recipe at {path}",
            f"give the path of a .yaml file, or one of: {', '.join(recipe_names())}",
        )
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except _NOT_YAML as error:
        raise FormatError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise FormatError(f"recipe {path} is not a mapping of names to values")
    return fields | read_settings(settings)


def read_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` settings, whose values are YAML.

    Raises
    ------
    qpnuclei.errors.UsageError
        If one is not ``key=value``.
    """
    fields = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting!r} is not key=value", "for example --set width=16")
        try:
            fields[key.strip()] = yaml.safe_load(value)
        except _NOT_YAML as error:
            raise UsageError(f"the value of --set {setting!r} is not YAML: {error}") from error
    return fields


def attention_recipe(fields: Mapping[str, Any]) -> AttentionRecipe:
    """Validate the fields of a recipe of the attention family.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming the first field that is unknown or out of range.
    """
    return validated(AttentionRecipe, _with_what_other_fields_decide(fields))


def _with_what_other_fields_decide(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with the defaults that width, stride and G decide."""
    given = dict(fields)
    for name in ("width", "starts", "stride"):  # compared here, before texts count as numbers
        if not isinstance(given.get(name, 0), int):
            value = quoted(given[name])
            raise UsageError(f"recipe: {quoted(name)} is {value}: expected an integer")
    if given.get("width", _LAPTOP_WIDTH) < _LAPTOP_WIDTH:
        if given.get("starts") == 1:  # the first epoch takes the place of the starts
            given = _LAPTOP | {"lr_steps": [1]} | given
        else:
            given = _LAPTOP | _LAPTOP_AFTER_STARTS | {"lr_steps": [0]} | given
            if "scales" not in given or _has_half_size(given["scales"]):
                given = {"scale_equivariance_weight": 1.0} | given
    if given.get("stride") == 2:
        given = {"dilations": _HALF_RESOLUTION_DILATIONS} | given
    if given.get("scale_network") == "resnet10":
        given = {"scale_weights": "scratch"} | given
    return given


def _has_half_size(scales: object) -> bool:
    """Tell whether the finest of the scales at half size is one of them."""
    if not isinstance(scales, list | tuple) or not scales:
        return False
    return isinstance(scales[0], int | float) and 2 * scales[0] in scales


def validated(recipe: type[Recipe], fields: Mapping[str, Any]) -> Recipe:
    """Make a recipe from its fields.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming the first field that is unknown or out of range.
    """
    try:
        return checked(dict(fields), recipe, strict=False)
    except FieldError as error:
        if error.is_unknown:
            known = {field.name: field.default for field in structs.fields(recipe)}
            raise UsageError(
                f"no field {quoted(error.field)} in a recipe of the {known['family']} family",
                f"there are: {', '.join(known)}",
            ) from error
        raise UsageError(f"recipe: {error}") from error
