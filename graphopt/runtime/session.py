"""onnxruntime sessions, opened one way everywhere.

A ``Model`` opens from its skeleton with the weights handed over in memory, so that no copy of the weights is
serialized; a file and plain bytes open as they are. A provider that was asked for and is not used is an
error, never a silent fall-back to the CPU; what onnxruntime would print to stderr becomes an exception.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import onnx

from graphopt.blackbox import doing
from graphopt.data.samples import Array, Feed
from graphopt.errors import RuntimeFailure
from graphopt.model.wellformed import needed_names
from graphopt.runtime.light import LIGHT_ABOVE, leave_in_files
from graphopt.runtime.providers import CPU, available_providers, require_available
from graphopt.runtime.target import ProviderSpec

if TYPE_CHECKING:
    import onnxruntime as ort

    from graphopt.model.model import Model

Optimization = Literal["none", "basic", "extended", "all"]
"""How far onnxruntime rewrites the graph on loading."""

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_FATAL = 4  # onnxruntime's severity: everything below is raised as an exception anyway


class RawSession(Protocol):
    """What graphopt uses of ``onnxruntime.InferenceSession``."""

    def get_inputs(self) -> Sequence[Any]:
        """Inputs, each with a ``name``."""
        ...

    def get_outputs(self) -> Sequence[Any]:
        """Outputs, each with a ``name``."""
        ...

    def get_providers(self) -> Sequence[str]:
        """Full names of the active providers."""
        ...

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], /) -> Sequence[Any]:
        """Values of the named outputs."""
        ...

    def end_profiling(self) -> str:
        """Stop the profiler and give the name of the file that it wrote."""
        ...


ProviderList = list[tuple[str, dict[str, str]]]
"""Provider names with their options, best first."""


@dataclass(frozen=True)
class Skeleton:
    """A model taken apart, as ``Model.skeleton`` gives it.

    Attributes:
        proto: the graph, with stubs for the larger weights.
        weights: those weights by name.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, Array]


class Backend(Protocol):
    """The part of onnxruntime that opens sessions; a test puts another in its place."""

    def available(self) -> Sequence[str]:
        """Full names of the providers offered."""
        ...

    def open(self, model: bytes | str, options: ort.SessionOptions, providers: ProviderList) -> RawSession:
        """Open model bytes or a model file (path as text) on ``providers``."""
        ...


class OnnxRuntime:
    """The real onnxruntime."""

    def available(self) -> Sequence[str]:
        """Full names of the providers offered."""
        return available_providers()

    def open(self, model: bytes | str, options: ort.SessionOptions, providers: ProviderList) -> RawSession:
        """Open a session. onnxruntime's own fall-back to the CPU is off: it prints, and hides the failure."""
        import onnxruntime as ort

        session = ort.InferenceSession(model, options, providers=providers, enable_fallback=0)
        return cast(RawSession, session)


@dataclass(frozen=True)
class Session:
    """A model that is ready to run.

    Attributes:
        input_names: names of the inputs, in the model's order.
        output_names: names of the outputs, in the model's order; extra outputs follow the model's own.
        providers: the active providers, the requested one first.
        provider: what was asked for.
        threads: intra-op threads; 0: onnxruntime's own choice.
        label: what to call the model in messages.
    """

    raw: RawSession
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    providers: tuple[str, ...]
    provider: ProviderSpec
    threads: int
    label: str
    _alive: tuple[object, ...] = ()

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run the model once.

        Args:
            feed: input name → array of the input's type and shape.
            outputs: names of the wanted outputs; ``None`` for all.

        Returns:
            Output name → array (a sequence output: a list).

        Raises:
            RuntimeFailure: GO-604, onnxruntime failed; holds the first line of its message.
        """
        names = self.output_names if outputs is None else tuple(outputs)
        try:
            values = self.raw.run(names, {name: _native(value) for name, value in feed.items()})
        except Exception as error:
            raise RuntimeFailure(
                "GO-604",
                f"{self.label} fails in onnxruntime",
                where=str(self.provider),
                why=first_line(error),
            ) from error
        return dict(zip(names, values, strict=True))


def open_session(
    model: Model | Skeleton | bytes | Path,
    *,
    provider: ProviderSpec | None = None,
    threads: int = 1,
    optimization: Optimization = "all",
    custom_op_libraries: Sequence[str] = (),
    extra_outputs: Sequence[str] = (),
    optimized_path: Path | None = None,
    profile_prefix: Path | None = None,
    config: Mapping[str, str] | None = None,
    light: bool = False,
    backend: Backend | None = None,
) -> Session:
    """Open a model in onnxruntime.

    Args:
        model: a Model or Skeleton (weights are handed over in memory), the bytes of a complete model, or a file.
        provider: where to run; the CPU provider when ``None``. The CPU provider always stands behind it for
            nodes that it does not take.
        threads: intra-op threads; 0 leaves the choice to onnxruntime.
        optimization: how far onnxruntime rewrites the graph.
        custom_op_libraries: shared libraries to register (native code: only on the user's word).
        extra_outputs: tensors of the top-level graph that the session returns after the model's own outputs.
        optimized_path: where onnxruntime writes the graph as it optimized it, without its larger weights.
        profile_prefix: how the file begins that onnxruntime's profiler writes; ``None``: it is off.
        config: further entries of the session's configuration, by onnxruntime's key.
        light: for a check, not for timing: of a Model with more than 256 MiB of weights, the session maps them from
            files and packs no copies of them. It runs slower, and a sum may differ in its last bits.
        backend: what opens the session; onnxruntime itself when ``None``.

    Raises:
        RuntimeFailure: GO-601, the provider is not offered; GO-602, it is offered but not used; GO-603, the
            model or a library does not open.
    """
    spec = provider or ProviderSpec()
    engine: Backend = backend or OnnxRuntime()
    require_available(spec, engine.available())
    options = _session_options(threads, optimization, custom_op_libraries, optimized_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    label = _label(model)
    source, alive = _source(model, extra_outputs, options, light=light)
    try:
        with doing(f"opening {label} in onnxruntime"):
            raw = engine.open(source, options, _provider_list(spec))
    except Exception as error:
        raise RuntimeFailure(
            "GO-603", f"{label} does not open in onnxruntime", where=str(spec), why=first_line(error)
        ) from error
    active = tuple(raw.get_providers())
    if spec.name not in active:
        raise RuntimeFailure(
            "GO-602",
            f"{spec.name} was requested, but onnxruntime does not use it",
            where=label,
            why=f"active: {', '.join(active) or 'none'}",
            hint="check the provider's driver and libraries, or ask for another provider",
        )
    return Session(
        raw=raw,
        input_names=tuple(x.name for x in raw.get_inputs()),
        output_names=tuple(x.name for x in raw.get_outputs()),
        providers=active,
        provider=spec,
        threads=threads,
        label=label,
        _alive=alive,
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _provider_list(spec: ProviderSpec) -> ProviderList:
    wanted: ProviderList = [(spec.name, dict(spec.options))]
    return wanted if spec.name == CPU else [*wanted, (CPU, {})]


def _session_options(
    threads: int, optimization: Optimization, libraries: Sequence[str], optimized_path: Path | None
) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if threads != 1:
        # Idle worker threads spin, and take the processors from the session that runs next: interleaved with another
        # session, a model on 2 threads of a 2-core machine took 50 ms instead of 33 ms. Alone it loses nothing by this.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[optimization])
    if optimized_path is not None:
        _write_graph(options, optimized_path)
    for library in libraries:
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            raise RuntimeFailure(
                "GO-603", "a custom-op library does not load", where=library, why=first_line(error)
            ) from error
    return options


def _write_graph(options: ort.SessionOptions, path: Path) -> None:
    """Have the optimized graph written without its weights: they may be too large for one protobuf, or for the disk."""
    options.optimized_model_filepath = str(path)
    weights = path.with_name(f"{path.name}.weights")
    with contextlib.suppress(OSError):  # where links cannot be made, the weights are written
        weights.symlink_to(os.devnull)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights.name)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")


def _label(model: Model | Skeleton | bytes | Path) -> str:
    if isinstance(model, bytes | Skeleton):
        return "the model"
    path = model if isinstance(model, Path) else model.path
    return path.name if path else "the model"


def _source(
    model: Model | Skeleton | bytes | Path,
    extra_outputs: Sequence[str],
    options: ort.SessionOptions,
    *,
    light: bool,
) -> tuple[bytes | str, tuple[object, ...]]:
    """What onnxruntime opens, and what must stay alive as long as the session."""
    if isinstance(model, Path) and not extra_outputs:
        return str(model), ()
    if isinstance(model, bytes):
        if not extra_outputs:
            return model, ()
        return _with_outputs(onnx.load_model_from_string(model), extra_outputs).SerializeToString(), ()
    if isinstance(model, Path):
        from graphopt.model.model import Model

        model = Model.open(model)
    taken = model if isinstance(model, Skeleton) else Skeleton(*model.skeleton())
    proto = onnx.ModelProto()
    proto.CopyFrom(taken.proto)
    _with_outputs(proto, extra_outputs)
    _drop_unread(proto.graph)
    weights, alive = taken.weights, tuple[object, ...]()
    if light and not isinstance(model, Skeleton) and sum(w.nbytes for w in weights.values()) > LIGHT_ABOVE:
        weights, alive = leave_in_files(proto, weights, model.store, options)
    alive += _hand_over(proto, weights, options)
    return proto.SerializeToString(), alive


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Takes out the stubs that nothing reads: onnxruntime removes them first and then refuses to be handed them."""
    read = {name for node in graph.node for name in needed_names(node)} | {value.name for value in graph.output}
    unread = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL} - read
    for values in (graph.initializer, graph.input):  # IR below 4 lists every initializer as an input too
        kept = [value for value in values if value.name not in unread]
        if len(kept) < len(values):
            del values[:]
            values.extend(kept)


def _hand_over(proto: onnx.ModelProto, weights: Mapping[str, Array], options: ort.SessionOptions) -> tuple[object, ...]:
    """Give the stubbed weights of ``proto`` to the session in memory."""
    # onnxruntime refuses names that the top-level graph does not hold.
    stubs = {t.name: t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    names = [name for name in weights if name in stubs]
    values = [_ort_value(weights[name], stubs[name].data_type) for name in names]
    if names:
        options.add_external_initializers(names, values)
    return (*values, *(weights[name] for name in names))


def _ort_value(array: Array, onnx_type: int) -> ort.OrtValue:
    import onnxruntime as ort

    whole = np.ascontiguousarray(array).reshape(array.shape)
    if whole.dtype.kind == "V" or whole.dtype.name.startswith(("bfloat16", "float8")):
        raw = whole.view(np.uint16 if whole.dtype.itemsize == 2 else np.uint8)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, onnx_type)
    return ort.OrtValue.ortvalue_from_numpy(whole)


def _native(value: Array) -> Any:
    """``value`` as onnxruntime's ``run`` takes it: types numpy does not know go in as an OrtValue."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and dtype.name.startswith(("bfloat16", "float8")):
        return _ort_value(value, onnx.helper.np_dtype_to_tensor_dtype(dtype))
    return value


def _with_outputs(proto: onnx.ModelProto, extra: Sequence[str]) -> onnx.ModelProto:
    """``proto`` with more outputs; they carry no type: onnxruntime infers it."""
    present = {value.name for value in proto.graph.output}
    known = {name for node in proto.graph.node for name in node.output}
    known |= {t.name for t in proto.graph.initializer} | {value.name for value in proto.graph.input}
    for name in dict.fromkeys(extra):
        if name in present:
            continue
        if name not in known:
            raise RuntimeFailure("GO-603", "the model has no such tensor", where=f"tensor {name}")
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return proto
