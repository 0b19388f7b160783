"""What the guides and the README show is run."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.pipeline.recipe import parse_recipe
from graphopt.testing import check_pass
from graphopt.testing.draft import Draft

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")])


def block(page: str, mark: str, language: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {mark} -->\n```{language}\n(.*?)```", text, re.DOTALL)
    assert found, f"{page} marks no {language} block {mark!r}"
    return found.group(1)


def negs(count: int) -> onnx.ModelProto:
    draft = Draft()
    x = draft.node("Relu", [draft.input("input", [2, 4])], "act")
    for index in range(count):
        x = draft.node("Neg", [x], f"neg{index}")
    draft.node("Softmax", [x], "output", axis=-1)
    draft.output("output", [2, 4])
    return draft.model(f"{count} negs")


def test_the_pass_of_the_guide_holds_the_contract() -> None:
    space: dict[str, Any] = {"__name__": "guide"}
    exec(block("docs/guides/writing-a-pass.md", "pass", "python"), space)
    check_pass(space["RemoveDoubleNeg"], models=[negs(n) for n in (1, 2, 3, 4)])
    check_pass(space["RemoveDoubleNeg"])


def test_the_pass_of_the_readme_works() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class RemoveDoubleNeg" in b)
    space: dict[str, Any] = {"__name__": "readme"}
    exec(code, space)
    with pytest.raises(AssertionError, match=r"breaks 1 rule\(s\).*\n.*card: the docstring lacks"):
        check_pass(space["RemoveDoubleNeg"], models=[negs(2)])


def test_the_python_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models" / "digits_cnn"
    folder.mkdir(parents=True)
    (folder / "model.onnx").symlink_to(ROOT / "models" / "digits_cnn" / "model.onnx")
    for part in ("calib", "eval"):
        with np.load(ROOT / "models" / "digits_cnn" / f"{part}.npz") as arrays:
            np.savez(folder / f"{part}.npz", **{name: arrays[name][:100] for name in arrays.files})
    monkeypatch.chdir(tmp_path)
    # The same call on fewer samples and without the clock: the result must not hang on how busy the machine is.
    code = block("README.md", "python", "python").replace("gates=", "measure=False,\n    gates=")
    exec(code, {"__name__": "readme"})
    original, smaller = (onnx.load(p) for p in ("models/digits_cnn/model.onnx", "smaller.onnx"))
    assert smaller.ByteSize() < original.ByteSize()
    onnx.checker.check_model(smaller, full_check=True)


@pytest.mark.parametrize("name", ["full", "small"])
def test_the_recipes_of_the_guide_are_valid(name: str) -> None:
    recipe = parse_recipe(block("docs/guides/recipes.md", name, "toml"), "the guide")
    assert recipe.passes
    assert parse_recipe(recipe.to_toml(), "again") == recipe


def test_the_samples_function_of_the_guide_gives_feeds() -> None:
    space: dict[str, Any] = {"__name__": "guide"}
    exec(textwrap.dedent(block("docs/guides/samples.md", "function", "python")), space)
    feeds = list(space["samples"]())
    assert feeds
    assert all(isinstance(value, np.ndarray) for feed in feeds for value in feed.values())


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing
