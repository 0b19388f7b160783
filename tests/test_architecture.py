"""What holds across the whole source, read from its syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphopt import errors
from graphopt.testing.cards import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for folder in ("graphopt", "passes") for p in (ROOT / folder).rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
GRAPH_CALLS = {"cleanup", "toposort", "fold_constants", "layer"}
CODE = re.compile(r"GO-\d{3}")


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def banned_graph_call(call: ast.Call) -> bool:
    """gs's own algorithms are quadratic, recursive or wrong on measured cases; model/ has replacements."""
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr in GRAPH_CALLS:
        return True
    return call.func.attr == "copy" and "graph" in ast.unparse(call.func.value).lower().split(".")[-1]


def unpickles(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    elif isinstance(node, ast.keyword):
        return node.arg == "allow_pickle" and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    else:
        return False
    return any(
        name.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"} for name in names
    )


def codes_in(tree: ast.Module) -> set[str]:
    strings = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return {text for text in strings if CODE.fullmatch(text)}


def test_the_source_is_found() -> None:
    assert "graphopt/errors.py" in TREES
    assert any(name.startswith("passes/") for name in TREES)
    assert not any(name.startswith("graphopt/passes") for name in TREES), "the symlink must not be walked twice"


@pytest.mark.parametrize(
    ("text", "banned"),
    [
        ("graph.cleanup()", True),
        ("model.graph.toposort()", True),
        ("ctx.model.graph.copy()", True),
        ("subgraph.copy()", True),
        ("options.copy()", False),
        ("graph_names.count(1)", False),
        ("cleanup()", False),
    ],
)
def test_the_graph_call_rule_itself(text: str, banned: bool) -> None:
    (call,) = calls(ast.parse(text))
    assert banned_graph_call(call) is banned


def test_graph_algorithms_are_called_in_the_model_layer_only() -> None:
    found = [
        f"{name}:{call.lineno}: {ast.unparse(call.func)}"
        for name, tree in TREES.items()
        if not name.startswith("graphopt/model/")
        for call in calls(tree)
        if banned_graph_call(call)
    ]
    assert not found, "use the editor and Model.finish() instead"


def test_nothing_is_unpickled() -> None:
    found = [name for name, tree in TREES.items() if any(unpickles(node) for node in ast.walk(tree))]
    assert not found, "a pickle runs code"
    assert unpickles(ast.parse("import pickle").body[0])


def test_only_the_command_line_prints() -> None:
    found = [
        f"{name}:{call.lineno}"
        for name, tree in TREES.items()
        if not name.startswith("graphopt/cli/")
        for call in calls(tree)
        if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]
    assert not found


def test_every_error_code_raised_is_registered() -> None:
    used = {code: name for name, tree in TREES.items() for code in codes_in(tree)}
    assert not {code: name for code, name in used.items() if code not in errors.CODES}


def test_every_code_goes_with_its_family() -> None:
    """The first digit of a code decides the class, and so the exit code."""
    found = []
    for name, tree in TREES.items():
        for call in calls(tree):
            cls = call.func.id if isinstance(call.func, ast.Name) else ""
            first = call.args[0] if call.args else None
            if isinstance(first, ast.Constant) and CODE.fullmatch(str(first.value)) and hasattr(errors, cls):
                family = FAMILIES[str(first.value)[3]].__name__
                if cls != family:
                    found.append(f"{name}:{call.lineno}: {cls}({first.value!r}) should be {family}")
    assert not found


def test_imports_point_one_way() -> None:
    """The contracts in pyproject.toml: layers, and who may know the passes."""
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
