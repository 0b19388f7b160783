"""What gets installed is what the tree holds, and what the README tells is what is tested."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from graphopt.pipeline.registry import GROUP, Registry

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_below(folder: Path, name: str) -> set[str]:
    found = set()
    for init in folder.rglob("__init__.py"):
        inner = init.parent.relative_to(folder).parts
        found.add(".".join((name, *inner)))
    return found


def readme_command(mark: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(rf"<!-- {mark} -->\n```bash\n(.*?)```", text, re.DOTALL)
    assert block, f"the README marks no command {mark!r}"
    return block.group(1)


def test_the_packages_list_equals_the_tree() -> None:
    """An explicit list, since a search loses the passes from the wheel that is built from the sdist."""
    tree = packages_below(ROOT / "graphopt", "graphopt") | packages_below(ROOT / "passes", "graphopt.passes")
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == tree


def test_every_folder_of_source_is_a_package() -> None:
    missing = [
        p.relative_to(ROOT).as_posix()
        for folder in ("graphopt", "passes")
        for p in (ROOT / folder).rglob("*.py")
        if not (p.parent / "__init__.py").is_file()
    ]
    assert not missing


def test_passes_is_one_committed_link() -> None:
    link = ROOT / "graphopt" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")


def test_no_top_level_passes_or_models_is_installed() -> None:
    tops = {name.split(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert tops == {"graphopt"}


def test_entry_points_are_installed_as_written() -> None:
    written = PROJECT["project"]["entry-points"][GROUP]
    installed = {e.name: e.value for e in entry_points(group=GROUP) if e.dist and e.dist.name == "graphopt"}
    assert installed == written


@pytest.mark.parametrize("name", sorted(PROJECT["project"]["entry-points"][GROUP]))
def test_every_built_in_pass_loads(name: str) -> None:
    cls = Registry.discover().load(name)
    assert cls.name == name


def test_pass_codes_are_unique() -> None:
    registry = Registry.discover()
    codes = [registry.load(name).code for name in registry.names()]
    assert len(codes) == len(set(codes))


def test_the_version_is_told_once() -> None:
    assert version("graphopt") == PROJECT["project"]["version"]
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_readme_commands_make_their_own_environment() -> None:
    for mark in ("try", "test"):
        command = readme_command(mark)
        assert command.startswith("python3 -m venv .venv\n")
        assert "pip install" in command
    assert "graphopt run models/" in readme_command("try")
    assert "-m pytest" in readme_command("test")


def test_ci_runs_the_readme_commands_and_ends_on_the_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme_command try" in script
    assert script.rstrip().splitlines()[-2:] == ['test -n "$tests"', 'bash -euo pipefail -c "$tests"']
