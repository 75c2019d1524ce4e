"""A diffusion transformer's names: lists of equal blocks, and what stands before and behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from lcmmerge.archs.component import BASE, Component
from lcmmerge.archs.tables import Slot, Table, expand


@dataclass(frozen=True, slots=True)
class BlockList:
    """Equal blocks, one after another.

    ``name``: such as ``transformer_blocks``, before a block's number; ``stored``: in a single file, where it is
    another. ``depth``: how many the published model has. ``letter``: ``--block-weights`` has ``B00``, ``B01``, …
    """

    name: str
    table: Table
    depth: int
    letter: str
    stored: str = ""

    def sized(self, names: Iterable[str]) -> BlockList:
        """As many as these names, canonical or stored, tell."""
        numbered = re.compile(rf"(?:{re.escape(self.name)}|{re.escape(self.stored or self.name)})\.(\d{{1,4}})\.")
        numbers = [int(match[1]) for name in names if (match := numbered.match(name))]
        return replace(self, depth=max(numbers, default=-1) + 1)

    @property
    def blocks(self) -> tuple[str, ...]:
        return tuple(f"{self.letter}{number:02}" for number in range(self.depth))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformer(Component):
    """A diffusion transformer. ``ends``: the table of what there is once; what it names is of the block BASE."""

    name: str = "transformer"
    stored: str = "model.diffusion_model."
    kohya: str = "lora_unet_"
    kind: str = "diffusion transformer"
    ends: Table
    lists: tuple[BlockList, ...]

    def slots(self) -> Iterator[Slot]:
        yield from expand(self.ends, f"{self.name}.", self.stored)
        for item in self.lists:
            for number in range(item.depth):
                stored = f"{self.stored}{item.stored or item.name}.{number}."
                yield from expand(item.table, f"{self.name}.{item.name}.{number}.", stored)

    def sized(self, names: Iterable[str]) -> Self:
        names = tuple(names)
        return replace(self, lists=tuple(item.sized(names) for item in self.lists))

    def blocks(self) -> tuple[str, ...]:
        return (BASE, *(block for item in self.lists for block in item.blocks))

    def block_of(self, slot: Slot) -> str:
        inner = slot.parameter.removeprefix(f"{self.name}.")
        for item in self.lists:
            if inner.startswith(f"{item.name}."):
                return item.blocks[int(inner.split(".")[1])]
        return BASE
