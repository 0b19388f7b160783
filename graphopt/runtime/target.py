"""What the result is meant to run on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ProviderSpec:
    """One onnxruntime execution provider and its options.

    Attributes:
        name: full onnxruntime name, e.g. ``CPUExecutionProvider``.
        options: provider options as onnxruntime takes them.
    """

    name: str = "CPUExecutionProvider"
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = ",".join(f"{k}={v}" for k, v in sorted(self.options.items()))
        return f"{self.name}:{inside}" if inside else self.name


@dataclass(frozen=True)
class Target:
    """Where and how the model will run.

    Attributes:
        providers: the providers to validate and time on; the first one is the one passes optimize for.
        threads: intra-op threads, ≥ 1; 0 leaves the choice to onnxruntime.
        custom_op_libraries: shared libraries to register in each session; native code, so only if asked for.
    """

    providers: tuple[ProviderSpec, ...] = (ProviderSpec(),)
    threads: int = 1
    custom_op_libraries: tuple[str, ...] = ()

    @property
    def provider(self) -> ProviderSpec:
        """The provider that passes optimize for."""
        return self.providers[0]
