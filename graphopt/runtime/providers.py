"""onnxruntime's execution providers: what is there, and how a user names one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphopt.errors import RuntimeFailure, UsageError
from graphopt.nearest import did_you_mean
from graphopt.runtime.target import ProviderSpec

CPU = "CPUExecutionProvider"

ALIASES: dict[str, str] = {
    "gpu": "CUDAExecutionProvider",
    "trt": "TensorrtExecutionProvider",
    "onednn": "DnnlExecutionProvider",
    "directml": "DmlExecutionProvider",
    "nv_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
}
"""Short names that are not simply onnxruntime's own without ``ExecutionProvider``."""

_OPTION = re.compile(r"^[A-Za-z_][\w.\-]*=")


def available_providers() -> list[str]:
    """The full names of the providers this onnxruntime was built with, in its own order of preference."""
    import onnxruntime as ort

    return list(ort.get_available_providers())


def parse_provider(text: str, *, available: Sequence[str] | None = None) -> ProviderSpec:
    """Read a provider as a user writes it.

    ``cpu``, ``CUDAExecutionProvider`` and ``cuda:device_id=0,arena_extend_strategy=kSameAsRequested`` are all
    understood; case does not matter in names.

    Args:
        text: name, or ``NAME:key=value,key=value``. A comma only ends an option where another ``key=``
            follows, so that values may hold commas.
        available: what onnxruntime offers; ``None`` asks it.

    Raises:
        UsageError: GO-201, an option is not ``key=value``.
        RuntimeFailure: GO-601, onnxruntime does not offer such a provider; the message lists those it does.
    """
    name, _, options = text.strip().partition(":")
    offered = list(available_providers() if available is None else available)
    return ProviderSpec(_full_name(name.strip(), offered), _options(options, text))


def require_available(spec: ProviderSpec, available: Sequence[str] | None = None) -> None:
    """Check that onnxruntime offers the provider.

    Raises:
        RuntimeFailure: GO-601, it does not; the message lists those it does.
    """
    offered = list(available_providers() if available is None else available)
    if spec.name not in offered:
        raise _not_available(spec.name, offered)


def _full_name(name: str, offered: list[str]) -> str:
    key = name.lower()
    names = {full.lower(): full for full in offered}
    names |= {short(full): full for full in offered}
    names |= {alias: full for alias, full in ALIASES.items() if full in offered}
    if key in names:
        return names[key]
    raise _not_available(name, offered)


def short(full: str) -> str:
    """The short name of a provider: ``cpu`` for ``CPUExecutionProvider``."""
    return full.removesuffix("ExecutionProvider").lower()


def _not_available(name: str, offered: list[str]) -> RuntimeFailure:
    others = "other providers come with other onnxruntime packages, e.g. onnxruntime-gpu for CUDA and TensorRT"
    return RuntimeFailure(
        "GO-601",
        f"onnxruntime offers no execution provider {name!r} here",
        where=f"provider {name}",
        why=f"available: {', '.join(offered)}",
        hint=f"{did_you_mean(name.lower(), map(short, offered))} {others}".lstrip(),
    )


def _options(text: str, whole: str) -> dict[str, str]:
    options: dict[str, str] = {}
    last = ""
    for part in text.split(",") if text else []:
        if _OPTION.match(part.strip()):
            last, _, value = part.strip().partition("=")
            options[last] = value
        elif last:
            options[last] += "," + part
        else:
            raise UsageError(
                "GO-201",
                f"cannot read the provider options {text!r}",
                where=f"provider {whole}",
                hint="write NAME:key=value,key=value, e.g. cuda:device_id=0",
            )
    return options
