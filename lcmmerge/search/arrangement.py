"""Where a cell stands among others: the one order of the contact sheets and of the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lcmmerge.search.order import Cell


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A study's cells as the heat map and the sheet place them.

    ``places``: rows of cells, None where there is none. ``columns``: the accelerator's λ of each column, and

    ``rows``: the others' of each row; both empty where the cells are no grid, and stand in order.
    """

    places: tuple[tuple[Cell | None, ...], ...]
    columns: tuple[float, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(cls, cells: Iterable[Cell], accelerator: int) -> Arrangement:
        """A grid where at least half of its places are taken; ``accelerator``: which of the terms it is."""
        known = sorted(set(cells))
        columns = tuple(sorted({cell.lambdas[accelerator] for cell in known}))
        taken = {cell.numbers: cell for cell in known}
        rows = tuple(sorted({numbers[:accelerator] + numbers[accelerator + 1 :] for numbers in taken}))
        if len(columns) * len(rows) > 2 * len(known):
            side = max(4, round(len(known) ** 0.5))
            return cls(tuple(tuple(known[begin : begin + side]) for begin in range(0, len(known), side)))
        whole = [[(*row[:accelerator], value, *row[accelerator:]) for value in columns] for row in rows]
        places = tuple(tuple(taken.get(place) for place in row) for row in whole)
        return cls(places, columns, rows)


def label(names: Iterable[str], numbers: Iterable[float]) -> str:
    """``style 0.8, lcm 1``."""
    return ", ".join(f"{name} {number:.3g}" for name, number in zip(names, numbers, strict=True))
