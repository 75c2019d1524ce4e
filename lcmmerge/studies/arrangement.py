"""Where a cell stands among others: the one order of the contact sheets and of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lcmmerge.studies.order import Strengths


@dataclass(frozen=True, slots=True)
class Arrangement:
    """``places``: rows of cells, None where there is none. ``columns``: the accelerator's λ of each column, and

    ``rows``: the others' of each row; both empty where the cells are no grid, and stand in order.
    """

    places: tuple[tuple[Strengths | None, ...], ...]
    columns: tuple[float, ...] = ()
    rows: tuple[Strengths, ...] = ()

    @classmethod
    def of(cls, cells: Iterable[Strengths], accelerator: int) -> Arrangement:
        """A grid where at least half of its places are taken; ``accelerator``: which of the terms it is."""
        known = sorted(set(cells))
        columns = tuple(sorted({cell[accelerator] for cell in known}))
        rows = tuple(sorted({cell[:accelerator] + cell[accelerator + 1 :] for cell in known}))
        if len(columns) * len(rows) > 2 * len(known):
            side = max(4, round(len(known) ** 0.5))
            return cls(tuple(tuple(known[begin : begin + side]) for begin in range(0, len(known), side)))
        whole = [[(*row[:accelerator], value, *row[accelerator:]) for value in columns] for row in rows]
        taken = set(known)
        places = tuple(tuple(place if place in taken else None for place in row) for row in whole)
        return cls(places, columns, rows)


def label(names: Iterable[str], strengths: Strengths) -> str:
    """``style 0.8, lcm 1``."""
    return ", ".join(f"{name} {strength:.3g}" for name, strength in zip(names, strengths, strict=True))
