"""Feeds against the model's interface: every sample is checked before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data.samples import Array
from graphopt.errors import SampleError
from graphopt.nearest import did_you_mean

if TYPE_CHECKING:
    from graphopt.model.interface import Interface, TensorSpec


def describe(spec: TensorSpec) -> str:
    """Type and shape of an input, e.g. ``float32[N,3,224,224]``; ``?`` is a size without a name."""
    if spec.kind != "tensor" or spec.dtype is None:
        return spec.kind
    name = "string" if spec.dtype == np.dtype(object) else str(spec.dtype.name)
    if spec.shape is None:
        return f"{name} of any shape"
    return f"{name}[{','.join('?' if size is None else str(size) for size in spec.shape)}]"


def describe_array(array: Array) -> str:
    """Type and shape of an array, e.g. ``float64[1,28,28]``."""
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]"


def check_feed(feed: Mapping[str, Any], interface: Interface, where: str) -> dict[str, Array]:
    """The feed as read-only arrays, after checking it against the interface.

    Args:
        feed: input name → value; anything numpy makes an array of without conversion.
        interface: the model's inputs. Inputs with a default value may be left out.
        where: which sample this is, for messages.

    Raises:
        SampleError: GO-402, names, types, ranks or fixed sizes differ; GO-404, a value is NaN or infinite.
    """
    specs = {spec.name: spec for spec in (*interface.inputs, *interface.overridable)}
    check_names(feed, interface, where)
    return {name: _checked(specs[name], value, where) for name, value in feed.items()}


def check_names(names: Iterable[str], interface: Interface, where: str) -> None:
    """Check that exactly the model's inputs are there; those with a default value may be left out.

    Raises:
        SampleError: GO-402, a name is missing or unknown.
    """
    given = set(names)
    required = [spec.name for spec in interface.inputs]
    allowed = [*required, *(spec.name for spec in interface.overridable)]
    missing = [name for name in required if name not in given]
    extra = sorted(given.difference(allowed))
    if not missing and not extra:
        return
    parts = [f"no array for input {name!r}" for name in missing]
    parts += [f"{name!r} is no input of the model" for name in extra]
    raise SampleError(
        "GO-402",
        "; ".join(parts),
        where=where,
        why=f"the model's inputs are {', '.join(f'{s.name} {describe(s)}' for s in interface.inputs)}",
        hint=_name_hint(missing, extra, allowed),
    )


def fed_defaults(interface: Interface, *sources: Iterable[Mapping[str, Any]] | None) -> frozenset[str]:
    """Inputs with a default value for which some sample gives a value all the same.

    Args:
        interface: the model's inputs; without one that has a default, no sample is read.
        sources: samples, or ``None`` where there are none.
    """
    names = {spec.name for spec in interface.overridable}
    if not names:
        return frozenset()
    return frozenset(name for source in sources if source is not None for feed in source for name in feed).intersection(
        names
    )


def _name_hint(missing: list[str], extra: list[str], allowed: list[str]) -> str:
    for name in extra:
        if near := did_you_mean(name, missing or allowed):
            return f"{name!r} is no input of the model: {near}"
    if len(missing) == len(extra) == 1:
        return f"rename {extra[0]!r} to {missing[0]!r}"
    return "name each array after the input it feeds"


def _checked(spec: TensorSpec, value: Any, where: str) -> Array:
    if spec.kind != "tensor" or spec.dtype is None:
        unchecked: Array = value  # sequences, maps and optionals go to onnxruntime as they are
        return unchecked
    array = _typed(spec, np.asarray(value, order="C"), where)
    _check_shape(spec, array, where)
    if is_float(array.dtype) and not bool(np.isfinite(array).all()):
        bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
        raise SampleError(
            "GO-404",
            f"input {spec.name!r} holds {bad} NaN or infinite value{'s' if bad > 1 else ''}",
            where=where,
            hint="leave the sample out, or mend what makes it",
        )
    view = array.view()
    view.flags.writeable = False
    return view


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values of this type can be NaN or infinite; the small floats of ml_dtypes count."""
    return dtype.kind in "fc" or dtype.name.startswith(("bfloat16", "float8"))


def _typed(spec: TensorSpec, array: Array, where: str) -> Array:
    wanted = spec.dtype
    assert wanted is not None
    if array.dtype == wanted:
        return array
    if wanted == np.dtype(object) and array.dtype.kind in "UT":
        return array.astype(object)
    # npz files keep the types of ml_dtypes (bfloat16 …) as plain bytes of the same size.
    if array.dtype == np.dtype(f"V{wanted.itemsize}") and wanted.isbuiltin != 1:
        return array.view(wanted)
    # npz files hold text as numpy's str; an array of objects would need pickle.
    name = "str" if wanted == np.dtype(object) else wanted.name
    raise SampleError(
        "GO-402",
        f"input {spec.name!r} expects {describe(spec)}, the sample holds {describe_array(array)}",
        where=where,
        hint=f"store it as {name}: array.astype({name!r})",
    )


def _check_shape(spec: TensorSpec, array: Array, where: str) -> None:
    if spec.shape is None:
        return
    fits = len(spec.shape) == array.ndim and all(
        not isinstance(size, int) or size == real for size, real in zip(spec.shape, array.shape, strict=True)
    )
    if fits:
        return
    raise SampleError(
        "GO-402",
        f"input {spec.name!r} expects {describe(spec)}, the sample holds {describe_array(array)}",
        where=where,
        hint=_shape_hint(spec.shape, array),
    )


def _shape_hint(shape: tuple[int | str | None, ...], array: Array) -> str:
    if array.ndim == len(shape) - 1:
        return "add the batch axis: array[None]"
    swapped = array.shape[:1] + array.shape[-1:] + array.shape[1:-1]
    if array.ndim == len(shape) == 4 and _same(shape, swapped):
        return "the channels stand last, the model wants them first: array.transpose(0, 3, 1, 2)"
    swapped = array.shape[:1] + array.shape[2:] + array.shape[1:2]
    if array.ndim == len(shape) == 4 and _same(shape, swapped):
        return "the channels stand first, the model wants them last: array.transpose(0, 2, 3, 1)"
    return "bring the samples to the model's shape"


def _same(shape: tuple[int | str | None, ...], real: tuple[int, ...]) -> bool:
    return all(not isinstance(a, int) or a == b for a, b in zip(shape, real, strict=True))
