"""The one object through which anything reaches a person or a program.

Data go to stdout, everything else to stderr. There are no bars without a terminal, and NO_COLOR is honoured (by rich).

Names and metadata come from files of strangers, and a terminal obeys what it is shown. So everything passes ``plain``
on its way out, here and nowhere else: callers hand over raw values, and whatever these hold, a line stays one line.
What the stream's encoding lacks is spelled by ``SPELLED``; in JSON both are escapes, and parse to the same.
"""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lcmmerge.errors import LcmMergeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HOUR = 3600  # seconds
DESCRIBED = "{task.description}"  # where a bar has its title
LONGEST = 1000  # letters of an error's line
LETTERS = 6
SPELL = "lcmmerge.spell"  # as codecs know ``_spell``
SPELLED = {
    "λ": "lambda", "τ": "tau", "θ": "theta", "Δ": "Delta", "Σ": "sum ", "η": "eta", "γ": "gamma", "μ": "mu",
    "α": "alpha", "ᵢ": "_i", "′": "'", "²": "^2", "‖": "||", "∞": "inf", "×": "x", "·": "*", "−": "-", "–": "-",
    "…": "...", "→": "->",
}  # fmt: skip
LARGEST = 1 << 63  # bytes of a file, on any system
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True)
class Output:
    """What a command says: data on stdout, everything else on stderr.

    ``as_json``: data as one JSON document. ``quiet``: errors and data only. ``verbose``: details too.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def json(self, value: object) -> None:
        """One document: letters as they are where the stream has them all, and escapes for what is not to be shown."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        if not _holds(sys.stdout, text):
            text = json.dumps(value, indent=2)
        shown = (sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text)
        sys.stdout.write("".join(shown) + "\n")

    def text(self, *lines: str) -> None:
        """Data for people, a line for each argument; nothing with ``--json``."""
        if not self.as_json:
            _print(sys.stdout, lines)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int = 0) -> None:
        """A table for people; the last ``numbers`` columns are set flush right. On a narrow terminal, a list."""
        if rows and not self.as_json:
            console = _console(sys.stdout)
            names, *cells = ([_line(sys.stdout, cell) for cell in row] for row in (columns, *rows))
            if _narrowest(names, cells, numbers) <= console.width:
                console.print(_table(console, title, names, cells, numbers))
            else:
                _print(sys.stdout, _listed(title, names, cells))

    def note(self, *lines: str) -> None:
        """For people, a line for each argument; nothing with ``--quiet``."""
        if not self.quiet:
            _print(sys.stderr, lines)

    def warn(self, text: str) -> None:
        self.note(f"Warning: {text}")

    @staticmethod
    def error(error: LcmMergeError) -> None:
        """One line with the cause, one for each detail, one with the cure."""
        hint = [f"Hint: {error.hint}"] if error.hint else []
        Output.last(f"Error: {error.message}", *(f"  {detail}" for detail in error.details), *hint)

    @staticmethod
    def last(*lines: str) -> None:
        """What is said as the program ends, a line for each argument, none of them longer than a person reads."""
        short = (line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…" for line in lines)
        sys.stderr.write("".join(f"{_line(sys.stderr, line)}\n" for line in short))

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
        columns = (TextColumn(DESCRIBED, markup=False), BarColumn(), *done, TimeRemainingColumn())
        shown = console.is_terminal and not self.quiet
        with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
            task = bar.add_task(_line(sys.stderr, title), total=total)
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
            yield lambda facts: live.update(_table(console, "", [*facts], [[*facts.values()]], 0), refresh=True)

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
            TextColumn(DESCRIBED, markup=False), BarColumn(), *count, TimeElapsedColumn(), *left,
            console=console, speed_estimate_period=HOUR,  # what is done at once may take minutes
        )  # fmt: skip
        task = bar.add_task(_line(sys.stderr, title), total=total)
        rows: list[Mapping[str, Any]] = []

        def shown() -> Group:
            room = max(1, console.height - 6)
            columns = list(dict.fromkeys(name for row in rows for name in row))
            newest = [[row.get(name, "") for name in columns] for row in rows[-room:]]
            return Group(_table(console, "", columns, newest, len(columns) - 1), bar)

        def done(amount: int, row: Callable[[], Mapping[str, Any]]) -> None:
            rows.append(row())
            bar.update(task, advance=amount)

        with Live(console=console, transient=True, get_renderable=shown):
            yield done


def open_streams() -> None:
    """Make the standard streams fit to write anything to, and what libraries warn of and log as plain as our own words.

    Those that the caller has closed lead nowhere: a file would take their place.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for as long as Python runs
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=SPELL)
    warnings.formatwarning = lambda message, category, *rest, **named: f"{category.__name__}: {plain(message)}\n"
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return plain(super().getMessage())


class Warnings(Output):
    """For a caller in Python: what a person would be warned of is a ``UserWarning``."""

    __slots__ = ()

    def warn(self, text: str) -> None:
        warnings.warn(plain(text), stacklevel=2)


def plain(value: object) -> str:
    """One line that a terminal only shows: controls, turns of direction and stray surrogates are escapes, as in Python.

    Whatever else is white is a space.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else ascii(sign)[1:-1] for sign in text)


def spelled(stream: Any, text: str) -> str:
    """``text`` in the letters that the stream's encoding has."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, SPELL).decode(encoding)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SPELLED.get(sign) or ascii(sign)[1:-1] for sign in lacking), error.end


codecs.register_error(SPELL, _spell)


def _holds(stream: Any, text: str) -> bool:
    """The stream's encoding has every letter; stray surrogates, which none has, are never written as they are."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8", "surrogatepass")
    except UnicodeEncodeError:
        return False
    return True


def _line(stream: Any, value: object) -> str:
    return spelled(stream, plain(value))


def _print(stream: Any, lines: Iterable[str]) -> None:
    _console(stream).print("\n".join(_line(stream, line) for line in lines), soft_wrap=True)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int) -> Table:
    """The last ``numbers`` columns are set flush right."""
    from rich import box
    from rich.table import Table

    shown = partial(_line, console.file)
    table = Table(title=shown(title) or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        right = index >= len(columns) - numbers
        table.add_column(shown(column), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*map(shown, row))
    return table


def _narrowest(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> int:
    """The width at which a table can still be read: its numbers whole, six letters of a word beside each other."""
    widths = []
    for index, cells in enumerate(zip(columns, *rows, strict=True)):
        right = index >= len(columns) - numbers
        widths.append(max(len(cell) if right else min(len(cell), LETTERS) for cell in cells))
    return sum(widths) + 3 * len(widths)


def _listed(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each row as lines of a column and its value."""
    wide = max(map(len, columns))
    if title:
        yield from (title, "")
    for row in rows:
        yield from (f"{name:{wide}}  {cell}".rstrip() for name, cell in zip(columns, row, strict=True))
        yield ""


def _console(stream: Any) -> Console:
    """Words are shown as they are: no markup, no names of emoji, no colours by what they look like."""
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False)


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
    nbytes = float(match[1]) * UNITS.get(match[2], 0) if match else 0
    if not 1 <= nbytes < LARGEST:
        raise ValueError(f"{text!r} is not a size: write 5GB, 500MB or 2GiB")
    return int(nbytes)


def ratio(value: float | None) -> str:
    """A norm ratio or a signal, to three digits."""
    return "∞" if value is None or value == float("inf") else f"{value:.3g}"


def share(value: float) -> str:
    """A part of a whole in percent; nothing where it is NaN."""
    return "" if value != value else f"{value:.1%}".replace("%", " %")
