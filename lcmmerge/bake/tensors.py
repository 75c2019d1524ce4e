"""One parameter as a tensor, by its canonical name: as a checkpoint stores it, or as a plan would write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lcmmerge.archs import Model
from lcmmerge.bake.block import Block, Computer, blocks_of, with_peak
from lcmmerge.bake.outcome import Layer
from lcmmerge.bake.pipeline import one_thread_each
from lcmmerge.merge.layout import Piece
from lcmmerge.merge.plan import Plan
from lcmmerge.tensors.blockio import Files
from lcmmerge.tensors.encodings import MAIN, Parts
from lcmmerge.tensors.source import unchanged
from lcmmerge.terms.operand import Operand

Read = Callable[[str], Tensor]  # canonical name (a leftover's: the stored one) → tensor in its canonical shape


def stored(model: Model) -> Read:
    """Reads parameters, and leftovers, in their stored dtype; the files must be on this disk."""
    operands = {name: Operand.of_tensor(info) for name, info in model.leftovers.items()}
    operands |= {name: Operand.of_parameter(name, parameter) for name, parameter in model.parameters.items()}
    return lambda name: operands[name].read()


@contextmanager
def merged(plan: Plan, device: str = "cpu") -> Iterator[Read]:
    """Reads θ′ as ``fuse`` would write it, bit for bit, on the CPU: in its dtype, or decoded; ``device`` computes.

    The inputs must be on this disk (``Plan.fetch``). A read raises NumericError, FormatError.
    """
    pieces: dict[str, Piece] = {}
    fused: dict[str, tuple[Piece, ...]] = {}
    for tensor in (tensor for file in plan.files for tensor in file.tensors):
        whole = {
            piece.operand.name: replace(piece, transposed=False, begin=0, end=piece.operand.rows)
            for piece in tensor.pieces
        }
        pieces |= whole
        fused |= dict.fromkeys(whole, tuple(whole.values()))
    with unchanged(plan.sources.values()), Files() as files, one_thread_each():
        computer = Computer(files, plan.merge, device, rounding_seed=None)
        yield lambda name: _compute(pieces[name], fused[name], computer)


def _compute(piece: Piece, fused: tuple[Piece, ...], computer: Computer) -> Tensor:
    """In ``execute``'s blocks: a product's last bit depends on how many rows are multiplied at once.

    ``fused``: the pieces of the tensor in which it would be written.
    """
    encoding = piece.encoding
    parts = encoding.allocate(piece.operand.shape)
    companions = {suffix: tensor for suffix, tensor in parts.items() if suffix != MAIN}
    others = [each for each in fused if each is not piece] if encoding.peaked else []
    looked_at = [block for each in others for block in _blocks(each, computer, {})]
    data, written = parts[MAIN].reshape(-1).view(torch.uint8).numpy().data, 0
    for block in with_peak([*_blocks(piece, computer, companions)], looked_at):
        if block.looks:
            computer.look(block)
        else:
            computer(block, data[written : written + block.nbytes])
            written += block.nbytes
    return encoding.decode(parts).reshape(piece.operand.shape)


def _blocks(piece: Piece, computer: Computer, companions: Parts) -> Iterator[Block]:
    work = computer.prepare(piece)
    return blocks_of(piece, work, Layer(piece.operand.name, piece.operand.numel), companions)
