"""What a server's answers may be: of so many bytes, in so much time, and of names that stay in the cache.

huggingface_hub does what a server says: it sleeps for as long as a Retry-After asks, unpacks what was compressed,
writes to disk what comes until no more comes, and names files in its cache by the headers ETag and X-Repo-Commit. Its
client is given hooks here, which see each answer first, and which do nothing but within ``guarded``. What it says in
its log then, addresses with passwords too, is kept back: what goes wrong is said in one line of our own.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from threading import Event, Timer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lcmmerge.refs.files import is_inside

if TYPE_CHECKING:
    from httpx2 import Client, Request, Response

COMMIT = re.compile(r"[0-9a-f]{40}")
WHOLE = 45.0  # seconds for an answer of unknown size
PATIENCE = 25.0  # seconds for one to begin
SLOWEST = 4096  # bytes per second of one whose size is known
WAIT = 10  # seconds that a server may ask for before the next try
REFUSAL = 1 << 20  # bytes of an answer that is no success


HOME = "https://huggingface.co"  # which a mirror may lead to


class BadAnswerError(Exception):
    """What no Hub answers; the text says what, in words that follow a colon."""


@dataclass(slots=True)
class _Guard:
    """A bound on what the Hub's answers may take. ``end``: of the requests' time, by the monotonic clock; ``stop`` ends
    it before.
    """

    most: int
    commit: str
    end: float
    stop: Event

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.end or self.stop.is_set()

    def check(self) -> None:
        if self.late:
            raise BadAnswerError("interrupted" if self.stop.is_set() else "the server is too slow")


_GUARD: ContextVar[_Guard | None] = ContextVar("_GUARD", default=None)


@contextmanager
def guarded(most: int, seconds: float, commit: str = "", stop: Event | None = None) -> Iterator[None]:
    """Requests of this thread whose answers have ``most`` bytes. ``commit``: which those about a file are to name.
    ``stop``: by which another thread ends them; huggingface_hub would begin a cut download again.

    Raises BadAnswerError, after ``seconds`` also where a server sends a byte from time to time.
    """
    from huggingface_hub import close_session

    _hook_in()
    guard = _Guard(most, commit, time.monotonic() + seconds, stop or Event())
    alarm = Timer(seconds, close_session)  # each read of a socket that is closed fails
    alarm.daemon = True
    alarm.start()
    token = _GUARD.set(guard)
    try:
        yield
    except Exception as error:  # of a socket that was closed under its reader
        if not isinstance(error, BadAnswerError):
            guard.check()
        raise
    finally:
        _GUARD.reset(token)
        alarm.cancel()


def time_for(nbytes: int) -> float:
    """Seconds."""
    return PATIENCE + nbytes / SLOWEST


@cache
def _hook_in() -> None:
    """Once; not on a client, as huggingface_hub makes another after each error of a connection."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    make = _http._GLOBAL_CLIENT_FACTORY  # which may be another program's, with its certificates

    def hooked() -> Client:
        client = make()
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], _ask], "response": [_check, *hooks["response"]]}
        return client

    set_client_factory(hooked)
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(lambda _: _GUARD.get() is None)


def _ask(request: Request) -> None:
    from huggingface_hub import constants

    guard = _GUARD.get()
    if guard is None:
        return
    guard.check()
    request.headers["Accept-Encoding"] = "identity"
    if _origin(str(request.url)) not in {_origin(HOME), _origin(constants.ENDPOINT)}:
        request.headers.pop("Authorization", None)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _check(response: Response) -> None:
    """Before anything of its body is read. Raises BadAnswerError, and huggingface_hub's error for a limited rate."""
    guard = _GUARD.get()
    if guard is None:
        return
    headers = response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise BadAnswerError("the server sends it compressed, as nobody asked for")
    most = guard.most - _start(response) if response.is_success else REFUSAL
    response.stream = _bounded(response.stream, most, guard)
    if response.is_error and _wait(headers) > WAIT:
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        hf_raise_for_status(response)
    if guard.commit and response.request.method == "HEAD":
        _check_names(headers, guard.commit)


def _check_names(headers: Any, commit: str) -> None:
    """Those of which huggingface_hub makes paths, just as it takes them."""
    if headers.get("X-Repo-Commit", commit) != commit:
        raise BadAnswerError("the server answers with another commit")
    etag = (headers.get("X-Linked-Etag") or headers.get("ETag") or "none").lstrip("W/").strip('"')
    if "/" in etag or not is_inside(etag):
        raise BadAnswerError("the server's ETag cannot be the name of a file")


def _wait(headers: Any) -> int:
    """Seconds, as huggingface_hub reads them from ``Retry-After: 120`` and ``ratelimit: "api";r=0;t=120``."""
    asked = re.findall(r"^\s*(\d+)\s*$", headers.get("Retry-After", ""))
    asked += re.findall(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
    return max((int(digits[:9]) for digits in asked), default=0)


def _start(response: Response) -> int:
    """The first byte of the file that the answer to ``Range: bytes=START-`` has; of other ranges 0."""
    asked = re.fullmatch(r"bytes=(\d+)-", response.request.headers.get("Range", ""))
    if not asked or response.status_code != 206:
        return 0
    if not response.headers.get("Content-Range", "").startswith(f"bytes {asked[1]}-"):
        raise BadAnswerError("the server sends another part of the file than was asked for")
    return int(asked[1])


def _bounded(stream: Any, most: int, guard: _Guard) -> Any:
    """The stream, which ends with BadAnswerError where more than ``most`` bytes come, or they come too late."""

    def blocks(_: object) -> Iterator[bytes]:
        left = most
        for block in stream:
            guard.check()
            left -= len(block)
            if left < 0:
                raise BadAnswerError("the server sends more than was asked for")
            yield block

    http = import_module(type(stream).__module__.partition(".")[0])  # httpx, or httpx2 of huggingface_hub 2
    return type("Bounded", (http.SyncByteStream,), {"__iter__": blocks, "close": lambda _: stream.close()})()
