"""Installs throw-away passes the way a third party would: a distribution with an entry point."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

PASSES = '''
"""Third-party passes that go wrong, each in its own way."""

import numpy as np

from graphopt.pipeline.contract import Pass, PassOptions, PassResult, Safety, Site


class Breaker(Pass[PassOptions]):
    """Halves the last weight and calls it rounding."""

    name, code, safety = "breaker", "BRK", Safety.ROUNDING

    def run(self, ctx):
        for node in reversed(ctx.editor.nodes()):
            for index, tensor in enumerate(node.inputs):
                value = ctx.editor.constant(tensor)
                if value is not None and value.ndim > 1:
                    ctx.editor.set_constant(node, index, value * np.float32(0.5))
                    return PassResult(True, applied=(Site(node.name, "halved"),))
        return PassResult(False)


class Ballast(Pass[PassOptions]):
    """Right but slow: the first Relu's output goes through a long chain of Abs."""

    name, code, safety = "ballast", "BAL", Safety.EXACT

    def run(self, ctx):
        relu = next(n for n in ctx.editor.nodes() if n.op == "Relu")
        (value,) = relu.outputs
        consumers = ctx.editor.consumers(value)
        for _ in range(300):
            node = ctx.editor.add_node("Abs", [value])
            value = node.outputs[0]
        ctx.editor.replace_uses(relu.outputs[0], value, consumers=consumers)
        return PassResult(True, applied=(Site(relu.name, "300 Abs behind it"),))


class Crasher(Pass[PassOptions]):
    """Raises."""

    name, code, safety = "crasher", "CRA", Safety.EXACT

    def run(self, ctx):
        raise IndexError("seven of six")
'''


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the passes of ``PASSES`` discoverable for the rest of the test."""
    (folder / "rogue_passes.py").write_text(textwrap.dedent(PASSES))
    info = folder / "rogue_passes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rogue-passes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[graphopt.passes]\nbreaker = rogue_passes:Breaker\n"
        "ballast = rogue_passes:Ballast\ncrasher = rogue_passes:Crasher\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "rogue_passes", raising=False)
    importlib.invalidate_caches()
