"""``graphopt profile``: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graphopt.model.model import Model
from graphopt.report.profile import ProfileReport
from tests.conftest import Cli

QUICK = ("--measure-seconds", "0.5", "--no-denormals")


def test_the_table_names_operators_nodes_and_the_ratio(cli: Cli, cnn: Path) -> None:
    done = cli("profile", cnn, *QUICK, "--top", "2")
    assert (done.code, done.err) == (0, "")
    for words in ("session", "sum of the nodes", "no rule can touch", "layout reorders", "denormals", "slowest nodes"):
        assert words in done.out
    assert "synthetic" in done.out
    assert "Conv" in done.out


def test_the_document_holds_the_schema_and_adds_up(cli: Cli, cnn: Path, few: Path) -> None:
    done = cli("profile", cnn, "--data", few, "--json", *QUICK)
    assert done.code == 0
    found = ProfileReport.model_validate_json(done.out)
    assert json.loads(done.out)["schema_id"] == "graphopt/profile"
    assert found.samples.count == 4
    assert not found.samples.synthetic
    agreed = found.agreement
    assert agreed.nodes_ms == pytest.approx(sum(kernel.node_ms for kernel in found.kernels))
    assert agreed.nodes_ms == pytest.approx(sum(op.total_ms for op in found.ops))
    assert agreed.ratio == pytest.approx(agreed.nodes_ms / agreed.session_ms)
    assert found.layout_ms + found.fixed_ms <= agreed.nodes_ms * (1 + 1e-9)
    assert sum(kernel.share for kernel in found.kernels) == pytest.approx(1.0)
    assert found.denormals.measured is False


def test_every_node_it_names_is_the_models(cli: Cli, cnn: Path) -> None:
    found = ProfileReport.model_validate_json(cli("profile", cnn, "--json", *QUICK).out)
    known = {node.name: node.op for node in Model.open(cnn).editor.nodes()}
    named = [source for kernel in found.kernels for source in kernel.sources]
    assert len({source.name for source in named}) == len(named)
    assert all(known[source.name] == source.op for source in named)


def test_denormals_are_looked_for_by_default(cli: Cli, embedded: Path) -> None:
    model = embedded / "digits_transformer" / "model.onnx"
    found = ProfileReport.model_validate_json(cli("profile", model, "--json", "--measure-seconds", "0.5").out)
    assert found.denormals.measured, found.denormals.reason


def test_synthetic_inputs_take_sizes(cli: Cli, cnn: Path) -> None:
    done = cli("profile", cnn, "--shape", "image=3x1x28x28", *QUICK)
    assert done.code == 0, done.err


def test_errors_have_their_exit_codes(cli: Cli, tmp_path: Path, cnn: Path) -> None:
    assert cli("profile", tmp_path / "missing.onnx").code == 3
    assert cli("profile", cnn, "--shape", "image=3x7x28x28", *QUICK).code == 4
    assert cli("profile").code == 2
