"""What a user reads where pydantic refuses an option: which one, what was given, what it takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from graphopt.errors import UsageError
from graphopt.explain import explain
from graphopt.pipeline.recipe import build_steps, parse_pass, parse_recipe
from graphopt.pipeline.registry import Registry
from graphopt.validation.gates import Gates
from tests.conftest import Cli

PYDANTIC = re.compile(r"Input should|Value error|valid (tuple|string|dictionary)|Field required|Extra inputs")


def refused(text: str) -> str:
    """Why an option is refused."""
    with pytest.raises(UsageError) as caught:
        build_steps([parse_pass(text)], Registry.discover(), named=True)
    assert caught.value.code == "GO-203"
    why = str(caught.value.why)
    assert not PYDANTIC.search(why), why
    return why


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quantize:calibration=foo", """calibration is 'foo', but takes "min-max" or "percentile\""""),
        ("quantize:percentile=4", "percentile is 4, but takes a number > 50, <= 100"),
        ("quantize:percentile=high", "percentile is 'high', but takes a number > 50, <= 100"),
        ("quantize:percentile=nan", "percentile is nan, but takes a number > 50, <= 100"),
        ("quantize:measure=7", "measure is 7, but takes true or false"),
        ("quantize:integer_nodes=3", "integer_nodes is 3, but takes a list of text"),
        ("quantize:only=[1]", "only holds 1, but takes a list of text"),
        ("remove-channels:round_to=2.5", "round_to is 2.5, but takes a whole number >= 1"),
        ("remove-channels:ridge=0", "ridge is 0, but takes a number > 0.0"),
        ("fuse:families=[{a=1}]", "families holds a table, but takes a list of text"),
        ("fuse:families=foo", "families: no family is called foo; the families are activations"),
        ("prune-weights:sparsitty=1", "sparsitty: unknown key, did you mean 'sparsity'?"),
        ("prune-weights:x=1", "x: unknown key, there are only, skip, sparsity"),
    ],
)
def test_an_option_of_a_pass(text: str, said: str) -> None:
    assert said in refused(text)


def test_every_problem_of_an_option_is_told() -> None:
    assert refused("remove-channels:ratio=7,scope=x") == (
        'ratio is 7, but takes a number >= 0.0, < 1.0; scope is \'x\', but takes "all" or "inner"'
    )


def test_an_option_cannot_name_another_pass() -> None:
    for text in ("simplify:name=fuse", "simplify:name=3"):
        with pytest.raises(UsageError) as caught:
            parse_pass(text)
        assert caught.value.code == "GO-203"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed = -1", "seed is -1, but takes a whole number >= 0"),
        ("pass = 3", "pass is 3, but takes a list of tables"),
        ("pass = [3]", "pass 1 is 3, but takes a table"),
        ('pass = [{name = "fuse"}, {only = "x"}]', "pass 2.name is missing; it takes text"),
        ("pass = [{name = 3}]", "pass 1.name is 3, but takes text"),
        ("gates = 4", "gates is 4, but takes a table"),
        ('[gates]\nmin_speedup = "fast"', "gates.min_speedup is 'fast', but takes a finite number > 0"),
        ("[gates]\nmin_sqnr = inf", "gates.min_sqnr is inf, but takes a finite number"),
        ("[gates]\nmax_size = [1]", "gates.max_size is [1], but takes a whole number > 0"),
        ('[gates]\nmax_size = "big"', "gates.max_size: 'big' is no size: write bytes"),
        ("[gates]\nzzz = 1", "gates.zzz: unknown key, there are min_speedup, max_drop"),
        ("[target]\nthreads = 5000", "target.threads is 5000, but takes a whole number >= 0, <= 1024"),
        ("[target]\nproviders = [1]", "target.providers holds 1, but takes a list of text"),
        ("[target]\nthread = 1", "target.thread: unknown key, did you mean 'threads'?"),
        ("passes = []", "passes: unknown key, did you mean 'pass'?"),
    ],
)
def test_a_key_of_a_recipe(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe(f"version = 1\n{text}\n", "recipe.toml")
    assert caught.value.code == "GO-204"
    why = str(caught.value.why)
    assert said in why
    assert not PYDANTIC.search(why), why


def test_a_long_value_is_cut() -> None:
    why = refused(f"quantize:percentile={'9x' * 200}")
    assert "..." in why and len(why) < 150


def test_a_fault_of_the_whole_table_keeps_its_words() -> None:
    class Both(BaseModel):
        model_config = ConfigDict(extra="forbid")
        low: float = Field(0.0)

        @model_validator(mode="after")
        def _ordered(self) -> Both:
            raise ValueError("low must lie below high")

    with pytest.raises(ValidationError) as caught:
        Both.model_validate({})
    assert explain(caught.value, Both) == "low must lie below high"


def test_gates_are_refused_alike_everywhere(cli: Cli, cnn: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Gates.of({"max_drop": -1})
    words = {"run": (cnn, "-o", tmp_path / "out.onnx"), "validate": (cnn, cnn), "bench": (cnn, cnn)}
    for command, option, said in [
        ("run", "--max-drop", "max_drop is -1.0, but takes a finite number >= 0"),
        ("validate", "--max-drop", "max_drop is -1.0, but takes a finite number >= 0"),
        ("bench", "--min-speedup", "min_speedup is -1.0, but takes a finite number > 0"),
    ]:
        done = cli(command, *words[command], option, "-1")
        assert (done.code, "error[GO-201]" in done.err, said in done.err) == (2, True, True), done.err
