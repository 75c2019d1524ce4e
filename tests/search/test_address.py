from __future__ import annotations

import pytest

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.address import parse

SECRET = "HUNTER2"
WITH = [
    "postgresql+psycopg://me:HUNTER2@host:5432/db",
    "postgresql+psycopg://host:5432/db?user=me&password=HUNTER2",
    "postgresql+psycopg://host:5432/db?options=-c%20a.b%3DHUNTER2",
    "postgresql+psycopg://me:HUN%2FTER2@host:5432/db",
]


@pytest.mark.parametrize("url", [
    "postgresql+psycopg:me:HUNTER2@host/db",
    "postgresql+psycopg://me:HUNTER2/db",
    "postgresql+psycopg://me:a@HUNTER2@host:1/db",
    "postgresql+psycopg://me:a@b/HUNTER2@host:1/db",
    "postgresql+psycopg://me:a@b?HUNTER2@host:1/db",
    "postgresql+psycopg://me:HUNTER2@host:99999999/db",
    "postgresql+psycopg://me:HUNTER2@host:abc/db",
    "postgresql+HUNTER2://me:HUNTER2@host/db",
    "postgres://me:HUNTER2@host/db",
    "HUNTER2://host/db",
    "me:HUNTER2@host/db",
    "HUNTER2",
    "",
])  # fmt: skip
def test_nothing_is_shown_of_what_is_no_url(url):
    with pytest.raises(LcmMergeError, match="--storage") as caught:
        parse(url)
    assert SECRET not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize("url", WITH)
def test_what_is_shown_of_a_url(url):
    assert str(parse(url)) == "postgresql+psycopg://host:5432/db"


def test_a_file():
    address = parse("sqlite:////a/me@home/study.db?timeout=5")
    assert (address.kind, str(address)) == ("sqlite", "sqlite:////a/me@home/study.db")


@pytest.mark.parametrize(("url", "said"), [
    (WITH[0], "no HUNTER2"),
    (WITH[1], "no HUNTER2"),
    (WITH[2], "option a.b=HUNTER2"),
    (WITH[3], "no HUN/TER2"),
    (WITH[3], "no HUN%2FTER2"),
    (WITH[3], "no host TER2"),
])  # fmt: skip
def test_a_driver_that_repeats_a_secret_is_not_heard(url, said):
    assert parse(url).told(ConnectionError(said)) == "ConnectionError"


def test_a_driver_that_does_not():
    address = parse(WITH[1])
    assert address.told(ConnectionError('user "me" has no database "db"\nsecond')) == 'user "me" has no database "db"'
    assert address.told(ConnectionError("")) == "ConnectionError"
