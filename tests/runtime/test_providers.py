from __future__ import annotations

import pytest

from graphopt.errors import RuntimeFailure, UsageError
from graphopt.runtime.providers import available_providers, parse_provider, require_available
from graphopt.runtime.target import ProviderSpec

OFFERED = [
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "OpenVINOExecutionProvider",
    "DmlExecutionProvider",
    "CoreMLExecutionProvider",
    "CPUExecutionProvider",
]


def test_the_cpu_provider_is_always_there():
    assert "CPUExecutionProvider" in available_providers()
    assert parse_provider("cpu") == ProviderSpec()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("CPU", "CPUExecutionProvider"),
        ("cpuexecutionprovider", "CPUExecutionProvider"),
        ("cuda", "CUDAExecutionProvider"),
        ("gpu", "CUDAExecutionProvider"),
        ("CUDAExecutionProvider", "CUDAExecutionProvider"),
        ("tensorrt", "TensorrtExecutionProvider"),
        ("trt", "TensorrtExecutionProvider"),
        ("openvino", "OpenVINOExecutionProvider"),
        ("directml", "DmlExecutionProvider"),
        ("dml", "DmlExecutionProvider"),
        ("coreml", "CoreMLExecutionProvider"),
    ],
)
def test_short_and_full_names_in_any_case(text, name):
    assert parse_provider(text, available=OFFERED).name == name


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("cuda", {}),
        ("cuda:", {}),
        ("cuda:device_id=0", {"device_id": "0"}),
        ("cuda:device_id=0,x=y", {"device_id": "0", "x": "y"}),
        ("cuda: device_id=0, x=y", {"device_id": "0", "x": "y"}),
        ("cuda:path=C:\\a,other=b=c", {"path": "C:\\a", "other": "b=c"}),
        ("cuda:shapes=a:1x3,b:2,device_id=1", {"shapes": "a:1x3,b:2", "device_id": "1"}),
    ],
)
def test_options(text, options):
    spec = parse_provider(text, available=OFFERED)
    assert spec.options == options
    assert parse_provider(str(spec), available=OFFERED) == spec


def test_an_absent_provider_is_refused_listing_those_there_are():
    with pytest.raises(RuntimeFailure) as caught:
        parse_provider("cudda", available=OFFERED)
    assert caught.value.code == "GO-601"
    assert all(name in caught.value.why for name in OFFERED)
    assert "'cuda'" in caught.value.hint
    with pytest.raises(RuntimeFailure):
        require_available(ProviderSpec("CUDAExecutionProvider"), ["CPUExecutionProvider"])


@pytest.mark.parametrize("text", ["cuda:0", "cuda:device_id", "cuda:=1"])
def test_options_that_are_no_pairs_are_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_provider(text, available=OFFERED)
    assert caught.value.code == "GO-201"
