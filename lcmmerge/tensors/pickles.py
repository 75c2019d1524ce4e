"""Pickled checkpoints (.ckpt, .bin, .pt): where their tensors lie, by torch's ``weights_only`` loader alone.

Format (https://docs.pytorch.org/docs/stable/notes/serialization.html): since 1.6 ``torch.save`` writes a zip
archive of uncompressed records: ``data.pkl``, the objects, and one record per storage. Under FakeTensorMode,
since 2.7, ``torch.load`` makes every object and reads no storage, but notes where each begins, as is used in
https://docs.pytorch.org/tutorials/unstable/gpu_direct_storage.html. So a pickle's tensor is a range of bytes
in its file, read like one of safetensors.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from lcmmerge.errors import FormatError, NotFoundError, UnsafePickleError
from lcmmerge.refs.files import open_regular
from lcmmerge.tensors.dtypes import TORCH_DTYPES
from lcmmerge.tensors.info import TensorInfo
from lcmmerge.tensors.signatures import UNPACK, ZIP, foreign, head_of

if TYPE_CHECKING:
    from torch import Tensor

# PyTorch Lightning leaves these beside the weights: the key of a callback's state, and numpy's numbers.
HARMLESS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# What zipfile raises over damaged archives.
ZIP_FAULTS = (zipfile.BadZipFile, struct.error, zlib.error, EOFError, ValueError, RuntimeError)
SAVE_AGAIN = "save it again with torch.save (contiguous tensors, current torch), or as safetensors"
RENEW = f"download it again, or {SAVE_AGAIN}"
DISTRUST = "ask its publisher for safetensors, or convert it in a sandbox"


class _Inert:
    """Stands for each harmless global: takes any arguments and state, and does nothing with them."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_pickle(path: Path) -> list[TensorInfo]:
    """The tensors of the state dict (Lightning's ``state_dict``, or the file's own dict), in file order.

    Tensors outside it, such as an optimizer's, are no weights and are left out. Two names of one storage give
    two entries. Raises UnsafePickleError, FormatError, NotFoundError.
    """
    records = _records(path)
    tensors = _state_dict(_load(path), path)
    infos = [_info(name, tensor, records, path) for name, tensor in tensors.items()]
    return sorted(infos, key=lambda info: (info.offset, info.nbytes, info.name))


def _records(path: Path) -> dict[int, int]:
    """Of each uncompressed record of the archive: where its bytes begin → how many there are."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            size = os.fstat(file.fileno()).st_size
            records = {}
            names = archive.namelist()
            if not any(name.endswith("data.pkl") for name in names):
                inside = f" of other files ({names[0]!r} first)" if names else " with nothing in it"
                raise FormatError(f"{path}: is a zip archive{inside}, not weights as torch.save writes them", UNPACK)
            for record in archive.infolist():
                if record.filename.endswith("/byteorder") and not _little_endian(archive, record):
                    raise FormatError(f"{path}: was written on a big-endian machine", SAVE_AGAIN)
                if record.compress_type == zipfile.ZIP_STORED:
                    start = _start(file, record)
                    records[start] = min(record.file_size, size - start)
            return records
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read ({error.strerror})", "check the path") from None
    except ZIP_FAULTS:
        head = head_of(path)
        if not head.startswith(ZIP) and (known := foreign(head, path)):
            raise known from None
        what = "it is truncated, or no checkpoint"
        raise FormatError(f"{path}: not a zip archive: {what}", RENEW) from None


def _little_endian(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    """Asked first: torch.load would swap the bytes of storages that FakeTensorMode never allocated."""
    return record.file_size == len(b"little") and archive.read(record) == b"little"


def _start(file: IO[bytes], record: zipfile.ZipInfo) -> int:
    """A record's bytes follow its local header: 30 bytes that end in two lengths, name and padding."""
    file.seek(record.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    return record.header_offset + 30 + int(name_length) + int(extra_length)


def _load(path: Path) -> object:
    """What was pickled, of tensors without data. Only torch's own rebuilding functions are ever called."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    try:
        # By an open file: of a path that ends in .safetensors torch would not believe what it is.
        with safe_globals([(_Inert, name) for name in HARMLESS]), open_regular(path) as file:
            if unsafe := sorted(get_unsafe_globals_in_checkpoint(file)):
                what = f"asks for {unsafe[0]!r}, which no weights need"
                raise UnsafePickleError(f"{path}: {what}; nothing in it was run", DISTRUST)
            file.seek(0)
            with FakeTensorMode():
                return torch.load(file, map_location="cpu", weights_only=True)
    except UnsafePickleError:
        raise
    except pickle.UnpicklingError:
        what = "torch's weights_only loader refuses it"
        raise UnsafePickleError(f"{path}: {what}; nothing in it was run", DISTRUST) from None
    except Exception as error:  # a damaged pickle is a program gone wrong: it can end in anything
        what = f"damaged, or no state dict ({type(error).__name__})"
        raise FormatError(f"{path}: {what}", "download it again") from None


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    from torch import Tensor

    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    items = state.items() if isinstance(state, dict) else ()
    tensors = {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    tensors = tensors or dict(_nested(loaded, ""))
    if not tensors:
        raise FormatError(f"{path}: holds no tensors by name", "a state dict is needed")
    return tensors


def _nested(found: object, name: str, depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """The tensors in what is no state dict (an embedding, a hypernetwork), so that it can be told what the file is."""
    from torch import Tensor

    if isinstance(found, Tensor):
        yield name, found
    elif depth and isinstance(found, dict | list | tuple):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from _nested(value, f"{name}.{key}" if name else str(key), depth - 1)


def _info(name: str, tensor: Tensor, records: dict[int, int], path: Path) -> TensorInfo:
    import torch

    dtype = TORCH_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.layout != torch.strided:
        what = f"{name!r} is {tensor.dtype}, {tensor.layout}"
        raise FormatError(f"{path}: {what}", f"known are dense tensors of {', '.join(TORCH_DTYPES)}")
    if not tensor.is_contiguous():
        raise FormatError(f"{path}: {name!r} is a strided view of its storage", SAVE_AGAIN)
    start = tensor.untyped_storage()._checkpoint_offset
    skip, nbytes = tensor.storage_offset() * dtype.itemsize, tensor.numel() * dtype.itemsize
    # torch reckons the offsets of its own archives without looking: one packed by another program has others.
    if start is None or skip + nbytes > records.get(start, -1):
        raise FormatError(f"{path}: {name!r} is not where its archive should hold it", SAVE_AGAIN)
    return TensorInfo(name, dtype, tuple(tensor.shape), path, int(start + skip), nbytes)
