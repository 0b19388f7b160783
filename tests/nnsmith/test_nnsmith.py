"""Models that NNSmith made at random, through the passes: none crashes, none comes out invalid.

NNSmith lives in an environment of its own. To run this::

    python -m venv nnsmith
    nnsmith/bin/pip install nnsmith torch onnx "numpy<2" "setuptools<81"
    nnsmith/bin/python tests/nnsmith/generate.py MODELS 500
    GRAPHOPT_NNSMITH=MODELS pytest -m slow tests/nnsmith

Without it this is skipped; graphopt's own random models go through every pass in ``tests/property``.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import onnx
import pytest

from graphopt.data.samples import Samples
from graphopt.errors import GraphoptError
from graphopt.model.model import Model
from graphopt.testing.trial import default_samples
from tests.backend.sweep import bare_session, check_active

PASSES = ("simplify", "fuse", "quantize:measure=false,min_sqnr=-1000.0,rounding=on,smoothing=on")
FOLDER = os.environ.get("GRAPHOPT_NNSMITH", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="GRAPHOPT_NNSMITH names no folder of models; this file says how to make one"),
]


@pytest.mark.parametrize("text", PASSES)
def test_models_of_nnsmith_come_through(text: str, counts: Counter[str]) -> None:
    faults: list[str] = []
    paths = sorted(Path(FOLDER).glob("*.onnx"))
    assert paths, f"no models in {FOLDER}"
    for path in paths:
        faults += _faults(path, text, counts)
    assert not faults, "\n".join(faults)


def _faults(path: Path, text: str, counts: Counter[str]) -> list[str]:
    counts["models"] += 1
    proto = onnx.load(path)
    try:
        model = Model.from_proto(proto)
        samples: Samples = default_samples(model)
    except GraphoptError as error:
        counts[f"refused {error.code}"] += 1
        return []
    if bare_session(proto.SerializeToString()) is None:
        counts["onnxruntime does not open the source"] += 1
    half = any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in proto.graph.input)
    # The name is what the sweep excuses roundings of float16 by: one of them is more than the bound allows.
    return list(check_active(f"{path.name}{' fp16' if half else ''}", proto, samples[0], text, counts))
