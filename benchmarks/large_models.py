"""What large models cost: anonymous memory of a 3 GB model, and the time 50,000 nodes take.

``python benchmarks/large_models.py`` makes seeded models in a temporary folder, which is removed at the end, and runs

- ``copy``: open and save, untouched;
- ``prune``: ``graphopt run`` with simplify and prune-weights, the manager's checks included, under ``--max-memory
  600MB``; nothing is timed (a session that is timed packs its weights as onnxruntime does by default, and so holds a
  copy of them);
- ``inline``: open and save a model with its weights inside the file, below protobuf's 2 GiB;
- ``nodes``: open, simplify and save 50,000 nodes that share their scales, on one core; half as many beside it.

Each runs in a process of its own. Anonymous memory is the largest ``RssAnon`` in ``/proc/PID/status`` of that process
and its children together, sampled every 10 ms: what cannot be given back to a file. Pages of mapped files, which the
kernel may drop at any time, are not part of it. Needs Linux and, at full size, 11 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GRAPHOPT = [sys.executable, "-m", "graphopt"]
WIDTH = 4096
COPY = "import sys; from graphopt import Model; Model.open(sys.argv[1]).save(sys.argv[2])"
SIMPLIFY = """
import sys, time
from graphopt import Model
from graphopt.analysis.cache import Analyses
from graphopt.passes.simplify import Simplify
from graphopt.pipeline.contract import PassContext
from graphopt.pipeline.selection import Selection
from graphopt.runtime.target import Target

started = time.process_time()
def lap(name):
    print(f"{name} {time.process_time() - started:.2f}")
source = Model.open(sys.argv[1])
model = source.clone()
lap("open")
context = PassContext(model, source, Analyses(model), Selection.of(model), None, Target())
result = Simplify(Simplify.Options()).run(context)
lap("simplify")
model.finish()
lap("finish")
model.save(sys.argv[2])
lap("save")
print(f"{result.summary['nodes_before']} -> {result.summary['nodes_after']} nodes")
"""


@dataclass(frozen=True)
class Cost:
    """What one process took.

    Attributes:
        anonymous: peak bytes of anonymous memory, children included.
        seconds: wall time.
        cpu: seconds of processor time, user and system, children included.
        output: what it printed.
    """

    anonymous: int
    seconds: float
    cpu: float
    output: str


def measured(command: Sequence[str], *, one_core: bool = False) -> Cost:
    """Run a command and watch it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pin: Callable[[], None] | None = _pinned if one_core else None
    before, started, peak = _cpu(), time.perf_counter(), 0
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, preexec_fn=pin)  # noqa: PLW1509
        while child.poll() is None:
            peak = max(peak, sum(_anonymous(pid) for pid in _family(child.pid)))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        log.seek(0)
        output = log.read().decode()
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}\n{output}\nexit code {child.returncode}")
    return Cost(peak, seconds, _cpu() - before, output)


def _pinned() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in _family(int(child)))]


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


def write_layers(folder: Path, gigabytes: float, *, inline: bool) -> Path:
    """A chain of layers (Identity, MatMul, Add, Relu) with random float32 weights of [4096, 4096]."""
    count = max(1, round(gigabytes * 1e9 / (4 * WIDTH * WIDTH)))
    rng = np.random.default_rng(0)
    path = folder / "layers.onnx"
    nodes, tensors = [], []
    with (folder / "layers.data").open("wb") as data:
        for i in range(count):
            source = f"x{i}"
            nodes.append(helper.make_node("Identity", [source], [f"i{i}"], f"identity{i}"))
            nodes.append(helper.make_node("MatMul", [f"i{i}", f"w{i}"], [f"m{i}"], f"matmul{i}"))
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"], f"add{i}"))
            nodes.append(helper.make_node("Relu", [f"a{i}"], [f"x{i + 1}"], f"relu{i}"))
            weight = rng.standard_normal((WIDTH, WIDTH), np.float32) * np.float32((2 / WIDTH) ** 0.5)
            tensors.append(_stored(f"w{i}", weight, data, inline=inline))
            bias = rng.standard_normal(WIDTH, np.float32) * np.float32(0.1)
            tensors.append(numpy_helper.from_array(bias, f"b{i}"))
    value = helper.make_tensor_value_info
    x, y = value("x0", TensorProto.FLOAT, [1, WIDTH]), value(f"x{count}", TensorProto.FLOAT, [1, WIDTH])
    _write(path, helper.make_graph(nodes, "layers", [x], [y], tensors))
    return path


def _stored(name: str, weight: np.ndarray, data, *, inline: bool) -> onnx.TensorProto:
    if inline:
        return numpy_helper.from_array(weight, name)
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=weight.shape, data_location=TensorProto.EXTERNAL)
    place = {"location": "layers.data", "offset": str(data.tell()), "length": str(weight.nbytes)}
    for key, text in place.items():
        tensor.external_data.add(key=key, value=text)
    data.write(weight.data)
    return tensor


def write_nodes(folder: Path, count: int) -> Path:
    """A chain of ``count`` nodes, ten a layer; every scale, zero point and bias is one tensor that all layers share."""
    nodes = []
    for i in range(count // 10):
        at = [f"x{i}", *(f"t{i}_{k}" for k in range(9)), f"x{i + 1}"]
        layer = [
            ("QuantizeLinear", ["scale", "zero"]),
            ("DequantizeLinear", ["scale", "zero"]),
            ("Mul", ["gain"]),
            ("Add", ["bias"]),
            ("Identity", []),
            ("Relu", []),
            ("Mul", ["one"]),
            ("Transpose", []),
            ("Transpose", []),
            ("Sigmoid", []),
        ]
        nodes += [helper.make_node(op, [at[k], *more], [at[k + 1]], f"n{i}_{k}") for k, (op, more) in enumerate(layer)]
    shared = {"scale": np.float32(0.05), "zero": np.uint8(7), "gain": np.float32(1.5), "one": np.float32(1)}
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in shared.items()]
    tensors.append(numpy_helper.from_array(np.linspace(-1, 1, 8, dtype=np.float32), "bias"))
    value = helper.make_tensor_value_info
    x, y = value("x0", TensorProto.FLOAT, [4, 8]), value(f"x{count // 10}", TensorProto.FLOAT, [4, 8])
    path = folder / f"nodes{count}.onnx"
    _write(path, helper.make_graph(nodes, "nodes", [x], [y], tensors))
    return path


def _write(path: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def copy(folder: Path, gigabytes: float) -> None:
    """Open and save, weights in a data file."""
    model = write_layers(folder, gigabytes, inline=False)
    _print("copy", measured([sys.executable, "-c", COPY, str(model), str(folder / "out.onnx")]))


def inline(folder: Path, gigabytes: float) -> None:
    """Open and save, weights inside the file."""
    model = write_layers(folder, min(gigabytes, 1.8), inline=True)
    _print("inline", measured([sys.executable, "-c", COPY, str(model), str(folder / "out.onnx")]))


def prune(folder: Path, gigabytes: float) -> None:
    """``graphopt run`` with simplify and prune-weights."""
    model = write_layers(folder, gigabytes, inline=False)
    words = ["run", str(model), "-o", str(folder / "out.onnx"), "--pass", "simplify", "--pass", "prune-weights"]
    cost = measured([*GRAPHOPT, *words, "--no-measure", "--max-memory", "600MB", "-q"])
    print(cost.output)
    _print("prune", cost)


def nodes(folder: Path, gigabytes: float) -> None:
    """Open, simplify and save many small nodes."""
    for count in (25_000, 50_000):
        model = write_nodes(folder, count)
        cost = measured([sys.executable, "-c", SIMPLIFY, str(model), str(folder / f"out{count}.onnx")], one_core=True)
        _print(f"nodes {count}", cost)
        print(cost.output)


BENCHMARKS = {"copy": copy, "prune": prune, "inline": inline, "nodes": nodes}


def _print(name: str, cost: Cost) -> None:
    figures = f"{cost.anonymous / 1e6:>7.0f} MB anonymous {cost.seconds:>8.1f} s {cost.cpu:>8.1f} s CPU"
    print(f"{name:<14}{figures}", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--gigabytes", type=float, default=3.0, help="weights of the large model (default 3)")
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes; default: the system's")
    words = parser.parse_args()
    for name in words.names or BENCHMARKS:
        folder = Path(tempfile.mkdtemp(prefix="graphopt-large-", dir=words.folder))
        try:
            BENCHMARKS[name](folder, words.gigabytes)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
