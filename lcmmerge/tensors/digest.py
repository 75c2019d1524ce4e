"""sha256 of files, read in blocks that leave the page cache alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import MappingProxyType

from lcmmerge.tensors.blockio import Buffer, Files
from lcmmerge.tensors.kept import keep, recall, record_of
from lcmmerge.tensors.source import TensorSource

BLOCK = 8 << 20
EMPTY: Mapping[Path, str] = MappingProxyType({})


def sha256_of(
    files: Iterable[Path], stop: Event | None = None, known: Mapping[Path, str] = EMPTY, *, reread: bool = False
) -> str:
    """Of one file its sha256; of several the sha256 of what sha256sum prints of them, sorted by name.

    Those that are ``known`` are not read, nor those that were hashed before, but to ``reread`` them: a file's times do
    not show what a failing disk does to it. Raises CancelledError soon after ``stop`` is set.
    """
    digests = sorted((path.name, known.get(path) or _sha256(path, stop or Event(), reread=reread)) for path in files)
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests).encode()).hexdigest()


@contextmanager
def hashing(sources: Mapping[str, TensorSource]) -> Iterator[Callable[[], dict[str, str]]]:
    """Count the sources' sha256 beside whatever else is done; what is yielded waits for them, by the same keys.

    On the way out it stops, finished or not.
    """
    stop = Event()
    with ThreadPoolExecutor(1, "lcmmerge-hash") as pool:
        pending = {key: pool.submit(sha256_of, source.files, stop, source.sha256) for key, source in sources.items()}
        try:
            yield lambda: {key: future.result() for key, future in pending.items()}
        finally:
            stop.set()


def _sha256(path: Path, stop: Event, *, reread: bool) -> str:
    record = record_of(path)
    if record and not reread and (known := recall(record)):
        return known.decode()
    digest, size = hashlib.sha256(), path.stat().st_size
    buffer, spare = Buffer(BLOCK), Buffer(BLOCK)
    with Files() as inputs:
        for offset in range(0, size, BLOCK):
            if stop.is_set():
                raise CancelledError
            digest.update(inputs.read(path, offset, buffer.memory[: min(BLOCK, size - offset)], spare))
    if record and record == record_of(path):
        keep(record, digest.hexdigest().encode())
    return digest.hexdigest()
