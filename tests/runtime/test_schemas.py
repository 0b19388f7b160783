"""What the installed onnxruntime says about itself."""

from __future__ import annotations

from graphopt.runtime.schemas import opens_version, runtime_domains


def test_the_standard_domains_and_its_own_are_known() -> None:
    assert {"", "ai.onnx.ml", "com.microsoft"} <= runtime_domains()


def test_versions_are_asked_for() -> None:
    assert opens_version(8, 13) is None
    assert "99" in (opens_version(99, 13) or "")
