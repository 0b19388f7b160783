"""What the training scripts share: sample splits, npz files, export to ONNX and its check.

Development only: needs PyTorch, onnx and onnxruntime. Run the scripts from the project's root, for example
``python -m models.digits_cnn.train``.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import nn

OPSET = 17


def seed_everything(seed: int) -> None:
    """Make a run repeat itself: one thread, one seed, deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def stratified_split(
    labels: npt.NDArray[np.int64], sizes: tuple[int, ...], seed: int
) -> tuple[npt.NDArray[np.int64], ...]:
    """Cut ``range(len(labels))`` into disjoint, shuffled parts with nearly equal class shares.

    Args:
        labels: Class ids, int64 ``[n]``.
        sizes: Sizes of all parts but the last, which takes the rest.
        seed: Seed of the shuffle.

    Returns:
        ``len(sizes) + 1`` arrays of indices, int64.
    """
    rng = np.random.default_rng(seed)
    # Sorting samples by their rank within their own class interleaves the classes in proportion.
    rank = np.empty(len(labels), dtype=np.float64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        rank[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(rank, kind="stable").astype(np.int64)
    cuts = np.cumsum(sizes)
    return tuple(rng.permutation(part) for part in np.split(order, cuts))


def save_samples(path: Path, name: str, feeds: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> None:
    """Write one npz: an array for the model's input (axis 0 = samples) and ``labels``."""
    arrays: dict[str, Any] = {name: feeds, "labels": labels}
    np.savez_compressed(path, **arrays)


def export(
    model: nn.Module, example: torch.Tensor, path: Path, *, input_name: str, keep_batch_norm: bool = False
) -> None:
    """Write a trained model as ONNX with a dynamic batch axis ``N`` and readable names.

    Args:
        model: The trained module, in eval mode.
        example: One example input.
        path: Target file.
        input_name: Name of the model's input.
        keep_batch_norm: Leave every BatchNormalization as a node of its own instead of folding it.
    """
    torch.onnx.export(
        model,
        (example,),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=[input_name],
        output_names=["logits"],
        dynamic_axes={input_name: {0: "N"}, "logits": {0: "N"}},
        training=torch.onnx.TrainingMode.PRESERVE if keep_batch_norm else torch.onnx.TrainingMode.EVAL,
        do_constant_folding=not keep_batch_norm,
    )
    proto = onnx.load(path)
    _name_anonymous_weights(proto)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _name_anonymous_weights(proto: onnx.ModelProto) -> None:
    """Name the weights that the exporter transposed (``onnx::MatMul_12``) after their module."""
    anonymous = {tensor.name: tensor for tensor in proto.graph.initializer if "::" in tensor.name}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name in anonymous:
                module = node.name.strip("/").rpartition("/")[0]
                readable = module.replace("/", ".") + ".weight"
                anonymous[name].name = readable
                node.input[index] = readable


def onnx_logits(path: Path, feeds: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Run a file in onnxruntime on one CPU thread; float32 logits ``[n, classes]``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits: npt.NDArray[np.float32] = session.run(["logits"], feeds)[0]
    return logits


def report(
    path: Path,
    input_name: str,
    model: nn.Module,
    feeds: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
) -> None:
    """Print the exported file's accuracy after asserting that it equals the module's own.

    Raises:
        SystemExit: The exported file and the module disagree on a label.
    """
    with torch.no_grad():
        own = model(torch.from_numpy(feeds)).numpy()
    logits = onnx_logits(path, {input_name: feeds})
    if not np.array_equal(own.argmax(1), logits.argmax(1)):
        raise SystemExit(f"{path.name}: the exported file disagrees with the trained module")
    correct = int((logits.argmax(1) == labels).sum())
    top = np.sort(logits, axis=1)
    print(f"correct on eval.npz: {correct} of {len(labels)} ({correct / len(labels):.2%})")
    print(f"largest difference to the module: {np.abs(own - logits).max():.2e}")
    print(f"smallest margin between the first and second class: {(top[:, -1] - top[:, -2]).min():.2e}")
    print(f"file: {path.stat().st_size:,} bytes")
