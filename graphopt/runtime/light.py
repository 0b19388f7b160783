"""Sessions that leave weights in their files.

Weights in memory are copied by a session (measured: 470 MB for 470 MB), and packed into another copy; those in files
are mapped, and packing can be turned off.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from graphopt.model.arrays import Array, stored_size
from graphopt.model.store import WeightStore

if TYPE_CHECKING:
    import onnxruntime as ort

try:
    import resource
except ImportError:  # only POSIX has it
    resource = None  # type: ignore[assignment]

LIGHT_ABOVE = 1 << 28
"""Bytes of weights above which a session that only checks leaves them in their files."""
_PAGE = 1 << 16


def leave_in_files(
    proto: onnx.ModelProto, weights: Mapping[str, Array], store: WeightStore, options: ort.SessionOptions
) -> tuple[dict[str, Array], tuple[object, ...]]:
    """Give the stubs of ``proto`` the places of their bytes, for onnxruntime to map.

    onnxruntime takes files beneath one folder only: the root.

    Returns:
        The weights that lie in no file, and what must stay alive as long as the session.
    """
    options.add_session_config_entry("session.disable_prepacking", "1")
    folder = Path(Path.cwd().anchor)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    rest = dict(weights)
    mapped = 0
    for tensor in proto.graph.initializer:
        array = weights.get(tensor.name)
        place = None if array is None or stored_size(array) != array.nbytes else store.placed(array)
        if place is None or place.map.path.anchor != folder.anchor:
            continue
        where = {"location": place.map.path.relative_to(folder), "offset": place.offset, "length": place.length}
        del tensor.external_data[:]
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        del rest[tensor.name]
        mapped += place.length + _PAGE
    return rest, (_Allowance(mapped), *weights.values())


class _Allowance:
    """Room in the process's limit on data, for as long as the object lives.

    onnxruntime maps files privately and writable. It never writes to them, so that they take no memory, but the limit
    counts them.
    """

    def __init__(self, size: int) -> None:
        if resource is None or resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
            return
        weakref.finalize(self, _raise_limit, -_raise_limit(size))


def _raise_limit(by: int) -> int:
    """Raises the limit, as far as it goes; gives by how much."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    raised = soft + by if hard == resource.RLIM_INFINITY else min(soft + by, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (raised, hard))
    return raised - soft
