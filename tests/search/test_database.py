"""No password of a storage's URL in any text."""

import pytest

from lcmmerge.errors import LcmMergeError
from lcmmerge.search.database import Database

SECRETS = [
    "postgresql+psycopg://me:HUNTER2@127.0.0.1:1/db",
    "postgresql+psycopg://127.0.0.1:1/db?user=me&password=HUNTER2",
    "postgresql+psycopg://me:HUN@TER2@127.0.0.1:1/db",
    "postgresql+psycopg://me:HUN%40TER2@127.0.0.1:1/db",
    "postgresql+psycopg://me:HUNTER2@127.0.0.1:99999999/db",
    "postgresql+psycopg://me:HUNTER2@127.0.0.1:abc/db",
    "postgresql+nosuch://me:HUNTER2@127.0.0.1/db",
    "postgresql+psycopg:me:HUNTER2@127.0.0.1/db",
    "me:HUNTER2@127.0.0.1/db",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_url(url, tmp_path):
    with pytest.raises(LcmMergeError) as caught:
        Database(url, tmp_path)
    said = caught.value.message + caught.value.hint
    assert "HUN" not in said
    assert "TER2" not in said
