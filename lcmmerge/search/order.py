"""A cell of a search, in which order cells are set, so that the least is rewritten, and where each is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Reached = Mapping[frozenset[int], int]  # which of a cell's numbers → elements that exactly those reach


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """The λ of each of a plan's terms, and the factor of each block axis."""

    lambdas: tuple[float, ...]
    factors: tuple[float, ...] = ()

    @property
    def numbers(self) -> tuple[float, ...]:
        """Its coordinates, of which none is special."""
        return (*self.lambdas, *self.factors)


def changed(before: Cell | None, after: Cell) -> set[int]:
    """Which of a cell's numbers change; ``before`` is None where it is unknown."""
    return {number for number, value in enumerate(after.numbers) if before is None or value != before.numbers[number]}


def cost(changes: set[int], reached: Reached) -> int:
    """Elements that are rewritten when these of a cell's numbers change."""
    return sum(elements for reaching, elements in reached.items() if reaching & changes)


def rewritten(cells: Iterable[Cell], reached: Reached, now: Cell | None) -> int:
    """Elements that are rewritten when ``cells`` are set in this order, one after another, and ``now`` is set."""
    total, before = 0, now
    for cell in cells:
        total += cost(changed(before, cell), reached)
        before = cell
    return total


def ordered(cells: Iterable[Cell], reached: Reached, now: Cell | None) -> list[Cell]:
    """Each cell once, to and fro (a reflected Gray code), so that a step on a whole grid changes one number.

    The dearest one changes most seldom, and what is set now comes first. No order of a whole grid rewrites less.
    """
    distinct = sorted(set(cells))
    axes = sorted(range(len(distinct[0].numbers)), key=lambda number: -cost({number}, reached)) if distinct else []
    return _to_and_fro(distinct, axes, now)


def _to_and_fro(cells: list[Cell], axes: Sequence[int], now: Cell | None) -> list[Cell]:
    if not axes:
        return cells
    axis, *others = axes
    first = now.numbers[axis] if now else None
    found: list[Cell] = []
    values = {cell.numbers[axis] for cell in cells}
    for number, value in enumerate(sorted(values, key=lambda value: (value != first, value))):
        part = _to_and_fro([cell for cell in cells if cell.numbers[axis] == value], others, now)
        found += reversed(part) if number % 2 else part
    return found


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
