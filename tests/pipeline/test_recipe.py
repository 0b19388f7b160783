"""Recipes and the command line form of a pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphopt.errors import UsageError
from graphopt.pipeline.recipe import Recipe, RecipeFile, build_steps, load_recipe, parse_pass, parse_recipe
from graphopt.pipeline.registry import Registry

TEXT = """
version = 1
seed = 3
[[pass]]
name = "simplify"
[[pass]]
name = "prune-weights"
sparsity = 0.5
only = ["op:Conv"]
[gates]
min-speedup = 1.2
max_size = "5MB"
[target]
providers = ["cpu"]
threads = 2
"""


def refused(text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_recipe(text, "recipe.toml")
    return caught.value


def test_a_recipe_prints_itself_back() -> None:
    recipe = parse_recipe(TEXT, "recipe.toml")
    again = parse_recipe(recipe.to_toml(), "printed")
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()


def test_a_recipe_holds_what_was_written() -> None:
    recipe = parse_recipe(TEXT, "recipe.toml")
    assert [entry.name for entry in recipe.passes] == ["simplify", "prune-weights"]
    assert recipe.passes[1].options == {"sparsity": 0.5, "only": ["op:Conv"]}
    assert recipe.gates is not None
    assert (recipe.gates.min_speedup, recipe.gates.max_size) == (1.2, 5_000_000)
    assert recipe.target is not None
    assert recipe.target.threads == 2
    assert recipe.seed == 3


def test_a_missing_version_is_named() -> None:
    error = refused("[[pass]]\nname = 'simplify'\n")
    assert error.code == "GO-204"
    assert "version = 1" in str(error.hint)


def test_every_unknown_key_is_reported_with_a_suggestion() -> None:
    error = refused("version = 1\nsede = 1\n[gates]\nmin_speedupp = 2\n")
    assert "did you mean 'seed'" in str(error.why)
    assert "did you mean 'min_speedup'" in str(error.why)


def test_invalid_toml_tells_where() -> None:
    error = refused("version = = 1")
    assert error.code == "GO-204"
    assert "line 1" in str(error.why)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("simplify", {}),
        ("prune-weights:sparsity=0.5", {"sparsity": 0.5}),
        ("quantize:calibration=percentile,percentile=99.9", {"calibration": "percentile", "percentile": 99.9}),
        ('x:only=["a,b", "c"],flag=true', {"only": ["a,b", "c"], "flag": True}),
        ("x:round-to=16", {"round_to": 16}),
    ],
)
def test_the_command_line_form_of_a_pass(text: str, options: dict[str, object]) -> None:
    entry = parse_pass(text)
    assert entry.name == text.partition(":")[0]
    assert entry.options == options


def test_a_part_without_a_value_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        parse_pass("prune-weights:sparsity")
    assert caught.value.code == "GO-203"


def test_bad_options_name_the_option_and_suggest() -> None:
    with pytest.raises(UsageError) as caught:
        build_steps([parse_pass("prune-weights:sparsitty=0.5")], Registry.discover(), named=True)
    assert caught.value.code == "GO-203"
    assert "did you mean 'sparsity'" in str(caught.value.why)


def test_an_unknown_pass_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        build_steps([parse_pass("quantise")], Registry.discover(), named=True)
    assert caught.value.code == "GO-202"
    assert "quantize" in str(caught.value.hint)


def test_quantize_before_remove_channels_is_an_impossible_order() -> None:
    recipe = Recipe.model_validate(
        {"version": 1, "pass": [{"name": "quantize"}, {"name": "remove-channels", "ratio": 0.5}]}
    )
    with pytest.raises(UsageError) as caught:
        build_steps(recipe.passes, Registry.discover(), named=True)
    assert caught.value.code == "GO-205"
    assert "move remove-channels up" in str(caught.value.hint)


def test_a_report_stands_for_its_resolved_recipe(tmp_path: Path) -> None:
    toml = 'version = 1\nseed = 3\n\n[[pass]]\nname = "simplify"\n'
    report = tmp_path / "out.graphopt.json"
    report.write_text(json.dumps({"recipe": {"toml": toml}}))
    assert load_recipe(report) == RecipeFile(parse_recipe(toml, ""), str(report))


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "not json", '{"recipe": null}', '{"recipe": {"toml": ""}, "source": [1]}']
)
def test_a_json_file_without_a_recipe_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"GO-204|no recipe"):
        load_recipe(path)
