"""Whether two models can stand side by side: the same feeds go into both, and their outputs can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.data.check import check_feed, describe, fed_defaults, is_float
from graphopt.data.samples import Samples
from graphopt.errors import ModelError, SampleError
from graphopt.model.interface import Interface, TensorSpec
from graphopt.model.model import Model

_SHOWN = 6
"""So many differences stand in the message: a model with a cache has an input and an output for each layer."""


def require_fit(first: Model, second: Model, *, outputs: bool) -> None:
    """Refuse two models that cannot be fed alike, from what they declare, before either runs.

    What the first takes with a default value may be gone from the second, where it was made a constant.

    Args:
        first: the one that the feeds are made for.
        second: must take what the first requires, and require nothing else.
        outputs: they are compared too: the second must give each output of the first.

    Raises:
        ModelError: GO-309, naming every input and output that differs.
    """
    found = list(_inputs(first.interface, second.interface))
    if outputs:
        found += _outputs(first.interface, second.interface)
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        same = "take the same inputs and give the same outputs" if outputs else "take the same inputs"
        raise ModelError(
            "GO-309",
            "the two models cannot be fed and compared alike" if outputs else "the two models cannot be fed alike",
            where=f"{first.path} and {second.path}",
            why="; ".join(found[:_SHOWN]) + more,
            hint=f"give two forms of one model, which {same}",
        )


def require_fed(first: Model, second: Model, samples: Samples) -> None:
    """Refuse feeds of the first model that the second cannot be run on.

    Raises:
        SampleError: GO-402, naming the input.
    """
    taken = {spec.name for spec in (*second.interface.inputs, *second.interface.overridable)}
    gone = sorted(fed_defaults(first.interface, samples) - taken)
    if gone:
        raise SampleError(
            "GO-402",
            f"the samples give values for {', '.join(gone)}, which the second model no longer takes",
            where=samples.source,
            why="it was made a constant there",
            hint="leave it out of the samples, or optimize with the samples given: then it stays an input",
        )
    if first.interface.inputs == second.interface.inputs:
        return  # feeds that were made for the first fit, and need not be read once more
    for index, feed in enumerate(samples):
        try:
            check_feed(feed, second.interface, f"sample {index} of {samples.source}, for {second.path}")
        except SampleError as error:
            if samples.synthetic:
                error.hint = "--shape and --dim set the sizes of synthetic inputs; --data gives real ones"
            raise


def _inputs(first: Interface, second: Interface) -> Iterator[str]:
    taken = {spec.name: spec for spec in (*second.inputs, *second.overridable)}
    for spec in first.inputs:
        other = taken.get(spec.name)
        if other is None:
            yield f"input {spec.name!r} {describe(spec)} is missing in the second"
        elif not _feeds_fit(spec, other):
            yield _both("input", spec, other)
    defaults = {spec.name: spec for spec in first.overridable}
    required = {spec.name for spec in first.inputs}
    for spec in second.inputs:
        default = defaults.get(spec.name)
        if default is not None and not _feeds_fit(spec, default):
            yield _both("input", default, spec)
        elif default is None and spec.name not in required:
            yield f"input {spec.name!r} {describe(spec)} is only in the second"


def _outputs(first: Interface, second: Interface) -> Iterator[str]:
    given = {spec.name: spec for spec in second.outputs}
    for spec in first.outputs:
        other = given.get(spec.name)
        if other is None:
            yield f"output {spec.name!r} {describe(spec)} is missing in the second"
        elif not (_comparable(spec, other) and _sizes_fit(spec, other)):
            yield _both("output", spec, other)


def _both(what: str, first: TensorSpec, second: TensorSpec) -> str:
    return f"{what} {first.name!r} is {describe(first)} in the first and {describe(second)} in the second"


def _feeds_fit(first: TensorSpec, second: TensorSpec) -> bool:
    """Whether some value goes into both: the runtime converts no types."""
    same_type = first.dtype == second.dtype or first.dtype is None or second.dtype is None
    return first.kind == second.kind and same_type and _sizes_fit(first, second)


def _comparable(first: TensorSpec, second: TensorSpec) -> bool:
    """Floats of any width compare as numbers, integers and booleans by equality."""
    if first.kind != second.kind:
        return False
    return first.dtype is None or second.dtype is None or _family(first.dtype) == _family(second.dtype)


def _family(dtype: np.dtype[Any]) -> str:
    return "float" if is_float(dtype) else "string" if dtype == np.dtype(object) else "discrete"


def _sizes_fit(first: TensorSpec, second: TensorSpec) -> bool:
    """Whether some shape is both; a size without a number may be any."""
    if first.shape is None or second.shape is None:
        return True
    return len(first.shape) == len(second.shape) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(first.shape, second.shape, strict=True)
    )
