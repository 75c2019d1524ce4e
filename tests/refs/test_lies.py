"""A Hub that lies: one line, in bounded time and memory, and no file outside the cache."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from lcmmerge import refs
from lcmmerge.errors import FormatError, LcmMergeError, NotFoundError
from lcmmerge.refs import guard
from lcmmerge.tensors.remote import open_reference

COMMIT = "a" * 40
HEADER = json.dumps({"x": {"dtype": "F32", "shape": [25_000], "data_offsets": [0, 100_000]}}).encode()
CONTENT = len(HEADER).to_bytes(8, "little") + HEADER + bytes(100_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = {"rfilename": "f.safetensors", "size": len(CONTENT), "lfs": {"sha256": SHA256, "size": len(CONTENT)}}
BOMB = gzip.compress(bytes(64 << 20))
TOKEN = "hf_secretSecretSecret"


def listing(**change: Any) -> bytes:
    info = {"sha": COMMIT, "siblings": [FILE], "cardData": {"license": "mit"}} | change
    return json.dumps({key: value for key, value in info.items() if value is not ...}).encode()


LISTINGS = {
    "sha is dots": listing(sha="../../../pwned"),
    "sha is absolute": listing(sha="/tmp/pwned"),
    "sha is short": listing(sha="main"),
    "no sha": listing(sha=...),
    "siblings": listing(siblings={"a": 1}),
    "negative size": listing(siblings=[FILE | {"size": -5}]),
    "size of text": listing(siblings=[FILE | {"size": "12"}]),
    "huge size": listing(siblings=[FILE | {"size": 10**30}]),
    "a name that is none": listing(siblings=[FILE | {"rfilename": 5}]),
    "hash of dots": listing(siblings=[FILE | {"lfs": {"sha256": "../x"}}]),
    "not JSON": b"<html>",
    "a list": b"[1]",
    "deep JSON": b"[" * 200_000,
}
ANSWERS = ("endless", "gzip", "whole", "shifted", "to a file", "round and round", "other commit", "etag of dots")


class Liar(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Lies

    def log_message(self, *arguments: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        lie = self.server.lie
        try:
            if self.path.startswith("/api/"):
                self._listing(lie)
            else:
                self._file(lie)
        except OSError:  # the client has had enough
            self.close_connection = True

    def _listing(self, lie: str) -> None:
        match lie:
            case "slow listing":
                self._slowly()
            case "compressed listing":
                self._say(200, BOMB, **{"Content-Encoding": "gzip"})
            case "wait an hour":
                self._say(429, b"", **{"Retry-After": "3600", "ratelimit": '"api";r=0;t=3600'})
            case _:
                self._say(200, LISTINGS.get(lie, listing()))

    def _file(self, lie: str) -> None:
        asked = self.headers.get("Range", "")
        start, end = (int(number or len(CONTENT) - 1) for number in (asked[6:] or "0-").split("-"))
        part, code = CONTENT[start : end + 1], 206 if asked else 200
        facts = {"ETag": f'"{SHA256}"', "X-Repo-Commit": COMMIT}
        if asked:
            facts["Content-Range"] = f"bytes {start}-{end}/{len(CONTENT)}"
        match lie:
            case "endless" if self.command == "GET":
                self.send_response(code)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for _ in range(4000):
                    self.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                    self.server.sent += 65536
            case "gzip":
                self._say(code, BOMB, **facts, **{"Content-Encoding": "gzip"})
            case "whole":
                self._say(200, CONTENT + bytes(1 << 20), **facts)
            case "shifted":
                self._say(code, (b"?" + part)[: len(part)], **facts)
            case "to a file":
                self._say(302, b"", Location="file:///etc/passwd")
            case "round and round":
                self._say(302, b"", Location=self.path)
            case "to another host":
                self._say(302, b"", **facts, Location=f"http://localhost:{self.server.server_port}/other")
            case "other commit":
                self._say(code, part, **facts | {"X-Repo-Commit": "../../pwned"})
            case "etag of dots":
                self._say(code, part, **facts | {"ETag": '"../../pwned"'})
            case "slow":
                self._slowly()
            case _ if lie.startswith("etag "):
                self._say(code, part, **facts | {"ETag": f'"{lie.removeprefix("etag ")}"'})
            case _:
                self._say(code, part, **facts)

    def _slowly(self) -> None:
        self.send_response(200 if self.path.startswith("/api/") else 206)
        self.send_header("Content-Length", "65536")
        self.end_headers()
        for _ in range(600):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def _say(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Lies(ThreadingHTTPServer):
    daemon_threads = True
    lie = ""
    sent = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Liar)
        self.asked: list[tuple[str, str | None]] = []

    def handle_error(self, *arguments: object) -> None:
        """The client has had enough."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lies]:
    with Lies() as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_ETAG_TIMEOUT": 2,
            "HF_HUB_DOWNLOAD_TIMEOUT": 2,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name in ("WHOLE", "PATIENCE"):
            monkeypatch.setattr(guard, name, 1.5)
        monkeypatch.setattr(guard, "SLOWEST", 1 << 20)
        monkeypatch.setattr("lcmmerge.refs.http.WHOLE", 1.5)
        yield server
        server.shutdown()


def inside_only(folder: Path) -> None:
    """Whatever was written is in the repository's folder of the cache."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    known = ("hub/models--evil--repo/", "hub/.locks/models--evil--repo/", "hub/CACHEDIR.TAG")
    assert [name for name in names if not name.startswith(known)] == []


def test_one_that_does_not_lie(hub: Lies) -> None:
    assert refs.resolve("hf://evil/repo/f.safetensors").read_bytes() == CONTENT
    asked = {(path, token) for path, token in hub.asked if token != f"Bearer {TOKEN}"}
    assert asked <= {("/api/agent-harnesses", None)}  # which huggingface_hub asks once a day, of anybody


@pytest.mark.parametrize("lie", [*LISTINGS, "compressed listing", "slow listing"])
def test_a_listing(hub: Lies, tmp_path: Path, lie: str) -> None:
    hub.lie = lie
    begun = time.monotonic()
    for act in (refs.resolve, open_reference):
        with pytest.raises(NotFoundError) as caught:
            act("hf://evil/repo/f.safetensors")
        assert "\n" not in caught.value.message
    assert time.monotonic() - begun < 20
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../../pwned", "a/../../pwned", "a\\b", "a\0b", "x" * 5000])
def test_a_name_that_leads_out_is_not_there(hub: Lies, tmp_path: Path, name: str) -> None:
    LISTINGS["named"] = listing(siblings=[FILE | {"rfilename": name}, FILE])
    hub.lie = "named"
    found = refs.repository(refs.parse("hf://evil/repo"), "model")
    assert found.files.keys() == {"f.safetensors"}


@pytest.mark.parametrize("card", ["x", ["mit"], {"license": ["mit", "x", 5]}, {"license": {"a": 1}}, None])
def test_a_card_of_odd_types(hub: Lies, card: object) -> None:
    LISTINGS["card"] = listing(cardData=card)
    hub.lie = "card"
    found = refs.repository(refs.parse("hf://evil/repo"), "model")
    assert found.license == ("mit, x" if isinstance(card, dict) and isinstance(card["license"], list) else None)


@pytest.mark.parametrize("lie", [*ANSWERS, "slow"])
def test_a_file(hub: Lies, tmp_path: Path, lie: str) -> None:
    hub.lie = lie
    begun = time.monotonic()
    with pytest.raises(LcmMergeError) as caught:
        refs.resolve("hf://evil/repo/f.safetensors")
    assert "\n" not in caught.value.message + caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint
    assert time.monotonic() - begun < 40
    inside_only(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2 * len(CONTENT)
    assert hub.sent < 64 << 20


@pytest.mark.parametrize("lie", ["endless", "gzip", "whole", "to a file", "round and round", "slow"])
def test_a_header_that_is_read_there(hub: Lies, lie: str) -> None:
    hub.lie = lie
    begun = time.monotonic()
    with pytest.raises((NotFoundError, FormatError)) as caught:
        open_reference("hf://evil/repo/f.safetensors")
    assert "\n" not in caught.value.message
    assert time.monotonic() - begun < 20
    assert hub.sent < 64 << 20


def test_no_token_goes_to_another_host(hub: Lies, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.lie = "to another host"
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: resolve("127.0.0.1", *more, **named))
    with pytest.raises(LcmMergeError):
        refs.resolve("hf://evil/repo/f.safetensors")
    there = [token for path, token in hub.asked if path == "/other"]
    assert there
    assert set(there) == {None}


def test_an_etag_that_names_another_file_of_the_cache(hub: Lies, tmp_path: Path) -> None:
    """What the ETag names is there already, whole and another's: it stays."""
    blobs = tmp_path / "hub" / "models--evil--repo" / "blobs"
    blobs.mkdir(parents=True)
    precious = blobs / hashlib.sha256(b"precious").hexdigest()
    precious.write_bytes(b"precious")
    hub.lie = f"etag {precious.name}"
    with pytest.raises(FormatError, match="came with the sha256"):
        refs.resolve("hf://evil/repo/f.safetensors")
    assert precious.read_bytes() == b"precious"
    assert not list((tmp_path / "hub").rglob("f.safetensors"))


@pytest.mark.parametrize("said", ["bytes 0-9/20", "", "items 10-19/20"])
def test_another_part_than_was_asked_for(said: str) -> None:
    request = SimpleNamespace(headers={"Range": "bytes=10-"})
    answer = SimpleNamespace(request=request, status_code=206, headers={"Content-Range": said})
    with pytest.raises(guard.BadAnswerError, match="another part"):
        guard._start(answer)  # type: ignore[arg-type]
    answer.headers["Content-Range"] = "bytes 10-19/20"
    assert guard._start(answer) == 10  # type: ignore[arg-type]


def test_an_hour_is_not_waited(hub: Lies) -> None:
    hub.lie = "wait an hour"
    begun = time.monotonic()
    with pytest.raises(NotFoundError, match="limits the rate of requests"):
        refs.resolve("hf://evil/repo/f.safetensors")
    assert time.monotonic() - begun < 20


def test_a_password_of_the_endpoint_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://me:HUNTER2@127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFoundError) as caught:
        refs.resolve("hf://a/b/f.safetensors")
    assert "HUNTER2" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "hf://a/b@%2Fetc%2Fpasswd/f", "hf://a/b@..%2F..%2Fx/f", "hf://a/b@%2e%2e/f", "hf://a/b@main%00/f",
        "hf://a/b/../x", "hf://a/..", "hf://../b/f", "hf://a/b@-rf/f", f"hf://a/b@{'x' * 5000}/f", "hf://a/b\n@x/f",
        "zoo:../../../../etc/hostname", "zoo:/etc/hostname", "x" * 5000,
    ],
)  # fmt: skip
def test_references_that_lead_out(text: str) -> None:
    with pytest.raises(NotFoundError):
        refs.parse(text)


def test_a_pull_request_is_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    reference = refs.parse("hf://a/b@refs%2Fpr%2F1/f")
    assert reference.revision == "refs/pr/1"
    refs.remember(refs.Repository(reference, "x", COMMIT, {}))
    assert (tmp_path / "models--a--b" / "refs" / "refs" / "pr" / "1").read_text() == COMMIT


def test_nothing_is_remembered_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "hub" / "models--a--b" / "refs").mkdir(parents=True)
    (tmp_path / "hub" / "models--a--b" / "refs" / "main").symlink_to(tmp_path / "precious")
    refs.remember(refs.Repository(refs.parse("hf://a/b/f"), "x", COMMIT, {}))
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("url", ["https://me:hf_x@huggingface.co/a/b/blob/main/f", "http://me@hf.co/a/b"])
def test_credentials_in_a_reference_are_not_told(url: str) -> None:
    with pytest.raises(NotFoundError, match="a name or a password") as caught:
        refs.parse(url)
    assert url not in caught.value.message


@pytest.mark.parametrize("endpoint", ["http://u:HUN#TER2@host", "http://u:p@[bad", "http://host:HUNTER2"])
def test_an_endpoint_that_is_no_url(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(NotFoundError, match="HF_ENDPOINT is not a URL") as caught:
        refs.parse("hf://a/b")
    assert not any(piece in caught.value.message for piece in ("HUN", "TER2"))
