"""One block: some rows of a parameter from its stored bytes to its final bytes, in reused memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import isnan, nan, prod
from threading import Condition

import torch
from torch import Tensor

from lcmmerge.adapters import Factored
from lcmmerge.bake import arithmetic
from lcmmerge.bake.arithmetic import TermDelta, Work
from lcmmerge.bake.outcome import Layer, Measured
from lcmmerge.merge.layout import Piece, PlannedTensor
from lcmmerge.merge.methods import methods
from lcmmerge.merge.spec import Merge
from lcmmerge.tensors import DType, TensorInfo
from lcmmerge.tensors.blockio import Buffer, Files
from lcmmerge.tensors.encodings import MAIN, Parts
from lcmmerge.tensors.quantised import companions_of
from lcmmerge.terms.match import Difference
from lcmmerge.terms.operand import Operand

ELEMENTS = 1 << 18  # computed at once: in float32 they fit the cache beside their factors
KEPT = 1 << 26  # elements of a tensor that are kept in float32 while its peak is looked for; of a larger one none
SAMPLED = 16  # one of so many rows shows what rounding loses
MIN_ROWS = 64  # a GEMM on fewer rows leaves most of the arithmetic units idle


class Peak:
    """The largest magnitude in a tensor, which ``blocks`` find one by one, before others wait for it.

    ``keeps``: what they compute on the way is ``kept`` until it is written, of a tensor that is not too large for that.
    """

    def __init__(self, blocks: int, *, keeps: bool) -> None:
        self.keeps = keeps
        self.kept: dict[tuple[str, int], tuple[Tensor, Tensor, Measured]] = {}
        self._value, self._left, self._found = 0.0, blocks, Condition()

    def tell(self, value: float) -> None:
        """Of one block; NaN stays."""
        with self._found:
            self._value = value if isnan(value) else max(self._value, value)
            self._left -= 1
            self._found.notify_all()

    def wait(self) -> float:
        with self._found:
            self._found.wait_for(lambda: self._left <= 0)
            return self._value


@dataclass(frozen=True, slots=True)
class Block:
    """Rows ``begin`` … ``end`` of a piece; ``companions``: where their encoding's other parts go.

    ``peak``: what the encoding waits for, where it does; a block that ``looks`` finds it, and writes nothing.
    """

    piece: Piece
    work: Work
    layer: Layer
    begin: int
    end: int
    companions: Parts
    peak: Peak | None = None
    looks: bool = False

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.end)

    @property
    def elements(self) -> int:
        return (self.end - self.begin) * self.piece.operand.columns

    @property
    def nbytes(self) -> int:
        """What it takes in the output, or would."""
        return (self.end - self.begin) * self.piece.encoding.row_bytes(self.piece.operand.columns)


def rows_at_once(piece: Piece, work: Work) -> int:
    """All rows where a term or a transposition needs the whole parameter, else what fills a block."""
    operand, granule = piece.operand, piece.encoding.granule
    if work.needs_whole or (not piece.is_copy and _any_transposed(piece)):
        return operand.rows
    rows = max(ELEMENTS // operand.columns, MIN_ROWS)
    return min(-(-rows // granule) * granule, operand.rows)


def blocks_of(piece: Piece, work: Work, layer: Layer, companions: Parts, row: int = 0) -> Iterator[Block]:
    """A piece in blocks; it begins at ``row`` of its tensor, whose are the ``companions``."""
    step = rows_at_once(piece, work)
    for begin in range(piece.begin, piece.end, step):
        end = min(begin + step, piece.end)
        cut = piece.encoding.cut(companions, slice(row + begin - piece.begin, row + end - piece.begin))
        yield Block(piece, work, layer, begin, end, cut)


def with_peak(blocks: list[Block], others: Iterable[Block] = ()) -> list[Block]:
    """The blocks of a tensor: where its encoding needs their peak, before them those that look for it.

    ``others``: of the same tensor, to be looked at alone.
    """
    if not (blocks and blocks[0].piece.encoding.peaked):
        return blocks
    every = [*others, *blocks]
    peak = Peak(len(every), keeps=sum(block.elements for block in every) <= KEPT)
    return [replace(block, peak=peak, looks=True) for block in every] + [replace(block, peak=peak) for block in blocks]


def reads_twice(tensor: PlannedTensor) -> bool:
    """Whether it is too large to be kept while its peak is looked for."""
    return tensor.pieces[0].encoding.peaked and prod(tensor.shape) > KEPT


def _sampled(rows: int, piece: Piece) -> int:
    """How many of a block's first rows show what rounding loses: whole granules, and none where nothing is added."""
    granule = piece.encoding.granule
    return min(-(-rows // (SAMPLED * granule)) * granule, rows) if piece.contributions else 0


def _any_transposed(piece: Piece) -> bool:
    differences = [item for item in piece.contributions if isinstance(item, Difference)]
    operands = [piece.operand, *(item.tuned for item in differences), *(item.origin for item in differences)]
    return piece.transposed or any(operand.transposed for operand in operands)


class Computer:
    """Computes blocks of a merge, one after another; each thread has its own."""

    def __init__(self, inputs: Files, merge: Merge, device: str, rounding_seed: int | None) -> None:
        self._inputs, self._device, self._seed = inputs, device, rounding_seed
        self._error_aware = merge.output.error_aware
        self._method, self._parameters = methods()[merge.method], merge.parameters
        self._terms = [term.name for term in merge.terms]
        self._stored, self._spare = Buffer(0), Buffer(0)
        self._floats = torch.empty(0)
        self._beside: tuple[TensorInfo | None, Parts] = None, {}

    def prepare(self, piece: Piece) -> Work:
        """What the piece's blocks share. Raises NumericError, FormatError.

        A method that looks at a whole Δ does so here, at one after another: memory is bounded by a parameter.
        """
        deltas = arithmetic.read_deltas(piece, self._device, arithmetic.precision(piece.operand))
        if self._method.linear:
            return arithmetic.joined(deltas)
        work = Work(apart=deltas)
        if self._method.weigh and not self._method.per_row(self._parameters):
            return arithmetic.joined(self._weighed(piece, work)) if deltas else work
        if self._method.keep and deltas:
            for item, delta in zip(deltas, self._deltas(piece, work, slice(0, piece.operand.rows)), strict=True):
                name = f"{piece.operand.name}/{self._terms[item.term]}"
                item.kept = self._method.keep(delta, self._parameters, name)
        return work

    def _weighed(self, piece: Piece, work: Work) -> Iterator[TermDelta]:
        """The deltas with the strengths that the method gives their terms by their inner products."""
        assert self._method.weigh
        terms = {item.term: item.strength for item in work.apart}
        sums = torch.tensor([[item.term == term for item in work.apart] for term in terms], dtype=torch.float64)
        gram = sums @ self._inner_products(piece, work) @ sums.T  # a term may have several parts of a parameter
        strengths = torch.tensor(list(terms.values()), dtype=torch.float64)
        found = dict(zip(terms, self._method.weigh(gram, strengths, self._parameters).tolist(), strict=True))
        return (replace(item, strength=found[item.term]) for item in work.apart)

    def _inner_products(self, piece: Piece, work: Work) -> Tensor:
        """⟨Δᵢ, Δⱼ⟩ over the parameter, float64 on the CPU; some rows at a time where not all are factored."""
        updates = [item.update for item in work.apart if isinstance(item.update, Factored)]
        if len(updates) == len(work.apart):
            products = [[arithmetic.factored_inner(one, other) for other in updates] for one in updates]
            return torch.tensor(products, dtype=torch.float64)
        found = torch.zeros(len(work.apart), len(work.apart), dtype=torch.float64)
        step = rows_at_once(piece, work)
        for begin in range(0, piece.operand.rows, step):
            rows = slice(begin, min(begin + step, piece.operand.rows))
            flat = torch.stack([delta.flatten() for delta in self._deltas(piece, work, rows)]).double()
            found += (flat @ flat.T).cpu()
        return found

    def _deltas(self, piece: Piece, work: Work, rows: slice) -> Iterator[Tensor]:
        """[rows, columns] of each term's Δ, one at a time, to be overwritten."""
        pristine = None
        if work.dependents:
            pristine = self._load(piece.operand, rows).reshape(-1, *piece.operand.shape[1:])
        for item in work.apart:
            yield self._delta(item, piece, rows, pristine)

    def __call__(self, block: Block, out: memoryview) -> Measured:
        """Compute ``block`` into its place in the output buffer. Raises NumericError, FormatError."""
        piece, encoding = block.piece, block.piece.encoding
        target = _as_tensor(out, encoding.dtype)
        if piece.is_copy:
            return self._copy(block, out, target)
        kept = block.peak.kept.pop((piece.operand.name, block.begin), None) if block.peak else None
        weights, before, measured = kept or self._merged(block)
        parts = {MAIN: target.view(len(weights), -1), **block.companions}
        peak = block.peak.wait() if block.peak else nan
        arithmetic.round_into(parts, weights, piece, block.begin, self._seed, peak, error_aware=self._error_aware)
        if piece.contributions:
            sample = slice(0, len(before))
            written = encoding.decode(encoding.cut(parts, sample))
            arithmetic.measure_rounding(
                measured, before, weights[sample], written, self._deltas_on(before, block)
            )
            if self._error_aware:
                measured.nearest_error = self._nearest_error(weights[sample], piece, peak)
        return measured

    def _nearest_error(self, weights: Tensor, piece: Piece, peak: float) -> float:
        """‖round(θ′) − θ′‖² of a sample, were it rounded to nearest."""
        parts = piece.encoding.allocate(tuple(weights.shape), weights.device)
        piece.encoding.encode(weights, parts, None, peak)
        return arithmetic.square(piece.encoding.decode(parts).to(weights.dtype) - weights)

    def look(self, block: Block) -> None:
        """Tell the block's peak what is the largest magnitude in it. Raises NumericError, FormatError."""
        assert block.peak
        largest = nan
        try:
            weights, before, measured = self._merged(block)
            largest = arithmetic.largest(weights)
            if block.peak.keeps:
                block.peak.kept[block.piece.operand.name, block.begin] = weights.clone(), before, measured
        finally:
            block.peak.tell(largest)

    def _merged(self, block: Block) -> tuple[Tensor, Tensor, Measured]:
        """θ′ as the output's rows have it, valid until the next; what the sample of it was before; what it shows."""
        piece, whole, measured = block.piece, block.work.needs_whole, Measured()
        rows = slice(0, piece.operand.rows) if whole else block.rows
        weights = self._load(piece.operand, rows)
        written = weights[block.begin - rows.start : block.end - rows.start]
        written = written.T if piece.transposed else written
        before = written[: _sampled(len(written), piece)].clone()
        pristine = weights.reshape(-1, *piece.operand.shape[1:]).clone() if block.work.dependents else None
        measured.base_square = arithmetic.base_square(weights, piece.operand)
        if block.work.apart:
            weights = self._combined(weights, block, rows, pristine, measured)
        else:
            changes = [(item.term, item.strength, self._change(item, piece, rows)) for item in block.work.differences]
            arithmetic.add_terms(weights, block.work, rows, changes, pristine, measured)
        if whole and block.begin:  # the parameter's first rows have measured all of it
            measured.base_square, measured.squares = 0.0, {}
        weights = weights[block.begin - rows.start : block.end - rows.start]
        return (weights.T if piece.transposed else weights), before, measured

    def _combined(
        self, weights: Tensor, block: Block, rows: slice, pristine: Tensor | None, measured: Measured
    ) -> Tensor:
        """W′ by a method that is not linear; ``measured`` gets ‖λΔ‖² of what each term keeps."""
        deltas = []
        for item in block.work.apart:
            delta = self._delta(item, block.piece, rows, pristine)
            if item.kept is not None:
                delta.mul_(item.kept[rows])
            measured.squares[item.term] = item.strength**2 * arithmetic.square(delta)
            deltas.append(delta)
        strengths = [item.strength for item in block.work.apart]
        if self._method.weigh:
            return self._add_rows(weights, deltas, strengths)
        assert self._method.combine
        return self._method.combine(weights, deltas, strengths, self._parameters)

    def _add_rows(self, weights: Tensor, deltas: list[Tensor], strengths: list[float]) -> Tensor:
        """Each output row's deltas, weighed by their inner products there."""
        assert self._method.weigh
        stacked = torch.stack(deltas, 1)  # [rows, terms, columns]
        wide = stacked.double()
        given = torch.tensor(strengths, dtype=torch.float64, device=wide.device)
        found = self._method.weigh(wide @ wide.mT, given, self._parameters).to(stacked.dtype)
        return weights.add_((found[:, None] @ stacked)[:, 0])

    def _deltas_on(self, before: Tensor, block: Block) -> Iterator[tuple[int, Tensor]]:
        """Each term's λΔ on the block's sample, W ``before`` there; none where a method or a view makes that dear."""
        piece, work = block.piece, block.work
        rows = slice(block.begin, block.begin + len(before))
        if piece.transposed or work.apart:
            return
        for term, ranks in work.ranks.items():
            assert work.up is not None and work.down is not None
            yield term, work.up[rows, ranks] @ work.down[ranks]
        for term, strength, delta in work.dense:
            yield term, delta.reshape(-1, before.shape[1])[rows] * strength
        for item in work.differences:
            yield item.term, self._change(item, piece, rows) * item.strength
        for term, strength, update in work.dependent:
            if update.rows_of:
                pristine = before.reshape(-1, *piece.operand.shape[1:])
                yield term, update.rows_of(pristine, rows).reshape(before.shape) * strength

    def _delta(self, item: TermDelta, piece: Piece, rows: slice, pristine: Tensor | None) -> Tensor:
        """[rows, columns] of a term's Δ, to be overwritten."""
        if isinstance(item.update, Difference):
            return self._change(item.update, piece, rows)
        return arithmetic.rows_of(item.update, rows, piece.operand.columns, pristine)

    def _copy(self, block: Block, out: memoryview, target: Tensor) -> Measured:
        data = self._read(block.piece.operand, block.rows, out)
        if data is not out:
            out[:] = data
        if not block.piece.encoding.dtype.floating:
            return Measured()
        weights = self._scratch(target.numel(), arithmetic.precision(block.piece.operand)).copy_(target)
        return Measured(arithmetic.base_square(weights, block.piece.operand))

    def _load(self, operand: Operand, rows: slice) -> Tensor:
        """[rows, columns] on the device, in the sum's precision: in scratch memory on the CPU."""
        stored, dtype = self._stored_block(operand, rows), arithmetic.precision(operand)
        if self._device != "cpu":
            return stored.to(self._device).to(dtype).contiguous()
        return self._scratch(stored.numel(), dtype).view(stored.shape).copy_(stored)

    def _change(self, item: Difference, piece: Piece, rows: slice) -> Tensor:
        dtype = arithmetic.precision(piece.operand)
        tuned = self._stored_block(item.tuned, rows).to(self._device, dtype, copy=True)
        return tuned.sub_(self._stored_block(item.origin, rows).to(self._device))

    def _stored_block(self, operand: Operand, rows: slice) -> Tensor:
        """The rows as stored, or decoded, in canonical orientation; valid until the next read of this kind."""
        if operand.info.encoded:
            return self._decoded(operand, rows)
        nbytes = (rows.stop - rows.start) * operand.columns * operand.dtype.itemsize
        buffer = self._stored = self._stored.fitting(nbytes)
        stored = _as_tensor(self._read(operand, rows, buffer.memory[:nbytes]), operand.dtype)
        return stored.view(operand.columns, -1).T if operand.transposed else stored.view(-1, operand.columns)

    def _decoded(self, operand: Operand, rows: slice) -> Tensor:
        """The rows of an encoded operand, some of the stored tensor's at a time where those are its own."""
        if not operand.keeps_rows:
            return operand.read().reshape(operand.rows, -1)[rows]
        parts = [self._decoded_rows(operand.info, *span) for span in operand.stored_rows(rows.start, rows.stop)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decoded_rows(self, info: TensorInfo, begin: int, end: int) -> Tensor:
        encoding = info.encoding
        first, last = begin // encoding.granule * encoding.granule, -(-end // encoding.granule) * encoding.granule
        row, last = encoding.row_bytes(info.numel // info.shape[0]), min(last, info.shape[0])
        nbytes = (last - first) * row
        buffer = self._stored = self._stored.fitting(nbytes)
        self._spare = self._spare.fitting(nbytes)
        data = self._inputs.read(info.path, info.offset + first * row, buffer.memory[:nbytes], self._spare)
        companions = encoding.cut(self._companions(info), slice(first, last))
        rows = encoding.decode({MAIN: _as_tensor(data, encoding.dtype).view(last - first, -1), **companions})
        return rows[begin - first : end - first]

    def _companions(self, info: TensorInfo) -> Parts:
        """Those of a stored tensor; the last one's are kept, since its blocks come one after another."""
        if self._beside[0] is not info:
            self._beside = info, companions_of(info)
        return self._beside[1]

    def _read(self, operand: Operand, rows: slice, into: memoryview) -> memoryview:
        """The rows' bytes: in ``into``, or where they came to lie together."""
        begin = rows.start * operand.columns * operand.dtype.itemsize
        if operand.constant is not None:
            into[:] = operand.constant[begin : begin + len(into)]
            return into
        places = list(operand.cut(begin, len(into)))
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
