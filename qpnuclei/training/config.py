"""Recipes: one validated YAML file per model of the paper, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from qpnuclei.errors import FormatError, NotFoundError, UsageError, quoted

Recipe = TypeVar("Recipe", bound=BaseModel)

#: The recipes that come with the package, as ``<name>.yaml``.
CONFIGS_FOLDER = Path(__file__).with_name("configs")

#: Networks narrower than this are meant for two cores and a few minutes; fields that a recipe
#: leaves open then have these defaults instead of the paper's.
_LAPTOP_WIDTH = 32
_LAPTOP = {
    "stride": 2,
    "scale_network": "efficientnet-lite0",
    "learning_rate": 1e-3,
    "starts": 4,
    "batch_size": 12,
    "batches_per_epoch": 50,
    "epochs": 5,
    # Steps that turn random weights into attention within 50 batches lead it away again later.
    "lr_factor": 0.2,
    "average_decay": 0.98,
}
_HALF_RESOLUTION_DILATIONS = (1, 1, 2, 3, 5, 10)


class AttentionRecipe(BaseModel):
    """How to train the attention network of the paper, or a variant of it.

    The defaults are M_proposed, but for two that the paper does not give: the number of epochs
    (it only says that quality flattens after about 30) and reflection at the border. With `width`
    below 32 some fields have other defaults, for machines without a GPU: F at half
    resolution and with larger steps, EfficientNet-Lite0 as G, small batches, several starts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["attention"] = "attention"
    name: str = Field(description="name of the recipe, and of the model it makes")
    origin: Literal["paper", "authors' code", "ours"] = Field(description="who came up with it")
    description: str = ""

    scales: tuple[float, ...] = Field(
        (0.25, 0.5, 1.0), min_length=2, description="magnifications to tell apart, in µm/px"
    )
    model_scale: float | None = Field(
        None, description="resolution of the trained model in µm/px; the finest of `scales`"
    )
    tile_px: int = Field(224, gt=0, description="side of the tiles")
    crop_px: int = Field(160, gt=0, description="side of the random crops of the tiles")
    min_tissue: float = Field(0.7, ge=0, le=1, description="tiles with less tissue are dropped")
    patches_only: bool = Field(False, description="refuse whole slides: M_-WSI")
    colour: Literal["reinhard", "none"] = Field(
        "reinhard", description="colour transfer, by the statistics of each slide"
    )
    hed_jitter: float = Field(
        0.03, ge=0, description="standard deviation of the factors on the HED concentrations"
    )

    width: int = Field(64, ge=1, description="channels of F")
    padding: Literal["reflect", "zeros"] = Field(
        "reflect", description="beyond the border of F's input; the authors pad with zeros"
    )
    stride: Literal[1, 2] = Field(
        1, description="2: F works at half resolution (ours; for width below 32)"
    )
    dilations: tuple[int, ...] = Field(
        (1, 2, 3, 5, 10, 20),
        min_length=1,
        description="of F's blocks; about half of it with stride 2",
    )
    sparse: bool = Field(True, description="False: the plain sigmoid, M_-sparse")
    eta: float = Field(0.07, ge=0, lt=1, description="share of the pixels that attention holds")
    sigmoid_gain: float = Field(20.0, gt=0, description="r of the compressed sigmoid")
    scale_network: Literal["resnet34", "resnet18", "efficientnet-lite0", "resnet10"] = Field(
        "resnet34", description="G; efficientnet-lite0 for width below 32"
    )
    scale_width: int = Field(16, ge=1, description="channels of resnet10's first stage")
    scale_weights: Literal["imagenet", "scratch"] = Field(
        "imagenet", description="what G starts from; scratch for resnet10"
    )

    smoothness_weight: float = Field(1.0, ge=0, description="of equation 3")
    equivariance_weight: float = Field(1.0, ge=0, description="of equation 4")
    scale_equivariance_weight: float = Field(
        0.0, ge=0, description="of the finest scale at half size (the authors' code, not the paper)"
    )
    anchor_weight: float = Field(0.0, ge=0, description="of the haematoxylin anchor (ours)")
    anchor_eta: float = Field(
        0.2, gt=0, lt=1, description="share of the pixels that the anchor holds (ours)"
    )

    batch_size: int = Field(32, ge=2, description="crops; 12 for width below 32")
    batches_per_epoch: int = Field(100, ge=1, description="50 for width below 32")
    epochs: int = Field(60, ge=1, description="5 for width below 32")
    learning_rate: float = Field(2e-4, gt=0, description="of F; 1e-3 for width below 32")
    scale_learning_rate: float = Field(2e-4, gt=0, description="of G")
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-4, ge=0)
    lr_steps: tuple[int, ...] = Field(
        (300, 600),
        description="epochs after which the rate drops; 0, after the starts, for width below 32 "
        "(1 if there is one start)",
    )
    lr_factor: float = Field(
        0.1, gt=0, le=1, description="by how much it drops; 0.2 for width below 32"
    )
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    average_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="of the running mean of F's weights that is measured and saved (ours, after "
        "Tarvainen and Valpola, see Learner); 0 saves the weights themselves; 0.98 for width below "
        "32",
    )
    average_batches: int = Field(
        20, ge=1, description="batches on which BatchNorm and tau of this mean are measured"
    )
    starts: int = Field(
        1,
        ge=1,
        description="starts from different random weights; training continues from the one with "
        "the attention that agrees best with haematoxylin; 4 for width below 32",
    )
    start_batches: int = Field(50, ge=2, description="batches of each such start")
    stop_on_collapse: bool = Field(
        True, description="stop when the attention holds nothing or everything, or G guesses"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_in_what_other_fields_decide(cls, fields: dict[str, Any]) -> dict[str, Any]:
        width = fields.get("width")
        if isinstance(width, int) and width < _LAPTOP_WIDTH:
            # With a single start, the first epoch takes the place of the starts.
            first_drop = 1 if fields.get("starts") == 1 else 0
            fields = _LAPTOP | {"lr_steps": [first_drop]} | fields
        if fields.get("stride") == 2:
            fields = {"dilations": _HALF_RESOLUTION_DILATIONS} | fields
        if fields.get("scale_network") == "resnet10":
            fields = {"scale_weights": "scratch"} | fields
        return fields

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales must increase: {self.scales!r}")
        if not all(0.05 <= scale <= 2.5 for scale in self.scales):
            raise ValueError(f"scales must be 0.05 to 2.5 µm/px: {self.scales!r}")
        if self.crop_px > self.tile_px or self.crop_px % 2:
            raise ValueError(
                f"crop_px {self.crop_px} must be even and no larger than tile_px {self.tile_px}"
            )
        if self.model_scale is not None and self.model_scale not in self.scales:
            raise ValueError(f"model_scale {self.model_scale} is not one of {self.scales!r}")
        if self.scale_equivariance_weight and 2 * self.scales[0] not in self.scales:
            raise ValueError(f"scale equivariance needs {2 * self.scales[0]} among the scales")
        if self.batch_size < len(self.scales):
            raise ValueError(f"batch_size {self.batch_size} is less than one crop per scale")
        return self

    @property
    def model_mpp(self) -> float:
        """Resolution of the trained model in µm/px."""
        return self.model_scale or self.scales[0]


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
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
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
        except (yaml.YAMLError, RecursionError) as error:
            raise UsageError(f"the value of --set {setting!r} is not YAML: {error}") from error
    return fields


def attention_recipe(fields: Mapping[str, Any]) -> AttentionRecipe:
    """Validate the fields of a recipe of the attention family.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming the first field that is unknown or out of range.
    """
    return validated(AttentionRecipe, fields)


def validated(recipe: type[Recipe], fields: Mapping[str, Any]) -> Recipe:
    """Make a recipe from its fields.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming the first field that is unknown or out of range.
    """
    try:
        return recipe.model_validate(dict(fields))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            family = recipe.model_fields["family"].default
            raise UsageError(
                f"no field {quoted(key)} in a recipe of the {family} family",
                f"there are: {', '.join(recipe.model_fields)}",
            ) from error
        where = f"recipe field {quoted(key)} = {quoted(first['input'])}: " if key else "recipe: "
        raise UsageError(where + first["msg"].removeprefix("Value error, ")) from error
