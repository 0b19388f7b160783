"""The embedded models: what the cards claim is what the files do."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

NAMES = ("digits_cnn", "digits_transformer")
LEAST_ACCURACY = {"digits_cnn": 0.98, "digits_transformer": 0.96}
SHAPES = {"digits_cnn": (1, 28, 28), "digits_transformer": (1, 8, 8)}


def samples(folder: Path, part: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    with np.load(folder / f"{part}.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"image", "labels"}
        return arrays["image"], arrays["labels"]


def initializers(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, embedded: Path) -> Path:
    return embedded / str(request.param)


@pytest.fixture
def cnn(embedded: Path) -> onnx.ModelProto:
    return onnx.load(embedded / "digits_cnn" / "model.onnx")


@pytest.fixture
def transformer(embedded: Path) -> onnx.ModelProto:
    return onnx.load(embedded / "digits_transformer" / "model.onnx")


def test_the_card_states_what_the_file_gets_right(folder: Path) -> None:
    stated = re.search(r"(\d+) of (\d+) \((\d+\.\d\d) %\)", (folder / "README.md").read_text("utf-8"))
    assert stated is not None
    feeds, labels = samples(folder, "eval")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": feeds})[0]
    correct = int((logits.argmax(axis=1) == labels).sum())
    assert (correct, len(labels)) == (int(stated[1]), int(stated[2]))
    assert f"{100 * correct / len(labels):.2f}" == stated[3]
    assert correct / len(labels) >= LEAST_ACCURACY[folder.name]


def test_the_card_states_the_sizes(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    for name in ("model.onnx", "calib.npz", "eval.npz"):
        stated = re.search(rf"`{re.escape(name)}` \| ([\d,]+) bytes", card)
        assert stated is not None, name
        assert int(stated[1].replace(",", "")) == (folder / name).stat().st_size


def test_every_file_is_there(folder: Path) -> None:
    expected = {"README.md", "train.py", "model.onnx", "calib.npz", "eval.npz", "recipe.toml"}
    assert expected <= {path.name for path in folder.iterdir()}


def test_together_under_five_megabytes(embedded: Path) -> None:
    files = [path for path in embedded.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 5_000_000


def test_samples_fit_the_model_and_do_not_overlap(folder: Path) -> None:
    calibration, calibration_labels = samples(folder, "calib")
    evaluation, evaluation_labels = samples(folder, "eval")
    for feeds, labels in ((calibration, calibration_labels), (evaluation, evaluation_labels)):
        assert feeds.dtype == np.float32
        assert feeds.shape == (len(labels), *SHAPES[folder.name])
        assert labels.dtype == np.int64
        assert (feeds.min(), feeds.max()) == (0.0, 1.0)
        assert set(labels.tolist()) == set(range(10))
    assert len(calibration) >= 200
    seen = {feed.tobytes() for feed in calibration} | {feed.tobytes() for feed in evaluation}
    assert len(seen) == len(calibration) + len(evaluation)


def test_interface_is_opset_17_with_a_dynamic_batch(folder: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 17)]
    assert proto.ir_version <= 10
    (model_input,), (output,) = proto.graph.input, proto.graph.output
    dims = [dim.dim_param or dim.dim_value for dim in model_input.type.tensor_type.shape.dim]
    assert (model_input.name, dims) == ("image", ["N", *SHAPES[folder.name]])
    dims = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
    assert (output.name, dims) == ("logits", ["N", 10])


def test_names_are_unique_and_readable(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx").graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    assert not [tensor.name for tensor in graph.initializer if "::" in tensor.name]


def test_cnn_gives_the_passes_something_to_do(cnn: onnx.ModelProto) -> None:
    ops = Counter(node.op_type for node in cnn.graph.node)
    convolutions = [node for node in cnn.graph.node if node.op_type == "Conv"]
    assert ops["BatchNormalization"] == len(convolutions)
    assert ops["Add"] == 2
    assert ops["Gemm"] == 1
    weights = initializers(cnn)
    groups = [(attribute(node, "group", 1), weights[node.input[1]]) for node in convolutions]
    assert [shape[0] for group, shape in groups if group == shape[0] > 1] == [32, 64]
    assert all(shape[0] % 32 == 0 for _, shape in groups)


def test_transformer_is_made_of_plain_operators(transformer: onnx.ModelProto) -> None:
    ops = Counter(node.op_type for node in transformer.graph.node)
    weights = initializers(transformer)
    weighted = [n for n in transformer.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    assert {"MatMul", "Add", "LayerNormalization", "Softmax", "Erf", "Reshape", "Transpose"} <= set(ops)
    assert {domain.domain for domain in transformer.opset_import} == {""}
    assert len(weighted) == 1 + 2 * 6
    assert ops["MatMul"] - len(weighted) == 2 * 2
    assert (ops["LayerNormalization"], ops["Softmax"], ops["Erf"]) == (5, 2, 2)
