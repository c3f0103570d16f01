from __future__ import annotations

import math
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from msgspec import Struct, structs

from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.system.checked import as_json
from qpnuclei.training.attention.learner import Learner
from qpnuclei.training.attention.losses import TRANSFORMS
from qpnuclei.training.config import (
    AttentionRecipe,
    attention_recipe,
    read_recipe,
    recipe_names,
    validated,
)
from qpnuclei.training.student.recipe import StudentRecipe, student_recipe
from qpnuclei.training.train import check_recipe

PAPER = {"name": "t", "origin": "paper"}


def test_every_recipe_in_the_package_is_valid_and_named_as_its_file() -> None:
    assert {
        "proposed", "no-smooth", "no-equiv", "no-sparse", "no-wsi", "scale-equiv", "anchored"
    } <= set(recipe_names())  # fmt: skip
    for name in recipe_names():
        fields = read_recipe(name)
        assert fields["name"] == name
        if fields["family"] == "attention":
            attention_recipe(fields)
        else:
            student_recipe(fields)


def test_proposed_is_the_paper() -> None:
    """Sections 3.3, 4.1 and 4.2, figure 1."""
    recipe = attention_recipe(read_recipe("proposed"))
    assert recipe.scales == (0.25, 0.5, 1.0)
    assert (recipe.tile_px, recipe.crop_px, recipe.min_tissue) == (224, 160, 0.7)
    assert (recipe.width, recipe.stride, recipe.dilations) == (64, 1, (1, 2, 3, 5, 10, 20))
    assert (recipe.scale_network, recipe.scale_weights) == ("resnet34", "imagenet")
    assert (recipe.sparse, recipe.eta, recipe.sigmoid_gain) == (True, 0.07, 20)
    assert (recipe.smoothness_weight, recipe.equivariance_weight) == (1, 1)
    assert (recipe.scale_equivariance_weight, recipe.anchor_weight) == (0, 0)
    assert (recipe.batch_size, recipe.batches_per_epoch) == (32, 100)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.betas) == (2e-4, 1e-4, (0.9, 0.999))
    assert (recipe.lr_steps, recipe.lr_factor) == ((300, 600), 0.1)
    assert (recipe.starts, recipe.average_decay) == (1, 0)


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("no-smooth", {"smoothness_weight"}),
        ("no-equiv", {"equivariance_weight"}),
        ("no-sparse", {"sparse", "stop_on_collapse"}),
        ("no-wsi", {"patches_only"}),
        ("scale-equiv", {"scale_equivariance_weight"}),
        ("anchored", {"eta", "anchor_weight"}),
    ],
)
def test_each_variant_changes_one_thing(name: str, differs: set[str]) -> None:
    proposed = as_json(attention_recipe(read_recipe("proposed")))
    variant = as_json(attention_recipe(read_recipe(name)))
    changed = {key for key in proposed if proposed[key] != variant[key]}
    assert changed - {"name", "origin", "description"} == differs


def test_a_narrow_network_is_made_for_a_laptop() -> None:
    recipe = attention_recipe(read_recipe("anchored", ["width=16"]))
    assert (recipe.stride, recipe.scale_network) == (2, "efficientnet-lite0")
    assert (recipe.scale_weights, recipe.learning_rate) == ("imagenet", 1e-3)
    assert recipe.starts == 1  # anchored, the attention has its sign from the first batch
    several = attention_recipe(read_recipe("proposed", ["width=16"]))
    assert several.starts == 8
    # What the paper's share started, a share like that of nuclei continues.
    assert (several.start_eta, several.eta, several.scale_equivariance_weight) == (0.07, 0.2, 1)
    alone = attention_recipe(read_recipe("proposed", ["width=16", "starts=1"]))
    assert (alone.start_eta, alone.eta, alone.scale_equivariance_weight) == (None, 0.07, 0)
    apart = attention_recipe(read_recipe("proposed", ["width=16", "scales=[0.25, 1.0]"]))
    assert (apart.start_eta, apart.scale_equivariance_weight) == (0.07, 0)
    ablation = attention_recipe(read_recipe("no-equiv", ["width=16"]))
    assert (ablation.equivariance_weight, ablation.scale_equivariance_weight) == (0, 0)
    # Where there is one start, the first epoch is what a start would be.
    for laptop, steps in ((several, (0,)), (recipe, (1,))):
        assert (laptop.lr_steps, laptop.lr_factor, laptop.average_decay) == (steps, 0.2, 0.98)
    assert recipe.epochs is not None
    assert recipe.batches_per_epoch is not None
    assert recipe.epochs * recipe.batches_per_epoch == 400


def test_what_is_set_wins_over_what_width_decides() -> None:
    recipe = attention_recipe(read_recipe("anchored", ["width=16", "stride=1", "epochs=7"]))
    assert (recipe.stride, recipe.dilations, recipe.epochs) == (1, (1, 2, 3, 5, 10, 20), 7)


def test_settings_are_yaml() -> None:
    fields = read_recipe("proposed", ["scales=[0.5, 1.0]", "sparse=false", "gradient_clip=null"])
    assert (fields["scales"], fields["sparse"], fields["gradient_clip"]) == (
        [0.5, 1.0],
        False,
        None,
    )


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("family: attention\nname: mine\norigin: ours\nepochs: 3\n")
    assert attention_recipe(read_recipe(str(path))).epochs == 3


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no recipe named 'propsed'") as caught:
        read_recipe("propsed")
    assert "proposed" in caught.value.hint
    with pytest.raises(NotFoundError, match=r"gone\.yaml"):
        read_recipe(str(tmp_path / "gone.yaml"))
    broken = tmp_path / "broken.yaml"
    for text in ("a: [", "- a list", "just text"):
        broken.write_text(text)
        with pytest.raises(FormatError, match=r"broken\.yaml"):
            read_recipe(str(broken))
    with pytest.raises(UsageError, match="'width 16' is not key=value"):
        read_recipe("proposed", ["width 16"])


@pytest.mark.parametrize(
    "value", ["2024-13-45", "2024-02-30", "!!int a", "!!int ''", "!!bool a", "!!timestamp a"]
)
def test_a_value_that_is_not_of_its_type_is_not_yaml(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match=r"the value of --set .name=.* is not YAML"):
        read_recipe("proposed", [f"name={value}"])
    path = tmp_path / "mine.yaml"
    path.write_text(f"family: attention\nname: mine\norigin: ours\ndate: {value}\n")
    with pytest.raises(FormatError, match=r"mine\.yaml is not valid YAML"):
        read_recipe(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 16}, "no field 'widht'"),
        ({"eta": 7}, "'eta' is 7"),
        ({"scales": [1.0, 0.5]}, "scales must increase"),
        ({"scales": [0.01, 0.5]}, "scales must be 0.05 to 2.5"),
        ({"crop_px": 300}, "crop_px 300"),
        ({"model_scale": 0.05}, "model_scale 0.05 is not between"),
        ({"scales": [0.06, 0.12], "stride": 2}, "model_scale 0.04 is not between"),
        ({"batch_size": 2}, "batch_size 2"),
        ({"scales": [0.25, 1.0], "scale_equivariance_weight": 1}, "needs 0.5"),
        ({"dilations": [1, 0]}, "'dilations.1' is 0"),
        ({"dilations": [3000]}, "receptive radius of 6001 px"),
        ({"betas": [0.9, 1]}, "'betas.1' is 1"),
        ({"betas": [-0.1, 0.9]}, "'betas.0' is -0.1"),
        ({"width": 100_000}, "'width' is 100000"),
        ({"scale_width": 100_000}, "'scale_width' is 100000"),
        ({"crop_px": 2, "padding": "zeros"}, "'crop_px' is 2"),
        ({"crop_px": 20}, "crop_px 20 must be a multiple of 1 and at least 21 px"),
        ({"name": ""}, "'name' is ''"),
        ({"name": 201 * "n"}, "'name' is 'nnn"),
        ({"sigmoid_gain": 2e6}, "'sigmoid_gain' is 2000000.0"),
        ({"sigmoid_gain": float("inf")}, "'sigmoid_gain' is inf"),
        ({"dilations": 65 * [1]}, "'dilations' is"),
        ({"width": 16, "crop_px": 90}, "crop_px 90 must be a multiple of 4 and at least 44 px"),
        ({"width": 16, "crop_px": 40}, "crop_px 40 must be a multiple of 4 and at least 44 px"),
    ],
)
def test_bad_fields_are_named_with_their_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attention_recipe(PAPER | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_channels": 128}, "max_channels=96 is less than base_channels=128"),
        ({"max_channels": 16}, "max_channels=16 is less than base_channels=24"),
        ({"base_channels": 10**6, "max_channels": 10**6}, "'base_channels' is 1000000"),
        ({"max_channels": 10**6}, "'max_channels' is 1000000"),
        ({"levels": 9, "crop_px": 512}, "'levels' is 9"),
        ({"levels": 10**9}, "'levels' is 1000000000"),
        ({"encoder_convolutions": [2, 2]}, "each of 4 levels"),
        ({"encoder_convolutions": [0, 2, 2, 2]}, "each of 4 levels"),
        ({"encoder_convolutions": [2, 2, 2, 99]}, "99 convolutions"),
        ({"crop_px": 200}, "crop_px 200 must be a multiple of 16"),
        ({"name": ""}, "'name' is ''"),
    ],
)
def test_a_student_that_cannot_be_built_is_an_error_of_its_recipe(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=f"^recipe: .*{message}"):
        check_recipe({**read_recipe("student"), **change})


@pytest.mark.parametrize(
    ("change", "crop_px"),
    [
        ({"width": 2}, 44),
        ({"width": 2, "stride": 1}, 42),
        ({"width": 2, "starts": 1}, 22),
        ({"width": 2, "stride": 1, "starts": 1}, 22),
        ({"width": 2, "padding": "zeros"}, 8),
        ({"width": 2, "dilations": [1]}, 8),
    ],
)
def test_the_smallest_crops_can_be_learned_from(change: dict[str, object], crop_px: int) -> None:
    fields = {**PAPER, "scale_network": "resnet10", "scale_width": 2, **change}
    recipe = attention_recipe({**fields, "crop_px": crop_px})
    with pytest.raises(UsageError, match="crop_px"):
        attention_recipe({**fields, "crop_px": crop_px - 2})
    learner = Learner(recipe, torch.device("cpu"), seed=0)
    rgb = torch.randint(0, 256, (6, 3, crop_px, crop_px), dtype=torch.uint8)
    metrics = learner.step(rgb, torch.tensor([0, 0, 1, 1, 2, 2]), TRANSFORMS["transpose"])
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    ("change", "mpp"),
    [
        ({}, 0.25),
        ({"scales": [0.5, 1.0]}, 0.5),
        ({"stride": 2}, 1 / 6),
        ({"width": 16}, 1 / 6),
        ({"width": 16, "stride": 1}, 0.25),
        ({"width": 16, "model_scale": 0.2}, 0.2),
    ],
)
def test_an_f_at_half_resolution_sees_enlarged_images(
    change: dict[str, object], mpp: float
) -> None:
    assert attention_recipe(PAPER | change).model_mpp == pytest.approx(mpp)


def test_an_error_stays_short_however_much_it_could_quote(tmp_path: Path) -> None:
    """Each level of these aliases is ten times as long as the one before."""
    path = tmp_path / "bomb.yaml"
    levels = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 9):
        levels.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]")
    bomb = "\n".join(levels)
    path.write_text(f"family: attention\nname: bomb\norigin: ours\n{bomb}\nwidth: *l8\n")
    fields = read_recipe(str(path))
    for change in (fields, {**PAPER, "width": fields["l8"]}, {**PAPER, "y" * 10**6: 1}):
        with pytest.raises(UsageError) as caught:
            attention_recipe(change)
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("field", ["width", "starts", "stride"])
@pytest.mark.parametrize("value", ["2", 2.0, None, [2]])
def test_a_field_that_decides_others_must_be_an_integer(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"'{field}' is .*: expected an integer"):
        attention_recipe(PAPER | {field: value})


def float_fields() -> list[tuple[type[Struct], str, bool]]:
    """Return recipe, name and whether it has several of each field that holds floats."""
    found = []
    for recipe in (StudentRecipe, AttentionRecipe):
        hints = get_type_hints(recipe)
        for field in structs.fields(recipe):
            parts = [hints[field.name], *get_args(hints[field.name])]
            if float in parts:
                found.append((recipe, field.name, get_origin(hints[field.name]) is tuple))
    return found


def test_the_fields_that_hold_floats_are_found() -> None:
    found = {(recipe, name): several for recipe, name, several in float_fields()}
    assert len(found) > 35
    assert found[StudentRecipe, "max_area_um2"] is False
    assert found[StudentRecipe, "label_scales"] is found[AttentionRecipe, "betas"] is True
    assert (AttentionRecipe, "gradient_clip") in found  # or None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e308])
@pytest.mark.parametrize(("recipe", "name", "several"), float_fields())
def test_no_float_of_a_recipe_is_infinite_or_overflows(
    recipe: type[Struct], name: str, several: bool, value: float
) -> None:
    fields: dict[str, object] = {"name": "any", name: [value, value] if several else value}
    if recipe is AttentionRecipe:
        fields["origin"] = "ours"
    with pytest.raises(UsageError, match=name):
        validated(recipe, fields)
