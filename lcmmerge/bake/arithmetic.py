"""θ′ = θ_pre + Σ λᵢτᵢ for one parameter: accumulate in float32 (a float64 parameter in float64), round once.

Factors of all terms are concatenated, so that a parameter costs one GEMM however many LoRAs there are:
Σ λᵢ BᵢAᵢ = [λ₁B₁ λ₂B₂ …] [A₁; A₂; …]. A method that weighs terms by their inner products changes the λs alone; another
that is not linear gets each term's Δ formed, some rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import nan

import torch
from torch import Tensor

from lcmmerge.adapters import Dense, Dependent, Factored, Patch, Update
from lcmmerge.bake.outcome import Measured
from lcmmerge.errors import NumericError
from lcmmerge.merge.layout import Piece
from lcmmerge.tensors.chance import generator_of
from lcmmerge.tensors.encodings import Parts, aware
from lcmmerge.terms.match import Contribution, Difference
from lcmmerge.terms.operand import Operand


@dataclass(slots=True)
class TermDelta:
    """One term's Δ of one parameter. ``square``: ‖Δ‖², 0 where it is not known before it is formed.

    ``kept``: by what a method multiplies it, None for all as it is.
    """

    term: int
    strength: float
    update: Update | Difference
    square: float = 0.0
    kept: Tensor | None = None


@dataclass(slots=True)
class Work:
    """A piece made ready: λ folded into ``up`` [out, Σr], ``down`` [Σr, in·kh·kw]; ``squares``: term → ‖λΔ‖².

    ``ranks``: which of Σr are a term's. Where the method is not linear, all is in ``apart``.
    """

    up: Tensor | None = None
    down: Tensor | None = None
    ranks: dict[int, slice] = field(default_factory=dict)
    dense: list[tuple[int, float, Tensor]] = field(default_factory=list)
    dependent: list[tuple[int, float, Dependent]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    squares: dict[int, float] = field(default_factory=dict)
    apart: list[TermDelta] = field(default_factory=list)

    @property
    def dependents(self) -> list[Dependent]:
        apart = [item.update for item in self.apart if isinstance(item.update, Dependent)]
        return [*(update for _, _, update in self.dependent), *apart]

    @property
    def needs_whole(self) -> bool:
        """A term's ΔW depends on more of W than some rows."""
        return any(update.rows_of is None for update in self.dependents)


def precision(operand: Operand) -> torch.dtype:
    """What a parameter's sum is formed in: float32, which holds all that narrower ones do, or its own float64."""
    return torch.float64 if operand.dtype.name == "F64" else torch.float32


def read_roles(patch: Patch, device: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """An adapter's tensors: for float64 in it, else as they are stored, but that float64 is rounded."""
    tensors = {role: info.read().to(device) for role, info in patch.roles.items()}
    wide = torch.float64
    return {role: tensor.to(dtype) if wide in (dtype, tensor.dtype) else tensor for role, tensor in tensors.items()}


def prepare(piece: Piece, device: str, dtype: torch.dtype = torch.float32) -> Work:
    """What the terms add to one parameter, made ready: their tensors are read, in float32 or float64."""
    return joined(read_deltas(piece, device, dtype))


def read_deltas(piece: Piece, device: str, dtype: torch.dtype = torch.float32) -> list[TermDelta]:
    """Each term's Δ of one parameter, in ``dtype``. Raises NumericError, FormatError."""
    deltas = []
    for contribution in piece.contributions:
        update: Update | Difference
        if isinstance(contribution, Difference):
            update = Dense(contribution.read(device, dtype)) if contribution.place else contribution
        else:
            place, tensors = contribution.place, read_roles(contribution.patch, device, dtype)
            shape = place.shape if place else piece.operand.shape
            update = contribution.adapter.update(contribution.patch, tensors, shape)
            update = place.through(update) if place else update
        square = 0.0 if isinstance(update, Dependent | Difference) else _finite(_square_of(update), contribution)
        deltas.append(TermDelta(contribution.term, contribution.strength, update, square))
    return deltas


def joined(deltas: Iterable[TermDelta]) -> Work:
    """The sum of the deltas, each times its strength, with the factors of all in one product."""
    work = Work()
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    for delta in deltas:
        term, strength, update = delta.term, delta.strength, delta.update
        if isinstance(update, Difference):
            work.differences.append(replace(update, strength=strength))
        elif isinstance(update, Dependent):
            work.dependent.append((term, strength, update))
        else:
            work.squares[term] = strength**2 * delta.square
            if isinstance(update, Dense):
                work.dense.append((term, strength, update.delta))
            else:
                first = sum(up.shape[1] for up in ups)
                work.ranks[term] = slice(first, first + update.up.shape[1])
                ups.append(update.up * strength)
                downs.append(update.down)
    if ups:
        work.up = ups[0] if len(ups) == 1 else torch.cat(ups, 1)
        work.down = downs[0] if len(downs) == 1 else torch.cat(downs, 0)
    return work


def factored_inner(one: Factored, other: Factored) -> float:
    """⟨BA, B′A′⟩ = tr((BᵀB′)(A′Aᵀ)), without forming BA."""
    up = one.up.double().T @ other.up.double()
    return float((up * (one.down.double() @ other.down.double().T)).sum())


def _square_of(update: Factored | Dense) -> float:
    return square(update.delta) if isinstance(update, Dense) else factored_square(update)


def factored_square(update: Factored) -> float:
    """‖BA‖² = tr((BᵀB)(AAᵀ)), without forming BA."""
    return float(((update.up.T @ update.up) * (update.down @ update.down.T)).sum(dtype=torch.float64))


def square(tensor: Tensor) -> float:
    """‖tensor‖² in one pass; NaN or Inf anywhere makes it NaN or Inf."""
    flat = tensor.reshape(-1)
    return float(torch.dot(flat, flat))


def _finite(norm: float, item: Contribution) -> float:
    if not math.isfinite(norm):
        source = item.tuned if isinstance(item, Difference) else item.patch
        name = source.name if isinstance(source, Operand) else source.key
        raise NumericError(f"{source.path}: {name} holds NaN or Inf", "the file is damaged: download or train it again")
    return max(norm, 0.0)


def add_terms(
    weights: Tensor,
    work: Work,
    rows: slice,
    changes: Iterable[tuple[int, float, Tensor]],
    pristine: Tensor | None,
    measured: Measured,
) -> None:
    """Add every term to ``weights`` ([rows, columns] of the flattened parameter, as ``precision`` says), in place.

    ``changes``: term, strength and this block of θ_ft − θ_base. ``pristine``: the block as it was, in the parameter's
    dimensions, for terms whose ΔW depends on it: so the order of terms does not matter. ``measured`` gets their ‖λΔ‖².
    """
    if work.up is not None and work.down is not None:
        if weights.dtype == torch.float64:  # addmm would round to W's last place once for each rank
            weights.add_(work.up[rows] @ work.down)
        else:
            weights.addmm_(work.up[rows], work.down)
    for _, strength, delta in work.dense:
        weights.add_(delta.reshape(-1, weights.shape[1])[rows], alpha=strength)
    for term, strength, change in changes:
        _add(weights, change, term, strength, measured)
    for term, strength, update in work.dependent:
        assert pristine is not None
        change = update.rows_of(pristine, rows) if update.rows_of else update.delta_of(pristine)
        _add(weights, change, term, strength, measured)


def _add(weights: Tensor, change: Tensor, term: int, strength: float, measured: Measured) -> None:
    measured.squares[term] = strength**2 * square(change)
    weights.add_(change.reshape(weights.shape), alpha=strength)


def rows_of(update: Update, rows: slice, columns: int, pristine: Tensor | None) -> Tensor:
    """[rows, columns] of an adapter's Δ, to be overwritten; ``pristine`` as in ``add_terms``."""
    if isinstance(update, Factored):
        return update.up[rows] @ update.down
    if isinstance(update, Dense):
        return update.delta.reshape(-1, columns)[rows].clone()
    assert pristine is not None
    change = update.rows_of(pristine, rows) if update.rows_of else update.delta_of(pristine)
    return change.reshape(-1, columns)


def round_into(
    parts: Parts, weights: Tensor, piece: Piece, row: int, seed: int | None, peak: float = nan, *,
    error_aware: bool = False,
) -> None:  # fmt: skip
    """Encode ``weights`` [rows, columns] into ``parts``, rounding once, to nearest (ties to even) or stochastically.

    ``peak``: what the encoding asks for. ``error_aware``: by the scales that lose least, where it has some to choose.
    Raises NumericError for NaN, Inf, and what the encoding cannot hold.
    """
    if error_aware and piece.encoding.scales:
        aware.encode(piece.encoding, weights, parts, peak)
    else:
        generator = None if seed is None else generator_of(f"{seed}/{piece.operand.name}/{row}")
        piece.encoding.encode(weights, parts, generator, peak)
    norm, largest = square(weights), piece.encoding.largest
    # A block whose norm is below the dtype's largest number can hold nothing above it.
    if math.sqrt(norm) < largest:
        return
    peak = float(weights.abs().max())
    if not math.isfinite(peak):
        cure = "an adapter is damaged, or a λ is far too large"
        raise NumericError(f"{piece.operand.name}: the merge gives NaN or Inf", cure)
    if peak > largest:  # looked at here: a cast to float8_e4m3fn saturates
        raise NumericError(
            f"{piece.operand.name}: {peak:.4g} overflows {piece.encoding.dtype.torch_name} (±{largest:.4g})",
            "choose a wider --dtype (bf16 or fp32), or a smaller λ",
        )


def base_square(weights: Tensor, operand: Operand) -> float:
    """‖θ‖² of a block. Raises NumericError where it holds NaN or Inf."""
    norm = square(weights)
    if not math.isfinite(norm) and not bool(weights.isfinite().all()):
        raise NumericError(
            f"{operand.path}: {operand.name} holds NaN or Inf",
            "the file is damaged: download or make it again",
        )
    return norm


def largest(weights: Tensor) -> float:
    """The largest magnitude: NaN where one is."""
    low, high = weights.aminmax()
    return float(torch.maximum(-low, high))


def measure_rounding(
    measured: Measured, before: Tensor, exact: Tensor, written: Tensor, deltas: Iterable[tuple[int, Tensor]]
) -> None:
    """What rounding made of a sample, θ ``before`` the merge and θ′ ``exact``; ``deltas``: terms, and λΔ there."""
    change, error = exact - before, written.to(exact.device, exact.dtype) - exact
    measured.sampled = exact.numel()
    measured.change, measured.error = square(change), square(error)
    lost = _inner(error, change)
    measured.kept = measured.change + lost
    measured.made = max(measured.kept + lost + measured.error, 0.0)  # ‖change + error‖²
    measured.terms = {term: (square(delta), _inner(error, delta)) for term, delta in deltas}


def _inner(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.reshape(-1), other.reshape(-1)))
