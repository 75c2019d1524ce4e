"""In which order cells of λ are set, so that the least is rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Strengths = tuple[float, ...]  # a cell's numbers: the λ of each of a plan's terms, then the factor of each block axis
Reached = Mapping[frozenset[int], int]  # which of a cell's numbers → elements that exactly those reach


def changed(before: Strengths | None, after: Strengths) -> set[int]:
    """Which of a cell's numbers change; ``before`` is None where it is unknown."""
    return {number for number, value in enumerate(after) if before is None or value != before[number]}


def cost(changes: set[int], reached: Reached) -> int:
    """Elements that are rewritten when these of a cell's numbers change."""
    return sum(elements for reaching, elements in reached.items() if reaching & changes)


def rewritten(cells: Iterable[Strengths], reached: Reached, now: Strengths | None) -> int:
    """Elements that are rewritten when ``cells`` are set in this order, one after another, and ``now`` is set."""
    total, before = 0, now
    for cell in cells:
        total += cost(changed(before, cell), reached)
        before = cell
    return total


def ordered(cells: Iterable[Strengths], reached: Reached, now: Strengths | None) -> list[Strengths]:
    """Each cell once, to and fro (a reflected Gray code), so that a step on a whole grid changes one number.

    The dearest one changes most seldom, and what is set now comes first. No order of a whole grid rewrites less.
    """
    distinct = sorted(set(cells))
    axes = sorted(range(len(distinct[0])), key=lambda number: -cost({number}, reached)) if distinct else []
    return _to_and_fro(distinct, axes, now)


def _to_and_fro(cells: list[Strengths], axes: Sequence[int], now: Strengths | None) -> list[Strengths]:
    if not axes:
        return cells
    axis, *others = axes
    first = now[axis] if now else None
    found: list[Strengths] = []
    for number, value in enumerate(sorted({cell[axis] for cell in cells}, key=lambda value: (value != first, value))):
        part = _to_and_fro([cell for cell in cells if cell[axis] == value], others, now)
        found += reversed(part) if number % 2 else part
    return found
