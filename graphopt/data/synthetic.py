"""Seeded synthetic feeds, for checking that a rewrite computes the same where the user gave no samples.

They say nothing about accuracy on real data, and are marked so. What matters is that the model runs on them:
integers stay inside the bounds of what they index, masks look like masks, and dynamic dimensions get sizes
that fit together.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.data.check import describe
from graphopt.data.samples import Array, Feed, Samples
from graphopt.errors import SampleError

if TYPE_CHECKING:
    from graphopt.model.interface import Interface, TensorSpec


def dynamic_dims(interface: Interface) -> dict[str, tuple[str, ...]]:
    """The dynamic dimensions of the inputs and where they stand.

    Returns:
        Name → places such as ``x[2]``. A dimension without a name is called ``INPUT.AXIS``.
    """
    places: dict[str, list[str]] = {}
    for spec in interface.inputs:
        for axis, size in enumerate(spec.shape or ()):
            if not isinstance(size, int):
                places.setdefault(_dim_name(spec, axis), []).append(f"{spec.name}[{axis}]")
    return {name: tuple(where) for name, where in places.items()}


def synthetic_samples(
    interface: Interface,
    *,
    seed: int,
    dims: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    bounds: Mapping[str, tuple[int, int]],
    count: int = 2,
) -> Samples:
    """Feeds made from a seed, one rule for each kind of input.

    Floats are normal (mean 0, deviation 1). Integers are uniform within their bounds; without bounds, 8-bit
    ones over their whole range and others 0 or 1. Integer and bool inputs with ``mask`` in their name are
    half ones, then zeros, along the last axis. Inputs with a default value are left out.

    Args:
        interface: the model's inputs.
        seed: feeds depend on it, on the input's name and on the feed's number only.
        dims: sizes of dynamic dimensions; those without one that stand first are 1.
        shapes: whole shapes of some inputs; they win over ``dims``, and name the sizes of their dimensions.
        bounds: input name → (least, largest), both inclusive, for integer inputs.
        count: how many feeds.

    Raises:
        SampleError: GO-402, a dynamic dimension has no size, or an input is no tensor of numbers.
    """
    for spec in interface.inputs:
        _require_tensor(spec)
    sizes = {**dict.fromkeys(_batch_dims(interface), 1), **_given_dims(interface, dims, shapes)}
    resolved = {spec.name: _shape(spec, sizes, shapes) for spec in interface.inputs}
    feeds: list[Feed] = [
        {spec.name: _values(spec, resolved[spec.name], seed, index, bounds.get(spec.name)) for spec in interface.inputs}
        for index in range(count)
    ]
    return Samples(tuple(feeds), source=f"synthetic, seed {seed}", synthetic=True)


def _dim_name(spec: TensorSpec, axis: int) -> str:
    assert spec.shape is not None
    size = spec.shape[axis]
    return size if isinstance(size, str) and size else f"{spec.name}.{axis}"


def _batch_dims(interface: Interface) -> frozenset[str]:
    firsts = (_dim_name(spec, 0) for spec in interface.inputs if spec.shape and not isinstance(spec.shape[0], int))
    return frozenset(firsts)


def _given_dims(interface: Interface, dims: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """What the user fixed: ``dims``, and the dimensions that ``shapes`` spell out."""
    specs = {spec.name: spec for spec in interface.inputs}
    known = dynamic_dims(interface)
    for name, size in dims.items():
        if size < 0:
            raise SampleError("GO-402", f"dimension {name!r} cannot be {size}")
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in specs:
            raise SampleError("GO-402", f"{name!r} is no input of the model", hint=f"inputs: {', '.join(specs)}")
        spec = specs[name]
        if spec.shape is None:
            continue
        if not _fits(spec.shape, shape):
            text = "x".join(map(str, shape))
            raise SampleError("GO-402", f"shape {text} does not fit input {name!r}, {describe(spec)}")
        found |= {_dim_name(spec, i): n for i, n in enumerate(shape) if not isinstance(spec.shape[i], int)}
    return {**{name: size for name, size in dims.items() if name in known}, **found}


def _fits(wanted: tuple[int | str | None, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        not isinstance(a, int) or a == b for a, b in zip(wanted, shape, strict=True)
    )


def _require_tensor(spec: TensorSpec) -> None:
    if spec.kind != "tensor" or spec.dtype is None:
        hint = "give real samples: --data module:function"
        raise SampleError("GO-402", f"cannot make up values for input {spec.name!r} ({spec.kind})", hint=hint)


def _shape(spec: TensorSpec, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if spec.name in shapes:
        return shapes[spec.name]
    if spec.shape is None:
        raise SampleError(
            "GO-402",
            f"the shape of input {spec.name!r} is unknown",
            hint=f"give it: --shape {spec.name}=1x3x224x224, or real samples: --data",
        )
    shape = []
    for axis, size in enumerate(spec.shape):
        name = _dim_name(spec, axis)
        if not isinstance(size, int) and name not in sizes:
            raise SampleError(
                "GO-402",
                f"the size of dimension {name!r} is unknown",
                where=f"input {spec.name} {describe(spec)}",
                hint=f"give it: --dim {name}=64, or real samples: --data",
            )
        shape.append(size if isinstance(size, int) else sizes[name])
    return tuple(shape)


def _values(spec: TensorSpec, shape: tuple[int, ...], seed: int, index: int, bounds: tuple[int, int] | None) -> Array:
    dtype = spec.dtype
    assert dtype is not None
    rng = np.random.default_rng([seed, index, zlib.crc32(spec.name.encode())])
    if dtype == np.dtype(object):
        return np.full(shape, "synthetic", dtype=object)
    if dtype.kind in "iub":
        return _integers(spec.name, dtype, shape, rng, bounds)
    values: Array = rng.standard_normal(shape)
    if dtype.kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return np.asarray(values).astype(dtype)


def _integers(
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    rng: np.random.Generator,
    bounds: tuple[int, int] | None,
) -> Array:
    if "mask" in name.lower() and bounds is None:
        ones = np.zeros(shape, dtype)
        if shape:
            ones[..., : (shape[-1] + 1) // 2] = 1
        else:
            ones = np.ones(shape, dtype)
        return ones
    low, high = bounds or _default_bounds(dtype)
    return np.asarray(rng.integers(low, high, size=shape, endpoint=True)).astype(dtype)


def _default_bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return int(limits.min), int(limits.max)
    return 0, 1
