"""The study's database beside what Optuna keeps in it: who works on the study, and samples that machines share.

A worker holds locks that end with its process, however that ends: no cell is taken by two, and nobody waits for the
dead. PostgreSQL and MySQL have locks by name that end with the connection, SQLite has files beside it in their place.

https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
https://dev.mysql.com/doc/refman/8.4/en/locking-functions.html (MySQL is not tested)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from filelock import FileLock, Timeout

from lcmmerge.errors import LcmMergeError
from lcmmerge.tensors.blockio import output_error

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

PATIENCE = 60.0  # seconds that SQLite waits for another who writes, unless the URL has a ?timeout=
LARGEST = 2**32 - 1  # bytes of samples; MySQL chooses its column by it
TABLES = "tables"  # the lock of who makes them
# Optuna's, of tables that another program wrote, or a failing disk.
DAMAGE = (RuntimeError, LookupError, TypeError, ValueError)


class Database:
    """``url``: SQLite, PostgreSQL or MySQL. ``work``: the study's folder, which gives the study its name.

    ``shared``: samples go into the database too, since its workers need not have one folder.
    Raises LcmMergeError where it cannot be used, as does everything here.
    """

    def __init__(self, url: str, work: Path, *, shared: bool = False) -> None:
        self.url, self.study = url, work.resolve().name
        self.worker = f"{gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        with self.faults():
            from sqlalchemy import create_engine

            self._engine = create_engine(url, **self.options)
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._locks = _locks(self._connection, work)
            self._locks.acquire(self.worker)
        self._samples = self._table() if shared else None

    @property
    def options(self) -> dict[str, Any]:
        """Of any engine that opens it."""
        if not self.url.startswith("sqlite"):
            return {"pool_pre_ping": True}
        return {} if "timeout=" in self.url else {"connect_args": {"timeout": PATIENCE}}

    def close(self) -> None:
        """Others see that this worker is gone."""
        with suppress(LcmMergeError), self.faults():  # what is gone holds no lock
            self._locks.close()
            self._connection.close()
        self._engine.dispose()

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """One worker at a time; the others wait."""
        with self.faults():
            self._locks.acquire(name)
        try:
            yield
        finally:
            with suppress(LcmMergeError), self.faults():
                self._locks.release(name)

    def lives(self, worker: str) -> bool:
        with self.faults():
            return worker == self.worker or self._locks.is_held(worker)

    def get(self, key: str) -> bytes | None:
        """None where there are none, or samples are not shared."""
        if self._samples is None:
            return None
        with self.faults():
            query = self._samples.select().where(self._samples.c.key == key)
            row = self._connection.execute(query).one_or_none()
        return bytes(row.content) if row else None

    def put(self, key: str, content: bytes) -> None:
        if self._samples is None:
            return
        from sqlalchemy.exc import IntegrityError

        with self.faults(), suppress(IntegrityError):  # another was faster
            self._connection.execute(self._samples.insert().values(key=key, content=content))

    @contextmanager
    def faults(self) -> Iterator[None]:
        """What the database complains of becomes one line."""
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (OptunaError, SQLAlchemyError, ImportError, *DAMAGE) as error:
            what = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
            cure = "check --storage; what is recorded is kept, and the same command goes on"
            raise LcmMergeError(f"the study's database {_harmless(self.url)}: {what}", cure) from None
        except OSError as error:  # of a lock's file; of where it lies, flock itself does not tell
            raise output_error(Path(error.filename or self.study), error) from None

    def _table(self) -> Table:
        from sqlalchemy import Column, LargeBinary, MetaData, String, Table

        key, content = Column("key", String(64), primary_key=True), Column("content", LargeBinary(LARGEST))
        table = Table("lcmmerge_samples", MetaData(), key, content)
        with self.held(TABLES), self.faults():
            table.create(self._connection, checkfirst=True)
        return table


class Locks(Protocol):
    """By name, with one holder each."""

    def acquire(self, name: str) -> None: ...

    def release(self, name: str) -> None: ...

    def is_held(self, name: str) -> bool:
        """By another."""

    def close(self) -> None:
        """Release all."""


@dataclass(frozen=True, slots=True)
class FileLocks:
    folder: Path
    held: dict[str, FileLock] = field(default_factory=dict)

    def acquire(self, name: str) -> None:
        lock = FileLock(self._path(name))
        lock.acquire()
        self.held[name] = lock

    def release(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
        self.held.pop(name).release()

    def is_held(self, name: str) -> bool:
        if not self._path(name).exists():
            return False
        try:
            with FileLock(self._path(name)).acquire(timeout=0):
                self._path(name).unlink(missing_ok=True)
                return False
        except Timeout:
            return True

    def close(self) -> None:
        for name in list(self.held):
            self.release(name)

    def _path(self, name: str) -> Path:
        return self.folder / f".{name}.lock"


@dataclass(frozen=True, slots=True)
class Statements:
    """With a ``:key``: a signed number of 64 bits where ``is_number``, else a text of 64 characters."""

    acquire: str
    release: str
    is_held: str
    is_number: bool


POSTGRESQL = Statements(
    "SELECT pg_advisory_lock(:key)",
    "SELECT pg_advisory_unlock(:key)",
    "SELECT CASE WHEN pg_try_advisory_lock(:key) THEN NOT pg_advisory_unlock(:key) ELSE true END",
    is_number=True,
)
MYSQL = Statements(
    "SELECT GET_LOCK(:key, -1)", "SELECT RELEASE_LOCK(:key)", "SELECT NOT IS_FREE_LOCK(:key)", is_number=False
)


@dataclass(frozen=True, slots=True)
class ServerLocks:
    connection: Connection
    statements: Statements

    def acquire(self, name: str) -> None:
        self._ask(self.statements.acquire, name)

    def release(self, name: str) -> None:
        self._ask(self.statements.release, name)

    def is_held(self, name: str) -> bool:
        return bool(self._ask(self.statements.is_held, name))

    def close(self) -> None:
        self.connection.invalidate()  # the server releases what a connection held

    def _ask(self, statement: str, name: str) -> Any:
        from sqlalchemy import text

        digest = hashlib.sha256(f"lcmmerge {name}".encode())
        key = int.from_bytes(digest.digest()[:8], signed=True) if self.statements.is_number else digest.hexdigest()
        return self.connection.execute(text(statement), {"key": key}).scalar()


def _locks(connection: Connection, work: Path) -> Locks:
    """SQLite's lie beside the database, or in ``work`` where that is no file."""
    from sqlalchemy import text

    kind, database = connection.dialect.name, Path(connection.engine.url.database or "")
    if kind == "sqlite":
        return FileLocks(database.resolve().parent if database.is_file() else work)
    if kind == "postgresql":
        for setting, value in (("idle", 30), ("interval", 10), ("count", 3)):  # a machine that is off is seen so
            connection.execute(text(f"SET tcp_keepalives_{setting} = {value}"))
        return ServerLocks(connection, POSTGRESQL)
    if kind in ("mysql", "mariadb"):
        return ServerLocks(connection, MYSQL)
    raise LcmMergeError(f"--storage: {kind} is no database for a study", "there are sqlite, postgresql and mysql")


def _harmless(url: str) -> str:
    """Without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
