"""Sources by reference; what of one is on the Hub and not on this disk is read there, its header alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from lcmmerge import refs
from lcmmerge.errors import FormatError
from lcmmerge.refs.weights import PICKLES, SCHEDULER, SIDECAR, has_suffix
from lcmmerge.tensors.gguf import MAGIC, gguf_of
from lcmmerge.tensors.header import header_of
from lcmmerge.tensors.info import TensorInfo
from lcmmerge.tensors.quantised import LARGEST_FORM, tells
from lcmmerge.tensors.source import Content, TensorSource, infos_of_gguf, open_source, read_local, read_source


@dataclass(frozen=True, slots=True)
class RemoteTensor(TensorInfo):
    """A tensor of a file on the Hub that is not downloaded.

    ``path`` is where the file will be once it is downloaded; until then small ones are read from ``file``.
    """

    file: refs.RemoteFile = field(kw_only=True)

    def data(self) -> bytes:
        return TensorInfo.data(self) if self.path.exists() else self.file.read(self.offset, self.nbytes)


def open_reference(
    reference: str, subject: str = "file", variant: str | None = None, *, scalars: bool = False, pickles: bool = False
) -> TensorSource:
    """The source that ``reference`` names; of a safetensors file that is not in the cache only the header is fetched.

    Nor are a pipeline's configs and tokenizers, which weigh 3 MB in SDXL. What is still to be downloaded is its
    ``awaited``. ``scalars``: read the one-element tensors now and side by side, not one by one when asked for.
    ``pickles``: download those, which no header describes. Raises NotFoundError, FormatError.
    """
    parsed = refs.parse(reference, subject)
    if parsed.kind == "local":
        return open_source(parsed.path, variant)
    repository = refs.repository(parsed, subject)
    path, choice = repository.path(parsed.path_in_repo), repository.choice(variant)
    weights = repository.missing(repository.within(file) for _, file in choice.weights)
    pickled = [name for name in weights if has_suffix(name, PICKLES)]
    headed = [name for name in weights if name not in pickled]
    if pickled and not pickles:
        cure = f"`hf download {parsed.repo} {pickled[0]}` first, or name a .safetensors file"
        raise FormatError(f"{repository.what}: what {pickled[0]} holds cannot be told without downloading it", cure)
    if repository.unreachable or not headed:
        refs.fetch(repository, repository.needed(variant))
        refs.remember(repository)
        return open_source(path, variant)
    needed = repository.needed(variant)
    refs.fetch(repository, [name for name in needed if has_suffix(name, PICKLES, (SIDECAR, SCHEDULER))])
    remote = {repository.path(name): name for name in headed}

    def read_file(path: Path) -> Content:
        return _read_remote(repository, remote[path], scalars) if path in remote else read_local(path)

    source = read_source(path, repository.path(repository.root), choice, variant, read_file)
    awaited = refs.Awaited(repository, tuple(repository.missing(needed)))
    return replace(source, awaited=awaited, sha256=awaited.sha256)


def _read_remote(repository: refs.Repository, name: str, scalars: bool) -> Content:
    file, path, size = repository.remote(name), repository.path(name), repository.files[name].size or 0
    if file.read(0, len(MAGIC)) == MAGIC:
        infos, metadata = infos_of_gguf(*gguf_of(file.read, size, path), path)
        return [_remote(info, file) for info in infos], metadata
    entries, metadata = header_of(file.read, size, path)
    small = [entry for entry in entries if tells(entry.name) and entry.nbytes <= LARGEST_FORM]
    if scalars:
        small += [entry for entry in entries if entry.nbytes == entry.dtype.itemsize]
    file.prefetch((entry.offset, entry.nbytes) for entry in small)
    infos = [TensorInfo(name, dtype, shape, path, offset, nbytes) for name, dtype, shape, offset, nbytes in entries]
    return [_remote(info, file) for info in infos], metadata


def _remote(info: TensorInfo, file: refs.RemoteFile) -> RemoteTensor:
    place = info.path, info.offset, info.nbytes
    return RemoteTensor(info.name, info.dtype, info.shape, *place, info.encoded, file=file)
