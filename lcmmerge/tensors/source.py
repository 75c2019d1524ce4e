"""Where named tensors are stored: every layout, read by its headers alone, behind one TensorSource."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from types import MappingProxyType

from lcmmerge.errors import FormatError, LcmMergeError
from lcmmerge.refs import Awaited
from lcmmerge.refs.weights import PICKLES, SINGLE_FILE, Choice, choose, has_suffix, is_index, local_tree
from lcmmerge.tensors.dtypes import DTYPES
from lcmmerge.tensors.encodings.ggml import GGML, READ_ONLY
from lcmmerge.tensors.gguf import ARCHITECTURE, FILLER, MAGIC, GGUFEntry, Value, read_gguf
from lcmmerge.tensors.header import read_header
from lcmmerge.tensors.info import TensorInfo
from lcmmerge.tensors.quantised import METADATA, assembled, layers_in
from lcmmerge.tensors.signatures import ZIP, head_of, is_safetensors
from lcmmerge.tensors.state import State, state_of


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Named tensors in reading order: by file, then by offset.

    ``layout``: ``single-file`` (also when sharded) or ``diffusers``. In a diffusers folder a tensor's name is
    ``component.stored name``. ``files`` are the weight files, ``metadata`` is the first file's, ``variant``
    the one that was asked for; ``awaited`` those of the files that are still on the Hub; ``sha256`` of the files whose
    hash is known already; ``states``: of those on this disk, from before their headers were read.
    ``container``: ``gguf``, or ``safetensors``, as which pickles are written too.
    """

    path: Path
    layout: str
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    variant: str | None = None
    awaited: Awaited | None = None
    sha256: Mapping[Path, str] = field(default_factory=dict)
    states: Mapping[Path, State] = field(default_factory=dict)
    container: str = "safetensors"

    def __iter__(self) -> Iterator[TensorInfo]:
        return iter(self.tensors.values())

    def __getitem__(self, name: str) -> TensorInfo:
        return self.tensors[name]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.stored)

    @property
    def stored(self) -> Iterator[TensorInfo]:
        """The tensors as the files' headers have them; those that belong to an encoded one follow it."""
        return (info for whole in self for info in whole.stored)

    def fetch(self) -> None:
        """Download what is awaited: the files lie then where the tensors say. Raises NotFoundError, FormatError."""
        if self.awaited:
            self.awaited.fetch()


# What metadata say of the file, and not of the model in it.
OF_THE_FILE = (METADATA, FILLER, "general.", "comfy.gguf.")
Content = tuple[Sequence[TensorInfo], dict[str, str]]  # of a file: its tensors in order, its metadata
ReadFile = Callable[[Path], Content]


def open_source(path: Path, variant: str | None = None) -> TensorSource:
    """Read the headers at ``path``: a weight file, a shard index, a folder of shards, or a diffusers folder.

    ``variant`` chooses among a folder's variants (``fp16``: ``….fp16.safetensors``) where a component has it;
    by default the plain files, or the only variant there is. Raises NotFoundError, FormatError.
    """
    if path.is_dir():
        return read_source(path, path, choose(local_tree(path), "", variant), variant)
    alone = Choice(SINGLE_FILE, (("", path.name),))
    return read_source(path, path.parent, choose(local_tree(path), path.name) if is_index(path.name) else alone)


def read_source(
    path: Path, folder: Path, choice: Choice, variant: str | None = None, read_file: ReadFile | None = None
) -> TensorSource:
    """The files of ``folder`` that were chosen for ``path``. Raises NotFoundError, FormatError."""
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    layers: dict[str, object] = {}
    files = tuple(folder / file for _, file in choice.weights)
    states = {file: state_of(file) for file in files if file.is_file()}
    for number, (prefix, file) in enumerate(choice.weights):
        infos, file_metadata = (read_file or read_local)(folder / file)
        for info in infos:
            name = prefix + info.name
            if name in tensors:
                raise FormatError(f"{folder / file}: {name!r} is also in {tensors[name].path}", "keep one of the two")
            tensors[name] = replace(info, name=name)
        layers |= {prefix + module: form for module, form in layers_in(file_metadata, folder / file).items()}
        if number == 0:
            metadata = file_metadata
    whole = MappingProxyType(assembled(tensors, layers, path))
    container = "gguf" if ARCHITECTURE in metadata else "safetensors"
    metadata = {key: text for key, text in metadata.items() if not key.startswith(OF_THE_FILE)}
    return TensorSource(path, choice.layout, whole, files, metadata, variant, states=states, container=container)


def read_local(file: Path) -> Content:
    """A file's tensors and metadata; its first bytes say how they are stored, and not its suffix.

    Raises NotFoundError, FormatError.
    """
    if file.is_fifo():  # opening it would wait for a writer
        raise FormatError(f"{file}: is a pipe, and weights are not read in order", "name a file")
    head = head_of(file)
    if head.startswith(MAGIC):
        return infos_of_gguf(*read_gguf(file), file)
    if head.startswith(ZIP) or (has_suffix(file.name, PICKLES) and not is_safetensors(head)):
        from lcmmerge.tensors.pickles import read_pickle

        return read_pickle(file), {}
    entries, metadata = read_header(file)
    infos = [TensorInfo(name, dtype, shape, file, offset, nbytes) for name, dtype, shape, offset, nbytes in entries]
    return infos, metadata


def infos_of_gguf(entries: Iterable[GGUFEntry], metadata: Mapping[str, Value], path: Path) -> Content:
    """The tensors of a GGUF file: in a dtype, or in blocks of ggml's. Raises FormatError."""
    infos = []
    for name, kind, shape, offset, nbytes in entries:
        encoding = (GGML | READ_ONLY).get(kind.lower())
        if kind in DTYPES:
            infos.append(TensorInfo(name, DTYPES[kind], shape, path, offset, nbytes))
        elif encoding is None or prod(shape[1:]) % encoding.block:
            what = f"{path}: {name!r} is in {kind}, in rows of {prod(shape[1:]):,} numbers, which is not read"
            raise FormatError(what, "take another file of this model")
        else:
            infos.append(TensorInfo(name, DTYPES["BF16"], shape, path, offset, nbytes, encoding))
    texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    return infos, {ARCHITECTURE: "", **texts}


@contextmanager
def unchanged(sources: Iterable[TensorSource]) -> Iterator[None]:
    """Within it the sources' files, all on this disk, stay what they were when their headers were read.

    Raises FormatError on the way out where one did not: what was read of it is then of two files.
    """
    before = {file: source.states.get(file) or state_of(file) for source in sources for file in source.files}
    try:
        yield
    except LcmMergeError:  # which may be of what came in between
        _refuse_changed(before)
        raise
    _refuse_changed(before)


def _refuse_changed(before: Mapping[Path, State]) -> None:
    for file, state in before.items():
        now = None
        with suppress(OSError):
            now = state_of(file)
        if now != state:
            raise FormatError(f"{file}: changed while it was read", "run it again when nothing writes that file")
