"""What the installed onnxruntime says about itself."""

from __future__ import annotations

import pytest

from graphopt.runtime.providers import available_providers
from graphopt.runtime.schemas import has_kernel, opens_version, runtime_domains
from graphopt.runtime.target import ProviderSpec


def test_the_standard_domains_and_its_own_are_known() -> None:
    assert {"", "ai.onnx.ml", "com.microsoft"} <= runtime_domains()


def test_versions_are_asked_for() -> None:
    assert opens_version(8, 13) is None
    assert "99" in (opens_version(99, 13) or "")


@pytest.mark.parametrize(
    ("op", "opset"), [("HardSigmoid", 7), ("Softplus", 12), ("Gelu", 20), ("InstanceNormalization", 9)]
)
def test_operators_with_a_kernel(op: str, opset: int) -> None:
    shapes = [(1, 2, 4, 4), (2,), (2,)] if op == "InstanceNormalization" else [(1, 2, 4, 4)]
    assert has_kernel(op, opset, shapes=shapes)


def test_what_only_runs_as_a_function_of_others_has_no_kernel() -> None:
    """Sessions open all the same: onnxruntime 1.32 expands them into Softplus, Tanh and Mul, and so on."""
    assert not has_kernel("Mish", 18)
    assert not has_kernel("HardSwish", 14)
    assert not has_kernel("GroupNormalization", 21, shapes=[(1, 4, 2, 2), (4,), (4,)], num_groups=2)


def test_no_kernel_before_the_operator_exists_or_where_the_provider_is_missing() -> None:
    assert not has_kernel("Gelu", 19)
    assert not has_kernel("HardSigmoid", 12, provider=ProviderSpec("NoSuchExecutionProvider"))


def test_what_another_provider_leaves_to_the_cpu_is_not_its_own() -> None:
    """onnxruntime's Azure provider runs none of the operators itself; a session with it opens, on the CPU provider."""
    azure = ProviderSpec("AzureExecutionProvider")
    if azure.name not in available_providers():
        pytest.skip("this onnxruntime has no second provider")
    assert not has_kernel("HardSigmoid", 12, provider=azure)
