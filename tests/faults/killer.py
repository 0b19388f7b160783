"""Kills writers at random moments, and looks at what they leave. Run as ``python -m tests.faults.killer``.

A process of its own, without threads, so that it can fork: each writer is a copy that has everything imported.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphopt.model import save
from graphopt.model.model import Model

SIZE = 1000
"""Rows and columns of each of two weights: 8 MB a model, so that a save takes long enough to be hit."""


def model_of(number: int) -> Model:
    """A model that its number tells from every other."""
    rng = np.random.default_rng(number)
    weights = [numpy_helper.from_array(rng.random((SIZE, SIZE), dtype=np.float32), name) for name in ("a", "b")]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIZE]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, f"number {number}", ends[:1], ends[1:], weights)
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def main(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Kill ``kills`` writers of one target.

    Returns:
        How often the target was the old or the new model, how often something was left behind by a killed writer,
        and every fault found.
    """
    chance = random.Random(seed)
    target = folder / "model.onnx"
    models = [model_of(0), model_of(1)]
    prints = [model.fingerprint() for model in models]
    seen = {"old": 0, "new": 0, "left behind": 0}
    faults: list[str] = []
    current = 0
    _place(models[0], target, external=True)
    longest = max(_duration(models[0], target) for _ in range(3))
    for index in range(kills):
        external, how = index % 4 != 3, signal.SIGKILL if index % 5 != 4 else signal.SIGTERM
        writer = _start(models[1 - current], target, external)
        time.sleep(chance.random() * longest * 1.3)
        os.kill(writer, how)
        os.waitpid(writer, 0)
        found = _fingerprint(target)
        if found not in prints:
            faults.append(f"kill {index}: the target is neither model: {found}")
            _place(models[current], target, external=True)
            continue
        seen["new" if found == prints[1 - current] else "old"] += 1
        current = prints.index(found)
        seen["left behind"] += len(_names(folder)) > 2
        if index % 5 == 0:
            _place(models[current], target, external=True)
            if len(_names(folder)) != 2:
                faults.append(f"kill {index}: the next save left {_names(folder)}")
    return {**seen, "faults": faults}


def _place(model: Model, target: Path, *, external: bool) -> None:
    save.EXTERNAL_LIMIT = 1024 if external else 1 << 31
    model.save(target, overwrite=True)


def _duration(model: Model, target: Path) -> float:
    started = time.perf_counter()
    os.waitpid(_start(model, target, external=True), 0)
    return time.perf_counter() - started


def _start(model: Model, target: Path, external: bool) -> int:
    writer = os.fork()
    if writer == 0:
        _place(model, target, external=external)
        os._exit(0)
    return writer


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _fingerprint(target: Path) -> str:
    try:
        return Model.open(target).fingerprint()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
