"""Names: canonical (diffusers' and transformers', with the component in front) ↔ stored (a file's own).

``unet.down_blocks.0.resnets.0.conv1.weight`` ↔ ``model.diffusion_model.input_blocks.1.0.in_layers.2.weight``

A map is written as tables of rows; a row is a pair of patterns with holes: ``{i}`` counts layers, ``{p}``
stands for ``weight`` and ``bias``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a canonical parameter lies: in which stored tensor, and which view of it.

    ``part`` of ``parts``: rows part·n … (part+1)·n of the stored tensor, n = stored rows / parts (OpenCLIP's
    fused ``in_proj_weight`` holds q, k, v). ``transposed``: stored as [in, out]. ``conv1x1``: stored as
    [out, in, 1, 1] where the canonical parameter is [out, in] (the VAE's attention).
    """

    parameter: str
    stored: str
    part: int = 0
    parts: int = 1
    transposed: bool = False
    conv1x1: bool = False

    def shape(self, stored: Shape) -> Shape:
        """The canonical parameter's shape, from the stored tensor's."""
        if self.transposed:
            return stored[::-1]
        if self.conv1x1:
            return stored[:2]
        return (stored[0] // self.parts, *stored[1:]) if self.parts > 1 else stored


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One line of a table; an empty ``stored`` is the same as ``canonical``. The rest is as in Slot."""

    canonical: str
    stored: str = ""
    part: int = 0
    parts: int = 1
    transposed: bool = False
    conv1x1: bool = False


Table = tuple[KeyRow, ...]


def expand(table: Table, canonical: str, stored: str, count: int = 1) -> Iterator[Slot]:
    """The slots of a table below two prefixes, with ``{i}`` running from 0 to ``count`` − 1."""
    for row in table:
        pattern = row.stored or row.canonical
        for i in range(count if "{i}" in row.canonical else 1):
            for p in ("weight", "bias") if "{p}" in row.canonical else ("",):
                yield Slot(
                    canonical + row.canonical.format(i=i, p=p),
                    stored + pattern.format(i=i, p=p),
                    row.part,
                    row.parts,
                    row.transposed,
                    row.conv1x1,
                )


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Both directions. ``slots``: canonical name → slot; ``stored``: stored name → its slots, by part."""

    slots: Mapping[str, Slot]
    stored: Mapping[str, tuple[Slot, ...]]

    @classmethod
    def of(cls, slots: Iterable[Slot]) -> KeyMap:
        by_parameter: dict[str, Slot] = {}
        by_stored: dict[str, tuple[Slot, ...]] = {}
        for slot in slots:
            by_parameter[slot.parameter] = slot
            by_stored[slot.stored] = (*by_stored.get(slot.stored, ()), slot)
        return cls(MappingProxyType(by_parameter), MappingProxyType(by_stored))

    def read(self, stored: str) -> tuple[Slot, ...]:
        """The slots in a stored tensor; none for a name that is not in the map."""
        return self.stored.get(stored, ())
