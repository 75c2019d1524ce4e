"""Hostile SQLite: a sound study's database after another program, or a person, has been at it."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from random import Random

from damage import Mutation

VALUES = ("", "x", "[", "[" * 100_000, "null", "NaN", '{"a": 1}', "\0", "é😀", -1, 0, 2**62, 0.5, 1e308, b"\xff", None)
NAMES = ("x", "a b", "sqlite", "select")


def _value(database: sqlite3.Connection, random: Random) -> None:
    """One column of every row, or of one."""
    table, column = _column(database, random)
    where = random.choice(("", f"WHERE rowid = {_row(database, table, random)}"))
    database.execute(f'UPDATE "{table}" SET "{column}" = ? {where}', (random.choice(VALUES),))


def _rows(database: sqlite3.Connection, random: Random) -> None:
    """Rows that are gone, or that stand twice where a table lets them."""
    table, _ = _column(database, random)
    statements = (
        f'DELETE FROM "{table}"',
        f'DELETE FROM "{table}" WHERE rowid = {_row(database, table, random)}',
        f'INSERT INTO "{table}" SELECT * FROM "{table}"',
    )
    database.execute(random.choice(statements))


def _table(database: sqlite3.Connection, random: Random) -> None:
    """A table or a column that is gone, renamed, or another."""
    table, column = _column(database, random)
    statements = (
        [f'DROP TABLE "{table}"'],
        [f'ALTER TABLE "{table}" DROP COLUMN "{column}"'],
        [f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "{random.choice(NAMES)}"'],
        [f'ALTER TABLE "{table}" RENAME TO "{random.choice(NAMES)}"'],
        [f'ALTER TABLE "{table}" ADD COLUMN "more" INTEGER NOT NULL DEFAULT 7'],
        [f'DROP TABLE "{table}"', f'CREATE TABLE "{table}" (x)'],
        [f'ALTER TABLE "{table}" RENAME TO "was"', f'CREATE VIEW "{table}" AS SELECT * FROM "was"'],
        [f'CREATE TRIGGER t BEFORE INSERT ON "{table}" BEGIN SELECT RAISE(ABORT, "no"); END'],
    )
    for statement in random.choice(statements):
        database.execute(statement)


def _constraints(database: sqlite3.Connection, random: Random) -> None:
    """A table with its rows and without types, keys and constraints; then a value of another kind."""
    table, column = _column(database, random)
    database.execute(f'CREATE TABLE "free" AS SELECT * FROM "{table}"')
    database.execute(f'DROP TABLE "{table}"')
    database.execute(f'ALTER TABLE "free" RENAME TO "{table}"')
    database.execute(f'UPDATE "{table}" SET "{column}" = ?', (random.choice(VALUES),))


def _column(database: sqlite3.Connection, random: Random) -> tuple[str, str]:
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    table = random.choice(sorted(tables))
    return table, random.choice([row[1] for row in database.execute(f'PRAGMA table_info("{table}")')])


def _row(database: sqlite3.Connection, table: str, random: Random) -> int:
    return random.choice([row for (row,) in database.execute(f'SELECT rowid FROM "{table}"')] or [0])


def _of(change: Callable[[sqlite3.Connection, Random], None]) -> Mutation:
    """Of an open database, as of the bytes that hold it. What SQLite does not let do is not done."""

    def mutation(data: bytes, random: Random) -> bytes:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
            database.deserialize(data)
            for _ in range(random.choice((1, 1, 2))):
                try:
                    change(database, random)
                except sqlite3.Error:
                    continue
            return database.serialize()

    return mutation


def head(data: bytes, random: Random) -> bytes:
    """https://www.sqlite.org/fileformat.html: page size, versions, number of pages, encoding, cookie."""
    place, form = random.choice(((16, ">H"), (18, ">B"), (19, ">B"), (20, ">B"), (28, ">I"), (32, ">I"), (44, ">I"),
                                 (56, ">I"), (60, ">I"), (40, ">I"), (100, ">B"), (103, ">H")))  # fmt: skip
    most = 256 ** struct.calcsize(form) - 1
    number = struct.pack(form, random.choice((0, 1, 2, 3, most, random.randrange(most))))
    return data[:place] + number + data[place + len(number) :]


def page(data: bytes, random: Random) -> bytes:
    """A page of zeros, of noise, or that is another."""
    length = struct.unpack(">H", data[16:18])[0]
    start, other = (random.randrange(len(data) // length) * length for _ in range(2))
    content = random.choice((bytes(length), random.randbytes(length), data[other : other + length]))
    return data[:start] + content + data[start + length :]


DATABASES: dict[str, Mutation] = {
    "value": _of(_value), "rows": _of(_rows), "table": _of(_table), "constraints": _of(_constraints), "head": head,
    "page": page,
}  # fmt: skip
