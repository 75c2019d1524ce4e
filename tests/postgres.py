"""A PostgreSQL of our own on the loopback, for as long as a test needs it; stopped and started as it pleases."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

SECRET = "hush"
DEBIAN = Path("/usr/lib/postgresql")  # a folder for each major version
# It is thrown away, so that nothing need be synced.
OPTIONS = ("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=16MB")


def binaries() -> Path:
    """The folder of ``initdb`` and ``postgres``; without it the test is skipped, and where CI is set it fails."""
    found = sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if program := shutil.which("postgres"):
        found.insert(0, Path(program).resolve().parent)
    if found:
        return found[-1]
    why = "there is no PostgreSQL: apt-get install postgresql"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


class Postgres:
    """``with Postgres() as server:`` it runs, as an unprivileged user, since PostgreSQL refuses root."""

    def __init__(self) -> None:
        self._binaries = binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="lcmmerge-postgres-"))
        self._as_user: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            users = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        (self._folder / "password").write_text(SECRET)
        (self._folder / "password").chmod(0o644)
        self._call("initdb", "-D", self._data, "-U", "lcm", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C",
                   "--no-sync", f"--pwfile={self._folder / 'password'}")  # fmt: skip

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://lcm:{SECRET}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        arguments = [self._binaries / "postgres", "-D", self._data, "-p", str(self._port), "-k", self._folder, *OPTIONS]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True, **self._as_user)
        deadline = time.monotonic() + 30
        while self._call("pg_isready", "-h", "127.0.0.1", "-p", self._port, check=False):
            assert time.monotonic() < deadline and self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """At once: whoever is connected is cut off."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def ask(self, query: str) -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.url.replace("+psycopg", "")) as connection:
            return connection.execute(query).fetchall()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _call(self, program: str, *arguments: object, check: bool = True) -> int:
        command = [self._binaries / program, *map(str, arguments)]
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=check, **self._as_user).returncode
