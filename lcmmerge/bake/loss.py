"""What rounding will keep of a merge into weights that are quantised already, before anything is written.

A change smaller than half a step of what they were rounded to is lost whole: they lie where the steps are. From weights
before their quantisation the change survives on average, since their distances to the steps are spread evenly.
"""

from __future__ import annotations

from dataclasses import replace

from lcmmerge.bake.outcome import Layer, Measured
from lcmmerge.bake.report import total
from lcmmerge.errors import QualityError
from lcmmerge.merge.layout import Piece, PlannedTensor
from lcmmerge.merge.plan import Plan
from lcmmerge.output import share

LEAST = 0.9  # of the change
LAYERS = 24
ROWS = 256  # of a layer


def estimated(plan: Plan) -> Measured | None:
    """What rounding makes of the change, by some rows of some layers; None where no term reaches quantised weights.

    The files must be on this disk. Raises NumericError, FormatError.
    """
    chosen = _touched(plan)
    if not chosen:
        return None
    from lcmmerge.bake.block import Computer, blocks_of, with_peak
    from lcmmerge.tensors.blockio import Files

    layers = []
    with Files(keep=True) as files:
        computer = Computer(files, plan.merge, "cpu", plan.merge.output.rounding_seed)
        for tensor, piece, row in chosen:
            layer, work = Layer(piece.operand.name, piece.operand.numel), computer.prepare(piece)
            for block in with_peak([*blocks_of(piece, work, layer, tensor.allocate_companions(), row)]):
                if block.looks:
                    computer.look(block)
                else:
                    layer.measured.add(computer(block, memoryview(bytearray(block.nbytes))))
            layers.append(layer)
    return total(layers)


def _touched(plan: Plan) -> list[tuple[PlannedTensor, Piece, int]]:
    """The first rows of layers, spread evenly over those that terms reach and that are quantised, and where they lie
    in their tensors.
    """
    found = []
    for tensor in (tensor for file in plan.files for tensor in file.tensors):
        row = 0
        for piece in tensor.pieces:
            if piece.contributions and not piece.transposed and piece.operand.is_quantised:
                rows = -(-ROWS // piece.encoding.granule) * piece.encoding.granule
                found.append((tensor, replace(piece, end=min(piece.begin + rows, piece.end)), row))
            row += piece.end - piece.begin
    step = max(len(found) // LAYERS, 1)
    return found[::step][:LAYERS]


def check_kept(plan: Plan, found: Measured | None) -> None:
    """Raises QualityError where less than ``LEAST`` of the change is ``estimated`` to be kept.

    Stochastic rounding keeps it on average, by more noise.
    """
    if found is None or plan.merge.output.rounding_seed is not None or not found.gain < LEAST:
        return
    base = plan.base
    raise QualityError(
        f"{base.source.path}: is quantised already, and about {share(found.gain)} of the change would be left in it",
        f"merge into {base.arch.hub} with --encoding, from before it was quantised; or give --accept-loss",
    )
