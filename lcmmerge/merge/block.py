"""One block: some rows of a parameter from its stored bytes to its final bytes, in reused memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lcmmerge.merge import arithmetic
from lcmmerge.merge.arithmetic import Work
from lcmmerge.merge.operand import Operand
from lcmmerge.merge.outcome import Layer, Measured
from lcmmerge.merge.plan import Piece
from lcmmerge.merge.terms import Difference
from lcmmerge.tensors import DType
from lcmmerge.tensors.blockio import Buffer, Files

ELEMENTS = 1 << 18  # computed at once: in float32 they fit the cache beside their factors
MIN_ROWS = 64  # a GEMM on fewer rows leaves most of the arithmetic units idle


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``begin`` … ``end`` of a piece."""

    piece: Piece
    work: Work
    layer: Layer
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return (self.end - self.begin) * self.piece.operand.columns * self.piece.dtype.itemsize


def rows_at_once(piece: Piece, work: Work) -> int:
    """All rows where a term or a transposition needs the whole parameter, else as many as fill a block."""
    operand = piece.operand
    if work.needs_whole or (not piece.is_copy and _any_transposed(piece)):
        return operand.rows
    return min(max(ELEMENTS // operand.columns, MIN_ROWS), operand.rows)


def _any_transposed(piece: Piece) -> bool:
    differences = [item for item in piece.contributions if isinstance(item, Difference)]
    operands = [piece.operand, *(item.tuned for item in differences), *(item.origin for item in differences)]
    return piece.transposed or any(operand.transposed for operand in operands)


class Computer:
    """Computes blocks, one after another; each worker has its own."""

    def __init__(self, inputs: Files, device: str, rounding_seed: int | None) -> None:
        self._inputs, self._device, self._seed = inputs, device, rounding_seed
        self._stored, self._spare = Buffer(0), Buffer(0)
        self._floats = torch.empty(0)

    def __call__(self, block: Block, out: memoryview) -> Measured:
        """Compute ``block`` into its place in the output buffer. Raises NumericError, FormatError."""
        piece = block.piece
        target = _as_tensor(out, piece.dtype)
        if piece.is_copy:
            return self._copy(block, out, target)
        span = replace(block, begin=0, end=piece.operand.rows) if block.work.needs_whole else block
        weights = self._load(piece.operand, span)
        pristine = weights.reshape(-1, *piece.operand.shape[1:]).clone() if block.work.dependent else None
        changes = [(item.term, item.strength, self._change(item, span)) for item in block.work.differences]
        measured = Measured(arithmetic.base_square(weights, piece.operand))
        arithmetic.add_terms(weights, block.work, slice(span.begin, span.end), changes, pristine, measured)
        if block.begin > span.begin:  # the parameter's first block has measured all of it
            measured = Measured()
        weights = weights[block.begin - span.begin : block.end - span.begin]
        final = weights.T if piece.transposed else weights
        arithmetic.round_into(target.view(final.shape), final, piece, block.begin, self._seed)
        if piece.contributions and block.begin == 0:
            sample = slice(0, max(1, arithmetic.SAMPLE // piece.operand.columns))
            written = target.view(final.shape).T if piece.transposed else target.view(final.shape)
            arithmetic.measure_rounding(measured, weights[sample], written[sample])
        return measured

    def _copy(self, block: Block, out: memoryview, target: Tensor) -> Measured:
        data = self._read(block.piece.operand, block, out)
        if data is not out:
            out[:] = data
        if not block.piece.dtype.floating:
            return Measured()
        weights = self._scratch(target.numel(), arithmetic.precision(block.piece.operand)).copy_(target)
        return Measured(arithmetic.base_square(weights, block.piece.operand))

    def _load(self, operand: Operand, block: Block) -> Tensor:
        """[rows, columns] on the device, in the sum's precision: in scratch memory on the CPU."""
        stored, dtype = self._stored_block(operand, block), arithmetic.precision(operand)
        if self._device != "cpu":
            return stored.to(self._device).to(dtype).contiguous()
        return self._scratch(stored.numel(), dtype).view(stored.shape).copy_(stored)

    def _change(self, item: Difference, block: Block) -> Tensor:
        dtype = arithmetic.precision(block.piece.operand)
        tuned = self._stored_block(item.tuned, block).to(self._device, dtype, copy=True)
        return tuned.sub_(self._stored_block(item.origin, block).to(self._device))

    def _stored_block(self, operand: Operand, block: Block) -> Tensor:
        """The block's rows as stored, in canonical orientation; valid until the next read of this kind."""
        nbytes = (block.end - block.begin) * operand.columns * operand.dtype.itemsize
        buffer = self._stored = self._stored.fitting(nbytes)
        stored = _as_tensor(self._read(operand, block, buffer.memory[:nbytes]), operand.dtype)
        return stored.view(operand.columns, -1).T if operand.transposed else stored.view(-1, operand.columns)

    def _read(self, operand: Operand, block: Block, into: memoryview) -> memoryview:
        """The block's bytes: in ``into``, or where they came to lie together."""
        row = operand.columns * operand.dtype.itemsize
        places = list(operand.cut(block.begin * row, len(into)))
        self._spare = self._spare.fitting(len(into))
        if len(places) == 1:
            return self._inputs.read(operand.path, places[0][0], into, self._spare)
        done = 0
        for offset, nbytes in places:
            part = into[done : done + nbytes]
            data = self._inputs.read(operand.path, offset, part, self._spare)
            if data is not part:
                part[:] = data
            done += nbytes
        return into

    def _scratch(self, numel: int, dtype: torch.dtype) -> Tensor:
        """Float32 memory is used again; float64 is rare."""
        if dtype == torch.float64:
            return torch.empty(numel, dtype=dtype)
        if self._floats.numel() < numel:
            self._floats = torch.empty(numel)
        return self._floats[:numel]


def _as_tensor(data: memoryview, dtype: DType) -> Tensor:
    return torch.frombuffer(data, dtype=dtype.torch)
