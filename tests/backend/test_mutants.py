"""Models of the suite with a few bytes or fields changed: only graphopt's own errors come out of handling them."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError

from graphopt.errors import GraphoptError
from graphopt.model.model import Model
from tests.backend.mutants import field_mutants, mutants
from tests.backend.suite import all_cases, canonical

MODELS = 200
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_only_own_errors_escape(part: int, tmp_path: Path, counts: Counter[str]) -> None:
    _assert_only_own_errors(part, 10, tmp_path, counts)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_only_own_errors_escape_from_many(part: int, tmp_path: Path, counts: Counter[str]) -> None:
    _assert_only_own_errors(part, 100, tmp_path, counts)


def _assert_only_own_errors(part: int, each: int, folder: Path, counts: Counter[str]) -> None:
    small = [case for case in all_cases() if case.kind != "light"]
    chosen = small[:: len(small) // MODELS][:MODELS]
    faults: list[str] = []
    for number, case in list(enumerate(chosen))[part::PARTS]:
        changed = [*mutants(canonical(case.proto()), each, number), *field_mutants(case.proto(), each, number)]
        for index, data in enumerate(changed):
            fault = handled(data, folder / "mutant.onnx", counts)
            if fault:
                faults.append(f"{case.name}, mutant {index} of seed {number}: {fault}")
    assert not faults, "\n".join(faults)


def handled(data: bytes, path: Path, counts: Counter[str]) -> str:
    """Handle a file in every way that needs no session; gives what escaped that should not have."""
    counts["mutants"] += 1
    path.write_bytes(data)
    try:
        model = Model.open(path)
        counts["opened"] += 1
        _use(model)
        counts["handled throughout"] += 1
    except GraphoptError as error:
        counts[error.code] += 1
        if error.exit_code == 70:
            return f"{type(error).__name__} {error.code}: {error}"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    return _from_memory(data)


def _use(model: Model) -> None:
    assert model.interface == model.clone().interface
    for tensor in model.graph.tensors().values():
        model.shape_of(tensor)
        model.dtype_of(tensor)
        model.editor.constant(tensor)
        model.editor.consumers(tensor)
    model.fingerprint()
    twin = model.clone()
    twin.metadata["changed"] = "yes"
    twin.editor.remove_dead_code()
    twin.finish()
    twin.check()


def _from_memory(data: bytes) -> str:
    try:
        Model.from_proto(onnx.load_model_from_string(data))
    except (GraphoptError, DecodeError):
        return ""
    except Exception as error:
        return f"from_proto: {type(error).__name__}: {error}"
    return ""
