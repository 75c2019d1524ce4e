"""The one object through which anything reaches a person or a program.

Data go to stdout, everything else to stderr. There are no bars without a terminal, and NO_COLOR is honoured (by rich).
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import LcmMergeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HOUR = 3600  # seconds
LONGEST = 1000  # letters of an error's line
LETTERS = 6
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True)
class Output:
    """``as_json``: data as one JSON document. ``quiet``: errors and data only. ``verbose``: details too."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def json(self, value: object) -> None:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def text(self, text: str) -> None:
        """Data for people; nothing with ``--json``."""
        if not self.as_json:
            _console(sys.stdout).print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int = 0) -> None:
        """A table for people; the last ``numbers`` columns are set flush right. On a narrow terminal, a list."""
        if rows and not self.as_json:
            console = _console(sys.stdout)
            if _narrowest(columns, rows, numbers) <= console.width:
                console.print(_table(title, columns, rows, numbers))
            else:
                console.print(_listed(title, columns, rows), markup=False, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        if not self.quiet:
            _console(sys.stderr).print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.note(f"Warning: {text}")

    @staticmethod
    def error(error: LcmMergeError) -> None:
        """One line with the cause, one for each detail, one with the cure."""
        lines = [f"Error: {error.message}", *(f"  {detail}" for detail in error.details)]
        lines += [f"Hint: {error.hint}"] if error.hint else []
        sys.stderr.write("\n".join(map(_plain, lines)) + "\n")

    @contextmanager
    def progress(self, title: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Yield a function that is told how many bytes more are done, or how many of the ``unit`` (``steps``).

        ``total``: None where nobody knows it.
        """
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = _console(sys.stderr)
        done = (MofNCompleteColumn(), TextColumn(unit)) if unit else (DownloadColumn(), TransferSpeedColumn())
        columns = (TextColumn(title), BarColumn(), *done, TimeRemainingColumn())
        shown = console.is_terminal and not self.quiet
        with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
            task = bar.add_task(title, total=total)
            yield lambda amount: bar.update(task, advance=amount)

    @contextmanager
    def status(self) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
        """Yield what shows facts in the place of those that it showed before; None where there is no terminal."""
        from rich.live import Live

        console = _console(sys.stderr)
        if self.quiet or not console.is_terminal:
            yield None
            return
        with Live(console=console, auto_refresh=False) as live:
            yield lambda facts: live.update(_table("", [*facts], [[*facts.values()]], 0), refresh=True)

    @contextmanager
    def live(
        self, title: str, total: int, unit: str
    ) -> Iterator[Callable[[int, Callable[[], Mapping[str, Any]]], None]]:
        """As ``progress``, under a table of what is finished: the newest of it that a terminal has room for.

        Yield a function that is told how many more are done, and what makes their row, a value for each column; where
        there is no terminal no row is made. All columns but the first are set flush right.
        """
        from rich.console import Group
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = _console(sys.stderr)
        if self.quiet or not console.is_terminal:
            yield lambda amount, row: None
            return
        count, left = (MofNCompleteColumn(), TextColumn(unit)), (TextColumn("left"), TimeRemainingColumn())
        bar = Progress(
            TextColumn(title), BarColumn(), *count, TimeElapsedColumn(), *left,
            console=console, speed_estimate_period=HOUR,  # what is done at once may take minutes
        )  # fmt: skip
        task = bar.add_task(title, total=total)
        rows: list[Mapping[str, Any]] = []

        def shown() -> Group:
            room = max(1, console.height - 6)
            columns = list(dict.fromkeys(name for row in rows for name in row))
            newest = [[row.get(name, "") for name in columns] for row in rows[-room:]]
            return Group(_table("", columns, newest, len(columns) - 1), bar)

        def done(amount: int, row: Callable[[], Mapping[str, Any]]) -> None:
            rows.append(row())
            bar.update(task, advance=amount)

        with Live(console=console, transient=True, get_renderable=shown):
            yield done


def open_streams() -> None:
    """Those of the standard streams that the caller has closed lead nowhere: a file would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for as long as Python runs


class Warnings(Output):
    """For a caller in Python: what a person would be warned of is a ``UserWarning``."""

    __slots__ = ()

    def warn(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int) -> Table:
    """The last ``numbers`` columns are set flush right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        right = index >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _plain(text: str) -> str:
    """One line with no control characters, and an end: names come from files, and a terminal obeys them."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    shown = (letter if letter.isprintable() else " " if letter.isspace() else ascii(letter)[1:-1] for letter in text)
    return "".join(shown)


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int) -> int:
    """The width at which a table can still be read: its numbers whole, six letters of a word beside each other."""
    widths = []
    for index, cells in enumerate(zip(columns, *rows, strict=True)):
        right = index >= len(columns) - numbers
        widths.append(max(len(str(cell)) if right else min(len(str(cell)), LETTERS) for cell in cells))
    return sum(widths) + 3 * len(widths)


def _listed(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Each row as lines of a column and its value."""
    wide = max(map(len, columns))
    blocks = [
        "\n".join(f"{name:{wide}}  {cell}".rstrip() for name, cell in zip(columns, row, strict=True)) for row in rows
    ]
    return "\n\n".join(filter(None, [title, *blocks])) + "\n"


def _console(stream: Any) -> Console:
    from rich.console import Console

    return Console(file=stream)


def count(number: int) -> str:
    """859.52 M."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def size(nbytes: int) -> str:
    """6.94 GB."""
    return f"{count(nbytes)}B" if nbytes >= 1000 else f"{nbytes} B"


def parse_size(text: str) -> int:
    """``5GB``, ``500MiB``, ``1000000`` as bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    if match is None or match[2] not in UNITS or not (nbytes := int(float(match[1]) * UNITS[match[2]])):
        raise ValueError(f"{text!r} is no size: write 5GB, 500MB or 2GiB")
    return nbytes


def ratio(value: float | None) -> str:
    """A norm ratio or a signal, to three digits."""
    return "∞" if value is None or value == float("inf") else f"{value:.3g}"
