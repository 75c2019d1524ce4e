"""A diffusion transformer's names: lists of equal blocks, and what stands before and behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from lcmmerge.archs.component import BASE, Component
from lcmmerge.archs.tables import Slot, Table, expand
from lcmmerge.archs.views import Shape


@dataclass(frozen=True, slots=True)
class BlockList:
    """Equal blocks, one after another.

    ``name``: such as ``transformer_blocks``, before a block's number; ``stored``: in a single file, where it is
    another. ``depth``: how many the published model has. ``letter``: ``--block-weights`` has ``B00``, ``B01``, …;
    without one they are of the block BASE. ``aliases``: what adapter files alone call modules, below ``stored``.
    ``last``: the table of the last block, where it is another. ``other``: rows of ``table`` as other programs' files
    have them, which adapters may be made for too.
    """

    name: str
    table: Table
    depth: int
    letter: str = ""
    stored: str = ""
    aliases: Table = ()
    last: Table = ()
    other: Table = ()

    def sized(self, names: Iterable[str]) -> BlockList:
        """As many as these names, canonical or stored, tell; at least one, so that what has none lacks it."""
        numbered = re.compile(rf"(?:{re.escape(self.name)}|{re.escape(self.stored or self.name)})\.(\d{{1,4}})\.")
        numbers = [int(match[1]) for name in names if (match := numbered.match(name))]
        return replace(self._told_by(names), depth=max(numbers, default=0) + 1)

    def _told_by(self, names: Iterable[str]) -> BlockList:
        """With the ``other`` rows in the table, where the first block has their names."""
        begin = f"{self.stored or self.name}.0."
        if not {slot.stored for slot in expand(self.other, "", begin)}.intersection(names):
            return self
        others = {row.canonical for row in self.other}
        kept = tuple(row for row in self.table if row.canonical not in others)
        own = tuple(row for row in self.table if row.canonical in others)
        return replace(self, table=kept + self.other, other=own)

    def slots(self, table: Table, canonical: str, stored: str) -> Iterator[Slot]:
        for number in range(self.depth):
            begin = f"{stored}{self.stored or self.name}.{number}."
            its = self.last if self.last and table is self.table and number == self.depth - 1 else table
            yield from expand(its, f"{canonical}{self.name}.{number}.", begin)

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(f"{self.letter}{number:02}" for number in range(self.depth)) if self.letter else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer(Component):
    """A diffusion transformer. ``ends``: the table of what there is once; what it names is of the block BASE.

    ``ratios``: how many times its inputs a module's outputs are, by how its canonical name ends, where that tells the
    family from others that have the same names.
    """

    name: str = "transformer"
    stored: str = "model.diffusion_model."
    kohya: str = "lora_unet_"
    kind: str = "diffusion transformer"
    ends: Table
    lists: tuple[BlockList, ...]
    ratios: tuple[tuple[str, int], ...] = ()

    def slots(self) -> Iterator[Slot]:
        yield from expand(self.ends, f"{self.name}.", self.stored)
        for item in self.lists:
            yield from item.slots(item.table, f"{self.name}.", self.stored)

    def aliases(self) -> Iterator[Slot]:
        for item in self.lists:
            yield from item.slots(item.aliases + item.other, f"{self.name}.", self.stored)

    def marks(self) -> tuple[str, ...]:
        names = {name for item in self.lists for name in (item.name, item.stored) if name}
        return tuple(name.replace(".", "_") for name in sorted(names))

    def may_have(self, module: str, shape: Shape) -> bool:
        ratio = next((ratio for end, ratio in self.ratios if module.endswith(f".{end}")), None)
        return ratio is None or shape[0] == ratio * shape[1]

    def sized(self, names: Iterable[str]) -> Self:
        names = tuple(names)
        return replace(self, lists=tuple(item.sized(names) for item in self.lists))

    def blocks(self) -> tuple[str, ...]:
        return (BASE, *(block for item in self.lists for block in item.blocks))

    def block_of(self, slot: Slot) -> str:
        inner = slot.parameter.removeprefix(f"{self.name}.")
        for item in self.lists:
            if item.letter and inner.startswith(f"{item.name}."):
                return item.blocks[int(inner.removeprefix(f"{item.name}.").partition(".")[0])]
        return BASE
