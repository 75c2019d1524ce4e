"""The study's database: Optuna's tables, and beside them samples that machines share."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lcmmerge.errors import LcmMergeError
from lcmmerge.search import address

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy import Engine, Table

PATIENCE = 60.0  # seconds that SQLite waits for another who writes, unless the URL has a ?timeout=
HEARTBEAT, GRACE = 5, 30  # seconds: how often a worker says that it lives, and after what silence it is dead
Made = TypeVar("Made")
ATTEMPTS = 20  # to make tables, while others make them too
# Optuna's, of tables that another program wrote, or a failing disk.
DAMAGE = (RuntimeError, LookupError, TypeError, ValueError)


class Database:
    """The database of a study.

    ``url``: SQLite or PostgreSQL. ``work``: the study's folder, which gives the study its name.

    ``shared``: samples go into the database too, since its workers need not have one folder.
    Raises LcmMergeError where it cannot be used, as does everything here.
    """

    def __init__(self, url: str, work: Path, *, shared: bool = False) -> None:
        self.study = work.resolve().name
        self._address = address.parse(url)
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self._address.kind == "sqlite":
            options = {} if "timeout" in self._address.url.query else {"connect_args": {"timeout": PATIENCE}}
        with self.faults():
            self.storage = _opened(url, options)
            self._samples = _samples(self.storage.engine) if shared else None

    def close(self) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()

    def get(self, key: str) -> bytes | None:
        """None where there are none, or samples are not shared."""
        if self._samples is None:
            return None
        with self.faults(), self.storage.engine.connect() as connection:
            row = connection.execute(self._samples.select().where(self._samples.c.key == key)).one_or_none()
        return bytes(row.content) if row else None

    def put(self, key: str, content: bytes) -> None:
        if self._samples is None:
            return
        from sqlalchemy.exc import IntegrityError

        with self.faults(), suppress(IntegrityError), self.storage.engine.begin() as connection:  # another was faster
            connection.execute(self._samples.insert().values(key=key, content=content))

    @contextmanager
    def faults(self) -> Iterator[None]:
        """What the database complains of becomes one line."""
        from optuna.exceptions import OptunaError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (OptunaError, SQLAlchemyError, ImportError, OSError, *DAMAGE) as error:
            cure = "check --storage; what is recorded is kept, and the same command goes on"
            what = f"the study's database {self._address}: {self._address.told(error)}"
            raise LcmMergeError(what, cure) from None


def _opened(url: str, options: dict[str, Any]) -> RDBStorage:
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import RDBStorage

    warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats, and the Gaussian process
    warnings.filterwarnings("ignore", "Heartbeat of storage")  # that nobody beats but Study.optimize: ``Trials`` does
    storage = _tables(lambda: RDBStorage(url, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE))
    if storage.engine.dialect.name == "sqlite":
        _serialize(storage.engine)
    return storage


def _tables(make: Callable[[], Made]) -> Made:
    """Again where another process makes the same tables at the same time, which neither library expects."""
    from sqlalchemy.exc import DBAPIError, IntegrityError

    for _ in range(ATTEMPTS - 1):
        try:
            return make()
        except DBAPIError as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(0.1)
    return make()


def _serialize(engine: Engine) -> None:
    """SQLite lets two transactions read before either writes, and so would give a waiting trial to both.

    https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#enabling-non-legacy-sqlite-transactional-modes-with-the-sqlite3-or-aiosqlite-driver
    """
    from sqlalchemy import event

    engine.dispose()  # connections that were made before
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def _samples(engine: Engine) -> Table:
    from sqlalchemy import Column, LargeBinary, MetaData, String, Table

    key, content = Column("key", String(64), primary_key=True), Column("content", LargeBinary())
    table = Table("lcmmerge_samples", MetaData(), key, content)
    _tables(lambda: table.create(engine, checkfirst=True))
    return table
