"""Writes models made by NNSmith (Liu et al., 2023) into a folder: ``python generate.py FOLDER COUNT``.

Runs in an environment of its own, since NNSmith wants an older numpy and PyTorch: ``pip install nnsmith torch onnx
"numpy<2" "setuptools<81"``. The models are made at random from valid operators; equal counts give equal graphs.
"""

from __future__ import annotations

import functools
import random
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from nnsmith.abstract.extension import activate_ext
from nnsmith.error import InternalError
from nnsmith.graph_gen import model_gen
from nnsmith.materialize import Model
from nnsmith.narrow_spec import auto_opset
from nnsmith.util import hijack_patch_requires

MOST_NODES = (3, 5, 8, 12)
TRIALS = 20


def main(folder: Path, count: int) -> None:
    """Write ``count`` models; a seed that NNSmith finds nothing for is passed over."""
    warnings.simplefilter("ignore")
    # NNSmith is older than the exporter that torch.onnx.export runs by default.
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    folder.mkdir(parents=True, exist_ok=True)
    kind = Model.init("onnx", backend_target="cpu")
    opset = _operators(kind)
    activate_ext(opset=opset)
    hijack_patch_requires([])
    written, seed = len(list(folder.glob("*.onnx"))), 0
    while written < count:
        seed += 1
        path = folder / f"{seed:05}.onnx"
        if path.exists():
            continue
        _seed(seed)
        try:
            made = model_gen(opset=opset, method="symbolic-cinit", seed=seed, max_nodes=MOST_NODES[seed % 4])
            model = kind.from_gir(made.make_concrete())
            model.refine_weights()
        except Exception:
            traceback.print_exc(limit=1)
            continue
        onnx.save(model.native_model, path)
        written += 1
    print(f"{written} models in {folder}")


def _operators(kind: Any) -> Any:
    """NNSmith finds out by random trials what it can export; one in a few of these breaks an assertion of its own."""
    for seed in range(TRIALS):
        _seed(seed)
        try:
            return auto_opset(kind)
        except InternalError:
            continue
    raise SystemExit(f"NNSmith failed {TRIALS} times to find its operators")


def _seed(seed: int) -> None:
    for set_seed in (random.seed, np.random.seed, torch.manual_seed):
        set_seed(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
