"""Names: canonical (diffusers' and transformers', with the component in front) ↔ stored (a file's own).

``unet.down_blocks.0.resnets.0.conv1.weight`` ↔ ``model.diffusion_model.input_blocks.1.0.in_layers.2.weight``

A map is written as tables of rows; a row is a pair of patterns with holes: ``{i}`` counts layers, ``{p}``
stands for ``weight`` and ``bias``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from lcmmerge.archs.views import WHOLE, View, part


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a canonical parameter lies: in which stored tensor, and which view of it.

    ``optional``: only some models of the family have it.
    """

    parameter: str
    stored: str
    view: View = WHOLE
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; an empty ``stored`` is the same as ``canonical``. The rest is as in Slot."""

    canonical: str
    stored: str = ""
    view: View = WHOLE
    optional: bool = False


Table = tuple[Row, ...]


def fused(stored: str, canonicals: Sequence[str], shares: Sequence[int] = ()) -> Table:
    """The rows of a stored tensor in which parameters lie one below another: in equal parts, or in such ``shares``."""
    shares = shares or [1] * len(canonicals)
    ends = [sum(shares[: number + 1]) for number in range(len(shares))]
    return tuple(
        Row(canonical, stored, part(end - share, end, ends[-1]))
        for canonical, share, end in zip(canonicals, shares, ends, strict=True)
    )


def optional(table: Table) -> Table:
    """The rows, of what only some models of the family have."""
    return tuple(replace(row, optional=True) for row in table)


def expand(table: Table, canonical: str, stored: str, count: int = 1) -> Iterator[Slot]:
    """The slots of a table below two prefixes, with ``{i}`` running from 0 to ``count`` − 1."""
    for row in table:
        pattern = row.stored or row.canonical
        for i in range(count if "{i}" in row.canonical else 1):
            for p in ("weight", "bias") if "{p}" in row.canonical else ("",):
                yield Slot(
                    canonical + row.canonical.format(i=i, p=p),
                    stored + pattern.format(i=i, p=p),
                    row.view,
                    row.optional,
                )


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Both directions. ``slots``: canonical name → slot; ``stored``: stored name → its slots, in the table's order.

    A parameter with two rows is written by the last one's name; ``others`` are the names by which it is only read.
    """

    slots: Mapping[str, Slot]
    stored: Mapping[str, tuple[Slot, ...]]
    others: Mapping[str, Slot]

    @classmethod
    def of(cls, slots: Iterable[Slot]) -> KeyMap:
        slots = list(slots)
        by_parameter = {slot.parameter: slot for slot in slots}
        by_stored: dict[str, tuple[Slot, ...]] = {}
        others: dict[str, Slot] = {}
        for slot in slots:
            if by_parameter[slot.parameter] == slot:
                by_stored[slot.stored] = (*by_stored.get(slot.stored, ()), slot)
            else:
                others[slot.stored] = slot
        return cls(MappingProxyType(by_parameter), MappingProxyType(by_stored), MappingProxyType(others))

    def read(self, stored: str) -> tuple[Slot, ...]:
        """The slots in a stored tensor; none for a name that is not in the map."""
        return self.stored.get(stored) or ((self.others[stored],) if stored in self.others else ())
