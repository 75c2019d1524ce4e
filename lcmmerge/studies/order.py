"""In which order cells of λ are set, so that the least is rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Strengths = tuple[float, ...]  # λ of each of a plan's terms
Reached = Mapping[frozenset[int], int]  # terms → elements that exactly those terms reach


def changed(before: Strengths | None, after: Strengths) -> set[int]:
    """The terms whose λ changes; ``before`` is None where it is unknown."""
    return {term for term, strength in enumerate(after) if before is None or strength != before[term]}


def cost(terms: set[int], reached: Reached) -> int:
    """Elements that are rewritten when the λs of these terms change."""
    return sum(number for reaching, number in reached.items() if reaching & terms)


def rewritten(cells: Iterable[Strengths], reached: Reached, now: Strengths | None) -> int:
    """Elements that are rewritten when ``cells`` are set in this order, one after another, and ``now`` is set."""
    total, before = 0, now
    for cell in cells:
        total += cost(changed(before, cell), reached)
        before = cell
    return total


def ordered(cells: Iterable[Strengths], reached: Reached, now: Strengths | None) -> list[Strengths]:
    """Each cell once, to and fro (a reflected Gray code), so that a step on a whole grid changes one λ.

    The dearest λ changes most seldom, and what is set now comes first. No order of a whole grid rewrites less.
    """
    distinct = sorted(set(cells))
    axes = sorted(range(len(distinct[0])), key=lambda term: -cost({term}, reached)) if distinct else []
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
