"""One parameter as a tensor, by its canonical name: as a checkpoint stores it, or as a plan would write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lcmmerge.archs import Model
from lcmmerge.merge import arithmetic
from lcmmerge.merge.block import Block, Computer, rows_at_once
from lcmmerge.merge.operand import Operand
from lcmmerge.merge.outcome import Layer
from lcmmerge.merge.pipeline import one_thread_each
from lcmmerge.merge.plan import Piece, Plan
from lcmmerge.tensors.blockio import Files
from lcmmerge.tensors.source import unchanged

Read = Callable[[str], Tensor]  # canonical name (a leftover's: the stored one) → tensor in its canonical shape


def stored(model: Model) -> Read:
    """Reads parameters, and leftovers, in their stored dtype; the files must be on this disk."""
    operands = {name: Operand.of_tensor(info) for name, info in model.leftovers.items()}
    operands |= {name: Operand.of_parameter(name, parameter) for name, parameter in model.parameters.items()}
    return lambda name: operands[name].read()


@contextmanager
def merged(plan: Plan, device: str = "cpu") -> Iterator[Read]:
    """Reads θ′ as ``fuse`` would write it, bit for bit and in the plan's dtype, on the CPU; ``device`` computes.

    The inputs must be on this disk (``Plan.fetch``). A read raises NumericError, FormatError.
    """
    pieces = {
        piece.operand.name: replace(piece, transposed=False, begin=0, end=piece.operand.rows)
        for file in plan.files
        for tensor in file.tensors
        for piece in tensor.pieces
    }
    with unchanged(plan.sources.values()), Files() as files, one_thread_each():
        computer = Computer(files, device, rounding_seed=None)
        yield lambda name: _compute(pieces[name], computer, device)


def _compute(piece: Piece, computer: Computer, device: str) -> Tensor:
    """In ``execute``'s blocks: a product's last bit depends on how many rows are multiplied at once."""
    out = torch.empty(piece.operand.shape, dtype=piece.dtype.torch)
    data = out.reshape(-1).view(torch.uint8).numpy().data
    work = arithmetic.prepare(piece, device)
    layer = Layer(piece.operand.name, piece.operand.numel, work.squares)
    step, written = rows_at_once(piece, work), 0
    for begin in range(0, piece.operand.rows, step):
        block = Block(piece, work, layer, begin, min(begin + step, piece.operand.rows))
        computer(block, data[written : written + block.nbytes])
        written += block.nbytes
    return out
