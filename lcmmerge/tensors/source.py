"""Where named tensors are stored: every layout, read by its headers alone, behind one TensorSource."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.tensors.dtypes import DType, decode_scalar
from lcmmerge.tensors.header import REDO, read_header

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
CHOOSE = "choose one with --variant"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor and the bytes of a file in which it lies, contiguous and little-endian."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def numel(self) -> int:
        return self.nbytes // self.dtype.itemsize

    def scalar(self) -> float:
        """The value of a tensor of one element."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return decode_scalar(self.dtype, file.read(self.dtype.itemsize))

    def read(self) -> Tensor:
        """The whole tensor, in the stored dtype and shape, in memory of its own."""
        import torch

        data = bytearray(self.nbytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            if file.readinto(data) != self.nbytes:
                raise FormatError(f"{self.path}: ended inside {self.name!r}", "it changed while it was read")
        if not data:
            return torch.empty(self.shape, dtype=self.dtype.torch)
        return torch.frombuffer(data, dtype=torch.uint8).view(self.dtype.torch).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Named tensors in reading order: by file, then by offset.

    ``layout``: ``single-file`` (also when sharded) or ``diffusers``. In a diffusers folder a tensor's name is
    ``component.stored name``. ``files`` are the weight files, ``metadata`` is the first file's, ``variant``
    the one that was asked for.
    """

    path: Path
    layout: str
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.tensors.values())

    def __getitem__(self, name: str) -> TensorInfo:
        return self.tensors[name]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self)


def open_source(path: Path, variant: str | None = None) -> TensorSource:
    """Read the headers at ``path``: a weight file, a shard index, a folder of shards, or a diffusers folder.

    ``variant`` chooses among a folder's variants (``fp16``: ``….fp16.safetensors``) where a component has it;
    by default the plain files, or the only variant there is. Raises NotFoundError, FormatError.
    """
    if not path.is_dir():
        files = _shards(path) if _is_index(path) else (path,)
        return _source(path, "single-file", [("", file) for file in files])
    if components := _components(path):
        named = [(f"{name}.", file) for name in components for file in _weight_files(path / name, variant)]
        source = _source(path, "diffusers", named)
    else:
        source = _source(path, "single-file", [("", file) for file in _weight_files(path, variant)])
    if variant and variant not in map(_variant_of, source.files):
        raise NotFoundError(f"{path}: nothing in it has the variant {variant!r}", CHOOSE)
    return replace(source, variant=variant)


def _components(folder: Path) -> list[str]:
    """The subfolders with the pipeline's weights, in name order; empty when this is no diffusers folder.

    Those that model_index.json names, where there is one: SDXL's own folder also holds ``vae_1_0`` and ONNX
    and OpenVINO exports.
    """
    folders = {sub.name for sub in folder.iterdir() if sub.is_dir()}
    index = folder / "model_index.json"
    if index.exists():
        folders &= _read_json(index).keys()
    elif "unet" not in folders:
        return []
    return sorted(name for name in folders if _candidates(folder / name))


def _candidates(folder: Path) -> list[Path]:
    """Weight files and indices of shards. OpenVINO's weights end in .bin too, beside an .xml."""
    return sorted(
        file
        for file in folder.iterdir()
        if (file.suffix in (".safetensors", ".bin") or _is_index(file))
        and not file.name.startswith(".")
        and not file.with_suffix(".xml").exists()
    )


def _weight_files(folder: Path, variant: str | None) -> tuple[Path, ...]:
    """The files of one component. safetensors before .bin; one variant only: never two copies of a weight."""
    candidates = _candidates(folder)
    safe = [file for file in candidates if ".bin" not in file.suffixes]
    by_variant: dict[str, list[Path]] = {}
    for file in safe or candidates:
        by_variant.setdefault(_variant_of(file), []).append(file)
    if not by_variant:
        raise NotFoundError(f"{folder}: holds no weights", "it needs .safetensors or .bin files")
    only = next(iter(by_variant.values())) if len(by_variant) == 1 else None
    chosen = by_variant.get(variant or "") or by_variant.get("") or only
    if chosen is None:
        have = ", ".join(sorted(by_variant))
        raise NotFoundError(f"{folder}: has no plain weights, but the variants {have}", CHOOSE)
    if indices := [file for file in chosen if _is_index(file)]:
        return _shards(indices[0])
    shards = [file for file in chosen if _SHARD.search(file.name)]
    whole = [file for file in chosen if file not in shards]
    if len(whole) > 1:
        names = ", ".join(file.name for file in whole)
        raise NotFoundError(f"{folder}: holds several weight files: {names}", "name the file itself")
    return tuple(whole or shards)


def _variant_of(file: Path) -> str:
    """The variant in a file's name, or "".

    ``fp16`` in ``model.fp16.safetensors``, ``model.fp16-00001-of-00002.safetensors``,
    ``model-00001-of-00002.fp16.safetensors`` and ``model.safetensors.index.fp16.json``.
    """
    words = _SHARD.sub("", file.name).split(".")[1:]
    return ".".join(word for word in words if word not in ("safetensors", "bin", "index", "json"))


def _is_index(file: Path) -> bool:
    return file.suffix == ".json" and ".index" in file.suffixes


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = _read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise FormatError(f"{index}: not an index of shards", "its weight_map must name a file per tensor")
    for name in names:
        if Path(name).name != name:
            raise FormatError(f"{index}: the shard {name!r} lies outside its folder", "use plain file names")
    shards = tuple(index.parent / name for name in sorted(set(names)))
    for shard in shards:
        if not shard.is_file():
            raise NotFoundError(f"{shard}: this shard is missing", f"{index.name} names it: download it too")
    return shards


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object that is small and another program's."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: not a JSON object", REDO)
    return value


def _source(path: Path, layout: str, files: list[tuple[str, Path]]) -> TensorSource:
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for number, (prefix, file) in enumerate(files):
        infos, file_metadata = _read_file(file)
        for info in infos:
            name = prefix + info.name
            if name in tensors:
                raise FormatError(f"{file}: {name!r} is also in {tensors[name].path}", "keep one of the two")
            tensors[name] = replace(info, name=name)
        if number == 0:
            metadata = file_metadata
    return TensorSource(path, layout, MappingProxyType(tensors), tuple(file for _, file in files), metadata)


def _read_file(file: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    if file.suffix in PICKLES:
        from lcmmerge.tensors.pickles import read_pickle

        return read_pickle(file), {}
    entries, metadata = read_header(file)
    return [TensorInfo(name, dtype, shape, file, *place) for name, dtype, shape, *place in entries], metadata
