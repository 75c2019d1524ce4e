"""Plan → bytes, in blocks: read, compute, round, write; hashes follow in order.

Every offset comes from the plan and every block is computed by one thread, so the output's bytes depend neither on
the number of threads nor on their timing. Memory is bounded by the blocks in flight, not by the model.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from lcmmerge.bake.arithmetic import Work
from lcmmerge.bake.block import Block, Computer, blocks_of, reads_twice, with_peak
from lcmmerge.bake.outcome import Layer, Measured, Outcome, Settings
from lcmmerge.bake.pipeline import in_order, one_thread_each
from lcmmerge.errors import LcmMergeError
from lcmmerge.merge.layout import Piece, PlannedFile
from lcmmerge.merge.plan import Plan
from lcmmerge.tensors.blockio import PAGE, BlockWriter, Buffer, Files
from lcmmerge.tensors.encodings import Parts
from lcmmerge.tensors.gguf import GGUFLayout
from lcmmerge.tensors.layout import FileLayout
from lcmmerge.tensors.source import unchanged

Layout = FileLayout | GGUFLayout
UNIT = 8 << 20  # bytes written at once


class Metadata(Protocol):
    """A file's metadata: with placeholders at first, then ``final``, and not longer than before."""

    def __call__(self, file: PlannedFile, sha256: str, *, final: bool) -> dict[str, str]: ...


class Writer(Protocol):
    """What a file's bytes go to: a ``BlockWriter``, or what stands in its place."""

    def write(self, buffer: Buffer, offset: int, nbytes: int) -> None: ...
    def finish(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


@dataclass(slots=True)
class Unit:
    """Consecutive blocks that are written together at ``offset``; in ``buffer`` they begin at ``offset % PAGE``.

    Or else a ``companion``, which is whole when the units before it are finished.
    """

    file: int
    offset: int
    blocks: list[Block] = field(default_factory=list)
    companion: Tensor | None = None
    nbytes: int = 0
    buffer: Buffer | None = None
    measured: list[Measured] = field(default_factory=list)

    @property
    def data(self) -> memoryview:
        assert self.buffer is not None
        return self.buffer.memory[self.offset % PAGE : self.offset % PAGE + self.nbytes]


def execute(
    plan: Plan,
    folder: Path,
    metadata: Metadata,
    settings: Settings,
    progress: Callable[[int], None],
    open_writer: Callable[[Path, Layout], Writer] = lambda path, layout: BlockWriter(path, layout.size),
    *,
    whole_files: bool = False,
) -> Outcome:
    """Write the plan's files under ``folder``.

    ``progress`` is called with the number of bytes that became final, ``open_writer`` with a file's path and layout.
    ``whole_files``: the outcome's hashes are of these, and not of the tensor bytes; ``metadata`` then must not tell it.
    Raises NumericError, OutputError, FormatError.
    """
    _check_device(settings.device)
    with one_thread_each(), unchanged(plan.sources.values()), ExitStack() as stack:
        return _Execution(plan, folder, metadata, settings, progress, open_writer, stack, whole_files).run()


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise LcmMergeError(f"device {device!r}: there is none here", "omit --device to use the CPU") from None


class _Execution:
    def __init__(
        self,
        plan: Plan,
        folder: Path,
        metadata: Metadata,
        settings: Settings,
        progress: Callable[[int], None],
        open_writer: Callable[[Path, Layout], Writer],
        stack: ExitStack,
        whole_files: bool,
    ) -> None:
        self.plan, self.metadata, self.settings, self.progress = plan, metadata, settings, progress
        twice = any(reads_twice(tensor) for file in plan.files for tensor in file.tensors)
        self.inputs = stack.enter_context(Files(keep=settings.keep_inputs or twice))
        self.layouts = [
            file.placed(metadata(file, "0" * 64, final=False))
            for file in plan.files
        ]
        self.writers = [
            stack.enter_context(open_writer(folder / file.path, layout))
            for file, layout in zip(plan.files, self.layouts, strict=True)
        ]
        self.hashes = [
            hashlib.sha256(layout.header(metadata(file, "", final=True)) if whole_files else b"")
            for file, layout in zip(plan.files, self.layouts, strict=True)
        ]
        self.layers: list[Layer] = []
        self.in_flight = settings.workers * 2 + 2
        self.buffers = [Buffer(UNIT) for _ in range(self.in_flight)]
        self.local = threading.local()
        self.preparing = self._computer()
        self.whole = threading.Lock()  # terms that depend on a whole W take several times its memory: one at a time

    def run(self) -> Outcome:
        in_order(
            self._units(),
            self._compute,
            self._finish,
            workers=self.settings.workers,
            in_flight=self.in_flight,
            initializer=self._start_worker,
        )
        digests = tuple(digest.hexdigest() for digest in self.hashes)
        for file, layout, writer, digest in zip(
            self.plan.files, self.layouts, self.writers, digests, strict=True
        ):
            _write_header(writer, layout, self.metadata(file, digest, final=True))
        return Outcome(tuple(self.layers), digests)

    def _units(self) -> Iterator[Unit]:
        for number, (file, layout) in enumerate(zip(self.plan.files, self.layouts, strict=True)):
            unit = Unit(number, layout.data_start)
            for item in self._parts(file, dict(layout.padding), layout.data_start):
                if isinstance(item, Block) and item.looks:  # small, so that nobody waits long for a peak
                    if unit.nbytes:
                        yield self._with_buffer(unit)
                        unit = Unit(number, unit.offset + unit.nbytes)
                    yield self._with_buffer(Unit(number, unit.offset, [item]))
                    continue
                alone = isinstance(item, Tensor) or unit.companion is not None
                if unit.nbytes and (alone or unit.nbytes + item.nbytes > UNIT):
                    yield self._with_buffer(unit)
                    unit = Unit(number, unit.offset + unit.nbytes)
                if isinstance(item, Tensor):
                    unit.companion = item
                else:
                    unit.blocks.append(item)
                unit.nbytes += item.nbytes
            if unit.nbytes:
                yield self._with_buffer(unit)

    def _parts(self, file: PlannedFile, padding: Mapping[int, int], offset: int) -> Iterator[Block | Tensor]:
        """What the file holds, in its order: the blocks of each tensor, then its companions, which they fill.

        ``padding``: offset → how many zeros lie there; ``offset``: of the first tensor.
        """
        for tensor in file.tensors:
            companions = tensor.allocate_companions()
            ready: dict[str, tuple[Work, Layer]] = {}  # of the tensor's parameters, whose rows may alternate
            blocks: list[Block] = []
            row = 0
            for piece in (piece for piece in tensor.pieces if piece.operand.numel):
                blocks += self._blocks(piece, ready, companions, row)
                row += piece.end - piece.begin
            yield from with_peak(blocks)
            yield from companions.values()
            offset += tensor.nbytes
            if offset in padding:
                yield torch.zeros(padding[offset], dtype=torch.uint8)
                offset += padding[offset]

    def _blocks(
        self, piece: Piece, ready: dict[str, tuple[Work, Layer]], companions: Parts, row: int
    ) -> Iterator[Block]:
        """``row``: the piece's first in its tensor."""
        name = piece.operand.name
        if name not in ready:
            work = self.preparing.prepare(piece)
            ready[name] = work, Layer(name, piece.operand.numel, Measured(squares=dict(work.squares)))
            self.layers.append(ready[name][1])
        work, layer = ready[name]
        return blocks_of(piece, work, layer, companions, row)

    def _with_buffer(self, unit: Unit) -> Unit:
        unit.buffer = self.buffers.pop() if unit.nbytes <= UNIT else Buffer(unit.nbytes)
        return unit

    def _finish(self, unit: Unit) -> None:
        assert unit.buffer is not None
        if unit.companion is not None:
            unit.data[:] = unit.companion.reshape(-1).view(torch.uint8).numpy().data
            self.writers[unit.file].write(unit.buffer, unit.offset, unit.nbytes)
        self.hashes[unit.file].update(unit.data)
        for block, measured in zip(unit.blocks, unit.measured, strict=True):
            block.layer.measured.add(measured)
        if unit.nbytes <= UNIT:
            self.buffers.append(unit.buffer)
        self.progress(unit.nbytes)

    def _start_worker(self) -> None:
        torch.set_num_threads(1)
        self.local.computer = self._computer()

    def _computer(self) -> Computer:
        merge = self.plan.merge
        return Computer(self.inputs, merge, self.settings.device, merge.output.rounding_seed)

    def _compute(self, unit: Unit) -> None:
        assert unit.buffer is not None
        position, data, computer = 0, unit.data, self.local.computer
        for block in unit.blocks:
            with self.whole if block.work.needs_whole else nullcontext():
                if block.looks:
                    computer.look(block)
                    unit.measured.append(Measured())
                    continue
                unit.measured.append(computer(block, data[position : position + block.nbytes]))
            position += block.nbytes
        if unit.companion is None and unit.nbytes:
            self.writers[unit.file].write(unit.buffer, unit.offset, unit.nbytes)


def _write_header(writer: Writer, layout: Layout, metadata: dict[str, str]) -> None:
    buffer = Buffer(layout.data_start)
    buffer.memory[: layout.data_start] = layout.header(metadata)
    writer.write(buffer, 0, layout.data_start)
    writer.finish()
