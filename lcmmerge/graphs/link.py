"""A graph's parameters ↔ their places in a safetensors file.

ONNX's external data is a file name beside the graph, an offset and a length
(https://onnx.ai/onnx/repo-docs/ExternalData.html); a safetensors file is a header and then the bare tensors. So one
weight file serves diffusers and any number of graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lcmmerge.errors import FormatError, IncompatibleError, NotFoundError
from lcmmerge.refs.files import is_inside, link_in, read_bytes
from lcmmerge.tensors.header import Entry, read_header

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

LARGEST = 2**31 - 1  # bytes of a protobuf
RELINK = "export the model again"
# onnx.TensorProto.DataType → safetensors, as both formats' documents have them.
DTYPES = {1: "F32", 2: "U8", 3: "I8", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 16: "BF16"}


def link(graph: bytes, weights: Path) -> bytes:
    """``graph`` with each parameter's place in ``weights``, a safetensors file that is to lie beside it.

    Raises NotFoundError, FormatError, and IncompatibleError: the file lacks a parameter, or has it otherwise.
    """
    model = _parse(graph, weights)
    entries = {entry.name: entry for entry in read_header(weights)[0]}
    for tensor in _parameters(model):
        entry = _entry(tensor, entries, weights)
        places = {"location": weights.name, "offset": str(entry.offset), "length": str(entry.nbytes)}
        del tensor.external_data[:]
        for key, value in places.items():
            tensor.external_data.add(key=key, value=value)
    linked: bytes = model.SerializeToString(deterministic=True)
    return linked


def check_link(graph: Path) -> None:
    """Refuse a graph whose parameters are not where it says, before a runtime maps what is there.

    Raises NotFoundError (a file is not there), FormatError (not ONNX; a path out of the graph's folder; a damaged or
    truncated weight file), IncompatibleError (a parameter of another name, shape or dtype, or at another place).
    """
    headers: dict[str, dict[str, Entry]] = {}
    for tensor in _parameters(read_graph(graph)):
        place = {item.key: item.value for item in tensor.external_data}
        location = place.get("location", "")
        if location not in headers:
            weights = _beside(graph, location)
            headers[location] = {entry.name: entry for entry in read_header(weights)[0]}
        weights = graph.parent / location
        entry = _entry(tensor, headers[location], weights, location.rpartition("/")[0])
        if (place.get("offset"), place.get("length")) != (str(entry.offset), str(entry.nbytes)):
            raise IncompatibleError(f"{graph}: {tensor.name!r} is at another place in {weights.name}", RELINK)


def read_graph(path: Path) -> ModelProto:
    """An ONNX file, without the data that lie in others. Raises NotFoundError, FormatError."""
    try:
        data = read_bytes(path, LARGEST)
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
    return _parse(data, path)


def _parse(data: bytes, path: Path) -> ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import ModelProto

    model = ModelProto()
    with suppress(DecodeError):
        model.ParseFromString(data)
    if not model.graph.node:  # no bytes are a model without a graph
        raise FormatError(f"{path}: is not an ONNX graph", RELINK)
    return model


def _parameters(model: ModelProto) -> Iterator[TensorProto]:
    """Tensors whose data are in a file. Ours are initializers; a graph from elsewhere may have them anywhere."""
    from onnx import TensorProto

    nodes = (node for function in model.functions for node in function.node)
    for tensor in (*_tensors(model.graph), *_attributes(nodes)):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _attributes(graph.node)


def _attributes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


def _entry(tensor: TensorProto, entries: dict[str, Entry], weights: Path, folder: str = "") -> Entry:
    """The tensor in the file that a parameter means; of a file in a folder it is called ``folder.name``.

    Raises IncompatibleError.
    """
    entry, shape = entries.get(tensor.name.removeprefix(f"{folder}.")), tuple(tensor.dims)
    if entry is None:
        raise IncompatibleError(f"{weights}: has no {tensor.name!r}: it is another model's", RELINK)
    found, wanted = (entry.dtype.name, entry.shape), (DTYPES.get(tensor.data_type, "?"), shape)
    if found != wanted:
        raise IncompatibleError(
            f"{weights}: {tensor.name!r} is {_words(*found)}, in the graph {_words(*wanted)}", RELINK
        )
    return entry


def _words(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"


def _beside(graph: Path, location: str) -> Path:
    """The file that ``location`` names, which must lie in the graph's own folder or below it. Raises FormatError."""
    if not is_inside(location):
        raise FormatError(f"{graph}: its data are at {location!r}, out of its folder", "do not trust this file")
    path = graph.parent / location
    if found := link_in(graph.parent, location):
        raise FormatError(f"{found}: is a symbolic link, which ONNX's runtimes refuse", "put the file itself there")
    return path

