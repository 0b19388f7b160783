"""Element types: ONNX enum values, numpy (and ml_dtypes) types, and how many bits each takes on disk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
}
# Types that came after onnx 1.21 or late in its life: named, so that an older onnx still imports this module.
_LATER_BITS = {
    "UINT4": 4,
    "INT4": 4,
    "FLOAT4E2M1": 4,
    "FLOAT8E8M0": 8,
    "UINT2": 2,
    "INT2": 2,
}
_BITS.update({value: _LATER_BITS[name] for name, value in TensorProto.DataType.items() if name in _LATER_BITS})


def bits_of(elem_type: int) -> int | None:
    """Bits one element takes in raw data; ``None`` for strings and for types this module does not know."""
    return _BITS.get(elem_type)


def is_known(elem_type: int) -> bool:
    """Whether a tensor of this ONNX element type can be held."""
    return elem_type in _BITS or elem_type == TensorProto.STRING


def raw_size(elem_type: int, count: int) -> int | None:
    """Bytes that ``count`` elements take in raw data (sub-byte types are packed); ``None`` for strings."""
    bits = bits_of(elem_type)
    return None if bits is None else (count * bits + 7) // 8


def numpy_of(elem_type: int) -> np.dtype[np.generic] | None:
    """The numpy type of an ONNX element type (``object`` for strings); ``None`` where there is none."""
    if not is_known(elem_type):
        return None
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))


def onnx_of(dtype: npt.DTypeLike) -> int:
    """The ONNX element type of a numpy type.

    Raises:
        ValueError: if ONNX has no such type.
    """
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def name_of(elem_type: int) -> str:
    """The ONNX name of an element type, lower case, as messages spell it."""
    try:
        return str(TensorProto.DataType.Name(elem_type)).lower()
    except ValueError:
        return f"type {elem_type}"
