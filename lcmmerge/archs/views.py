"""Views: where a canonical parameter lies in a tensor that a file stores.

A file may fuse what the canonical names keep apart (OpenCLIP's ``in_proj_weight`` is q, k and v, one below another), or
store the same numbers in another order or shape. A view works both ways, and tells sizes by shares, so that it holds
at any width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
Rows = tuple[int, int]  # from, to


@dataclass(frozen=True, slots=True)
class View:
    """A canonical parameter as a part of a stored tensor; by default all of it, as it lies there.

    ``begin``, ``end``, ``of``: the part is rows begin·n/of … end·n/of of the stored tensor's n.
    ``head``: the parts alternate, head by head; a head has ``of``·``head`` stored rows (MiniMax-H3's qkv).
    ``swapped``: the part's two halves stand in the other order (``norm_out`` of diffusion transformers).
    ``transposed``: stored as [in, out]. ``canonical`` and ``stored``: the two shapes where they differ, as patterns in
    which 0 is the other shape's size at that place, and −1 what is left: 1×1 convolutions are (0, 0) and (0, 0, 1, 1).
    """

    begin: int = 0
    end: int = 1
    of: int = 1
    head: int = 0
    swapped: bool = False
    transposed: bool = False
    canonical: Shape = ()
    stored: Shape = ()

    @property
    def keeps_order(self) -> bool:
        """Whether the parameter's elements lie one after another, in their order."""
        return not (self.head or self.swapped or self.transposed)

    @property
    def is_whole(self) -> bool:
        return self.begin == 0 and self.end == self.of and self.keeps_order

    def splits(self, stored: Shape) -> bool:
        """Whether a stored tensor of this shape can be cut so."""
        unit = self.of * (self.head or 1) * (2 if self.swapped else 1)
        return unit == 1 or (bool(stored) and stored[0] % unit == 0)

    def fitting(self, stored: Shape) -> View:
        """This view of a tensor of that shape: some files have the canonical one where others have not."""
        plain = replace(self, canonical=(), stored=())
        return self if _filled(self.stored, _filled(self.canonical, stored)) == stored else plain

    def shape(self, stored: Shape) -> Shape:
        """The canonical parameter's shape, from the stored tensor's."""
        if self.transposed:
            return stored[::-1]
        rows = (stored[0] // self.of * (self.end - self.begin), *stored[1:]) if stored and self.of > 1 else stored
        return _filled(self.canonical, rows)

    def stored_shape(self, canonical: Shape) -> Shape:
        """The stored tensor's shape, from the canonical parameter's."""
        if self.transposed:
            return canonical[::-1]
        part = _filled(self.stored, canonical)
        return (part[0] * self.of // (self.end - self.begin), *part[1:]) if self.of > 1 else part

    def of_rows(self) -> View:
        """Its choice of rows alone, whatever stands in them: the view of a bias."""
        return replace(self, transposed=False, canonical=(), stored=())

    def rows(self, count: int) -> tuple[Rows, ...]:
        """Which of the ``count`` rows of the stored tensor are the parameter's, in the parameter's order."""
        if self.head:
            step = self.of * self.head
            return tuple(
                (first + self.begin * self.head, first + self.end * self.head) for first in range(0, count, step)
            )
        begin, end = count * self.begin // self.of, count * self.end // self.of
        middle = (begin + end) // 2
        return ((middle, end), (begin, middle)) if self.swapped else ((begin, end),)

    def take(self, stored: Tensor) -> Tensor:
        """The canonical parameter, out of the stored tensor."""
        import torch

        if self.transposed:
            return stored.T
        rows = self.rows(stored.shape[0]) if stored.dim() else ()
        part = torch.cat([stored[begin:end] for begin, end in rows]) if len(rows) > 1 else stored
        if len(rows) == 1 and self.of > 1:
            part = stored[slice(*rows[0])]
        return part.reshape(_filled(self.canonical, tuple(part.shape)))

    def put(self, stored: Tensor, canonical: Tensor) -> None:
        """Write the canonical parameter to its place in the stored tensor."""
        if self.transposed:
            stored.copy_(canonical.T)
            return
        part, done = canonical.reshape(_filled(self.stored, tuple(canonical.shape))), 0
        for begin, end in self.rows(stored.shape[0]):
            stored[begin:end] = part[done : done + end - begin]
            done += end - begin


WHOLE = View()
TRANSPOSED = View(transposed=True)
CONV1X1 = View(canonical=(0, 0), stored=(0, 0, 1, 1))
SWAPPED = View(swapped=True)


def part(begin: int, end: int, of: int) -> View:
    """Rows begin/of … end/of of the stored tensor: ``part(3, 7, 7)`` is the MLP of FLUX's ``linear1``."""
    return View(begin, end, of)


class Tile(NamedTuple):
    """Rows of one of several parameters."""

    number: int
    begin: int
    end: int


def tiles(views: Sequence[View], shapes: Sequence[Shape]) -> tuple[Shape, list[Tile]] | None:
    """The shape of a stored tensor that canonical parameters of these ``shapes`` make up, and of which of their rows,
    from its first to its last. None where they leave a hole, overlap, or are not of one tensor.
    """
    stored = {view.stored_shape(shape) for view, shape in zip(views, shapes, strict=True)}
    if len(stored) != 1:
        return None
    (shape,) = stored
    if len(views) == 1 and (views[0].is_whole or views[0].transposed):
        return shape, [Tile(0, 0, shapes[0][0] if shapes[0] else 1)]
    placed: list[tuple[int, int, Tile]] = []
    for number, view in enumerate(views):
        done = 0
        for begin, end in view.rows(shape[0]):
            placed.append((begin, end, Tile(number, done, done + end - begin)))
            done += end - begin
    placed.sort()
    ends = [0, *(end for _, end, _ in placed)]
    if [begin for begin, _, _ in placed] != ends[:-1] or ends[-1] != shape[0]:
        return None
    return shape, [tile for _, _, tile in placed]


def _filled(pattern: Shape, shape: Shape) -> Shape:
    """A pattern with the numbers of a shape of as many elements; without a pattern the shape itself."""
    if not pattern or (0 in pattern and len(shape) <= max(place for place, size in enumerate(pattern) if size == 0)):
        return shape
    sizes = [shape[place] if size == 0 else size for place, size in enumerate(pattern)]
    if -1 in sizes:
        rest = prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = prod(shape) // rest if rest else 0
    return tuple(sizes)
