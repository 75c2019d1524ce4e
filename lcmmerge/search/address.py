"""The URL of a study's database: what it names, and what is said of it without its secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from lcmmerge.errors import LcmMergeError

if TYPE_CHECKING:
    from sqlalchemy import URL

KINDS = ("sqlite", "postgresql")
# Of a URL's query; what else is there may be a password, or hold one.
HARMLESS = ("application_name", "charset", "connect_timeout", "dbname", "host", "port", "sslmode", "timeout", "user")
FORM = "write it as postgresql+psycopg://me@host/study; in a password an @ is %40, and a / is %2F"
PIECE = 4  # letters of a part of a secret that is one, too


@dataclass(frozen=True, slots=True)
class Address:
    """A storage URL, which shows no password."""

    url: URL

    @property
    def kind(self) -> str:
        return self.url.get_backend_name()

    def __str__(self) -> str:
        port = "" if self.url.port is None else f":{self.url.port}"
        return f"{self.url.drivername}://{self.url.host or ''}{port}/{self.url.database or ''}"

    def told(self, error: Exception) -> str:
        """What a driver says, where it repeats nothing that is secret; else what kind of error it is."""
        said = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        secret = any(form in said for piece in self._pieces() for form in (piece, quote(piece), quote_plus(piece)))
        return type(error.__cause__ or error).__name__ if secret else said

    def _pieces(self) -> set[str]:
        query = self.url.normalized_query
        hidden = [value for name, values in query.items() if name not in HARMLESS for value in values]
        whole = {value for value in (self.url.password, *hidden) if value}
        return whole | {part for value in whole for part in re.split(r"\W+", value) if len(part) >= PIECE}


def parse(url: str) -> Address:
    """Raises LcmMergeError, with no part of what was not understood: any may be of the password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise LcmMergeError("--storage: not the URL of a database", FORM) from None
    if parsed.get_backend_name() not in KINDS:
        raise LcmMergeError("--storage: no kind of database for a study", f"there are {', '.join(KINDS)}")
    address = Address(parsed)
    if address.kind != "sqlite" and url.count("@") > 1:  # else a host would be what is of the password
        raise LcmMergeError("--storage: its URL has more than one @", FORM)
    if parsed.port is not None and not 0 < parsed.port < 1 << 16:
        raise LcmMergeError("--storage: its URL's port is none", FORM)
    try:
        parsed.get_dialect()
    except NoSuchModuleError:
        raise LcmMergeError("--storage: its URL names no driver that is known", FORM) from None
    return address
