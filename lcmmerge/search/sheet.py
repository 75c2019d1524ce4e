"""Contact sheets: a row for each λ of the style, a column for each of the accelerator, the teacher above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil

from PIL import Image, ImageDraw, ImageFont

GAP, LINE = 8, 16  # pixels
MOST = 8_000  # pixels of a sheet's longer side: one more would be hard to open, and a smaller scale hard to see


@dataclass(frozen=True, slots=True)
class SheetTile:
    """Images side by side, with a line above; ``best`` gets a frame."""

    caption: str
    images: tuple[Image.Image, ...]
    best: bool = False


Rows = Sequence[Sequence[SheetTile | None]]  # None leaves a place empty


def sheets(beside: Sequence[SheetTile], cells: Rows) -> list[bytes]:
    """PNGs, as many as it takes; ``beside`` stands at the top of each."""
    tiles = [*beside, *(tile for row in cells for tile in row if tile)]
    font = ImageFont.load_default()
    texts = max(int(font.getlength(tile.caption)) for tile in tiles)
    width = max(texts, *(sum(image.width for image in tile.images) for tile in tiles)) + GAP
    height = max(image.height for tile in tiles for image in tile.images) + LINE + GAP
    found = []
    for page in pages(beside, cells, columns=(MOST - GAP) // width, rows=(MOST - GAP) // height):
        size = max(map(len, page)) * width + GAP, len(page) * height + GAP
        found.append(_drawn(page, size, width, height))
    return found


def pages(beside: Sequence[SheetTile], cells: Rows, columns: int, rows: int) -> Iterator[Rows]:
    """Of at most so many columns and rows of tiles, in parts that are about alike; at least one of each."""
    wide = _share(max(map(len, cells)), max(1, columns))
    above = [beside[begin : begin + max(1, columns)] for begin in range(0, len(beside), max(1, columns))]
    tall = _share(len(cells), max(1, rows - len(above)))
    for top in range(0, len(cells), tall):
        for left in range(0, max(map(len, cells)), wide):
            yield [*above, *(row[left : left + wide] for row in cells[top : top + tall])]


def _share(count: int, most: int) -> int:
    return ceil(count / ceil(count / most))


def _drawn(rows: Rows, size: tuple[int, int], width: int, height: int) -> bytes:
    whole = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(whole)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            if tile:
                _paste(whole, pen, tile, GAP + column * width, GAP + number * height)
    data = BytesIO()
    whole.save(data, "png")
    return data.getvalue()


def _paste(whole: Image.Image, pen: ImageDraw.ImageDraw, tile: SheetTile, left: int, top: int) -> None:
    pen.text((left, top), tile.caption, fill="black", font=ImageFont.load_default())
    right = left
    for image in tile.images:
        whole.paste(image, (right, top + LINE))
        right += image.width
    if tile.best:
        bottom = top + LINE + max(image.height for image in tile.images)
        pen.rectangle((left - 3, top + LINE - 3, right + 2, bottom + 2), outline="red", width=3)
