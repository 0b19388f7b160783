"""Weight values: from a tensor's bytes to a read-only array and back.

An array that came from a file stays a view of the file's bytes (external data is memory-mapped), is never writable,
and is shared between a model and its clones. The only way to change a weight is to put another array in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from graphopt.errors import ModelError
from graphopt.model import dtypes
from graphopt.model.arrays import Array, frozen, stored_bytes, stored_size
from graphopt.model.external import STUB_LOCATION, ExternalFiles, place_in
from graphopt.model.findings import raise_first
from graphopt.model.limits import DEFAULT_LIMITS, Limits, tensor_size

DENSE_LIMIT = 64 << 20
"""Bytes above which a sparse initializer is not expanded."""


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """Where a constant came from; while its array is still the same object, export restores the source's form.

    Attributes:
        header: the source tensor without its raw bytes (typed fields are kept), or whole when it is sparse.
        array: the value it stands for.
        raw: whether the bytes have to be put back as ``raw_data``.
        external: location and offset of the bytes, where they are external data.
    """

    header: TensorProto | onnx.SparseTensorProto
    array: Array
    raw: bool
    external: tuple[str, int] | None = None


def decode(tensor: TensorProto, files: ExternalFiles, limits: Limits = DEFAULT_LIMITS) -> TensorRecord:
    """The value of a dense tensor, with what is needed to write it back unchanged.

    Raises:
        ModelError: GO-304 for a malformed tensor, GO-306 for unusable external data, GO-308 for a type that cannot be
            held.
        LimitError: GO-701 for a declared size above the limit.
    """
    if not dtypes.is_known(tensor.data_type) or tensor.HasField("segment"):
        raise ModelError(
            "GO-308" if tensor.data_type else "GO-304",
            f"the tensor's element type is {dtypes.name_of(tensor.data_type)}",
            where=f"tensor {tensor.name!r}",
        )
    raise_first(tensor_size(tensor, limits))
    if tensor.data_location == TensorProto.EXTERNAL:
        array = _from_bytes(tensor, files.read(tensor))
        location, offset, _ = place_in(tensor)
        external = None if files.within_model(tensor) else (location, int(offset or 0))
        return TensorRecord(_header(tensor), array, raw=True, external=external)
    if tensor.HasField("raw_data"):
        return TensorRecord(_header(tensor), _from_bytes(tensor, tensor.raw_data), raw=True)
    own = TensorProto()
    own.CopyFrom(tensor)
    return TensorRecord(own, _from_fields(tensor), raw=False)


def _header(tensor: TensorProto) -> TensorProto:
    header = TensorProto(data_type=tensor.data_type, dims=tensor.dims)
    for field in ("name", "doc_string"):
        if tensor.HasField(field):
            setattr(header, field, getattr(tensor, field))
    if tensor.HasField("data_location") and tensor.data_location != TensorProto.EXTERNAL:
        header.data_location = tensor.data_location
    header.metadata_props.extend(tensor.metadata_props)
    return header


def _from_bytes(tensor: TensorProto, data: bytes | memoryview) -> Array:
    count = math.prod(tensor.dims)
    needed = dtypes.raw_size(tensor.data_type, count)
    if needed is None or len(data) != needed:
        raise ModelError(
            "GO-304",
            f"the tensor holds {len(data)} bytes, {needed} are needed for {list(tensor.dims)} "
            f"of {dtypes.name_of(tensor.data_type)}",
            where=f"tensor {tensor.name!r}",
        )
    bits = dtypes.bits_of(tensor.data_type) or 8
    if bits >= 8:
        dtype = dtypes.numpy_of(tensor.data_type)
        return np.frombuffer(data, dtype=dtype, count=count).reshape(tuple(tensor.dims))
    packed = _header(tensor)
    packed.raw_data = bytes(data)
    return frozen(numpy_helper.to_array(packed))


def _from_fields(tensor: TensorProto) -> Array:
    try:
        if tensor.data_type == TensorProto.STRING:
            values = np.empty(len(tensor.string_data), dtype=object)
            values[:] = [_text(item) for item in tensor.string_data]
            return frozen(values.reshape(tuple(tensor.dims)))
        return frozen(numpy_helper.to_array(tensor).reshape(tuple(tensor.dims)))
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(
            "GO-304",
            f"the tensor's values do not fit {list(tensor.dims)} of {dtypes.name_of(tensor.data_type)}",
            where=f"tensor {tensor.name!r}",
            why=_first_line(error),
        ) from None


def _text(item: bytes) -> str | bytes:
    try:
        return item.decode("utf-8")
    except UnicodeDecodeError:
        return item


def decode_sparse(
    tensor: onnx.SparseTensorProto, files: ExternalFiles, limits: Limits = DEFAULT_LIMITS
) -> TensorRecord:
    """A sparse tensor as a dense read-only array; written back sparse while nobody replaces it.

    Raises:
        ModelError: GO-304 for indices that do not fit, GO-308 for one too large to expand.
    """
    where = f"sparse tensor {tensor.values.name!r}"
    shape = tuple(tensor.dims)
    values = decode(tensor.values, files, limits).array
    indices = decode(tensor.indices, files, limits).array
    if any(dim < 0 for dim in shape):
        raise ModelError("GO-304", f"negative dimension in {list(shape)}", where=where)
    if math.prod(shape) * max(values.dtype.itemsize, 1) > DENSE_LIMIT:
        raise ModelError("GO-308", f"a sparse tensor of {list(shape)} is too large to expand", where=where)
    dense = np.zeros(math.prod(shape), dtype=values.dtype)
    try:
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        if flat.size and int(flat.min()) < 0:
            raise ValueError("negative index")
        dense[flat] = values
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError("GO-304", "sparse indices do not fit", where=where, why=_first_line(error)) from None
    source = onnx.SparseTensorProto()
    source.CopyFrom(tensor)
    bring_in(source, files, limits)
    return TensorRecord(source, frozen(dense.reshape(shape)), raw=False)


def bring_in(message: Message, files: ExternalFiles, limits: Limits) -> None:
    """Puts external data into the tensors that hold it by name, in a message that is carried as it is.

    A reference would be looked up again from wherever the message gets to: onnxruntime looks in the current directory.

    Raises:
        ModelError: as ``decode``.
        LimitError: as ``decode``.
    """
    stack = [message]
    while stack:
        part = stack.pop()
        if not isinstance(part, TensorProto):
            for descriptor, value in part.ListFields():
                if descriptor.type == descriptor.TYPE_MESSAGE:
                    stack.extend([value] if isinstance(value, Message) else value)
        elif part.data_location == TensorProto.EXTERNAL:
            record = decode(part, files, limits)
            part.CopyFrom(encode(part.name, record.array, record))


def encode(
    name: str, array: Array, record: TensorRecord | None, *, deferred: bool = False
) -> TensorProto | onnx.SparseTensorProto:
    """The tensor to write for a constant: the source's own form while its value was not replaced.

    Args:
        name: its name.
        array: its value.
        record: where it came from.
        deferred: leave raw data empty; it is put in when the model is written.
    """
    if record is not None and record.array is array:
        restored = type(record.header)()
        restored.CopyFrom(record.header)
        if isinstance(restored, onnx.SparseTensorProto):
            restored.values.name = name
            return restored
        if record.raw:
            restored.raw_data = b"" if deferred else bytes(stored_bytes(array))
        if restored.name != name:
            restored.name = name
        return restored
    if deferred:
        fresh = TensorProto(name=name, data_type=dtypes.onnx_of(array.dtype), dims=array.shape, raw_data=b"")
    else:
        fresh = numpy_helper.from_array(array, name)
    _keep_notes(record, fresh)
    return fresh


def _keep_notes(record: TensorRecord | None, target: TensorProto) -> None:
    if record is None or not isinstance(record.header, TensorProto):
        return
    if record.header.HasField("doc_string"):
        target.doc_string = record.header.doc_string
    target.metadata_props.extend(record.header.metadata_props)


def stub(
    name: str,
    array: Array,
    record: TensorRecord | None = None,
    location: str = STUB_LOCATION,
    offset: int | None = None,
) -> TensorProto:
    """An external tensor that names its bytes instead of holding them; the source's notes on it are kept."""
    tensor = TensorProto(
        name=name,
        data_type=dtypes.onnx_of(array.dtype),
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    _keep_notes(record, tensor)
    tensor.external_data.add(key="location", value=location)
    if offset is not None:
        tensor.external_data.add(key="offset", value=str(offset))
        tensor.external_data.add(key="length", value=str(stored_size(array)))
    return tensor


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
