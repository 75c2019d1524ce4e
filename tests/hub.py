"""A Hub on the loopback: what huggingface_hub asks of the real one, answered over the real protocol.

``with Hub() as hub:`` fill it by ``hub.add(repo, files)``, and run a client with ``hub.environment(home)``. As on the
real Hub, large files are LFS objects that ``resolve`` redirects to another host; those carry no token.
API: https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Self
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".ckpt")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<route>revision|tree)/(?P<revision>[^/]+))?")
STORED = re.compile(r"/lfs/(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True)
class Stored:
    """A file's content, in memory or on disk, under the hash that the Hub records for it."""

    content: bytes | Path
    size: int
    etag: str
    large: bool

    @classmethod
    def of(cls, name: str, content: bytes | Path, sha256: str | None) -> Stored:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        if not name.endswith(LARGE):
            assert isinstance(content, bytes)
            return cls(content, size, hashlib.sha1(b"blob %d\0" % size + content).hexdigest(), False)
        return cls(content, size, sha256 or hashlib.sha256(_part(content, 0, size)).hexdigest(), True)

    def read(self, start: int, stop: int) -> bytes:
        return _part(self.content, start, stop)

    def as_json(self, key: str, name: str) -> dict[str, object]:
        lfs = {"sha256": self.etag, "oid": self.etag, "size": self.size, "pointerSize": 134}
        facts = {key: name, "size": self.size, "blobId": self.etag[:40], "oid": self.etag[:40], "type": "file"}
        return facts | ({"lfs": lfs} if self.large else {})


def _part(content: bytes | Path, start: int, stop: int) -> bytes:
    if isinstance(content, bytes):
        return content[start:stop]
    with content.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


@dataclass
class Repository:
    """``commits``: 40 hex digits → name → file. ``gated``: files are for those with ``token`` alone."""

    commits: dict[str, dict[str, Stored]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    license: str | None = None
    gated: bool = False


@dataclass
class Fault:
    """What befalls the next ``times`` requests of ``method`` whose path has ``part`` in it.

    ``status`` is answered instead, with ``headers``; ``cut``: the body ends after so many bytes; ``delay``: seconds
    before each block of the body; ``whole``: a request for a range is answered with everything.
    """

    part: str
    times: int = 1
    method: str = "GET"
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


class Hub(ThreadingHTTPServer):
    """``requests``: those that came; ``sent``: bytes that went out, headers too."""

    daemon_threads = True

    def __init__(self, token: str = "hf_secretSecretSecret") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.sent = 0
        self.lock = Lock()

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a client process with its cache in ``home``: no token, no variables of this machine's user."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        patience = {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2"}
        fixed = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": self.endpoint}
        return {**inherited, **patience, **fixed, "HF_HOME": str(home), **more}

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes | str | Path],
        *,
        branch: str = "main",
        license: str | None = None,
        gated: bool = False,
        sha256: Mapping[str, str] | None = None,
    ) -> str:
        """Commit ``files`` as all that ``branch`` holds, and move it there. Returns the commit.

        ``sha256``: what the Hub records of a large file, where that is not its content's.
        """
        repository = self.repositories.setdefault(repo, Repository())
        stored = {
            name: Stored.of(name, _content(name, content), (sha256 or {}).get(name)) for name, content in files.items()
        }
        listing = "".join(f"{name}\0{file.etag}\n" for name, file in sorted(stored.items()))
        commit = hashlib.sha1(f"{repo}\n{listing}".encode()).hexdigest()
        repository.commits[commit] = stored
        repository.branches[branch] = commit
        repository.license, repository.gated = license, gated
        return commit

    def add_folder(self, repo: str, folder: Path, **options: object) -> str:
        """Commit a folder's files."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return self.add(repo, files, **options)  # type: ignore[arg-type]

    def asked(self, part: str, method: str = "GET") -> list[Request]:
        """The requests whose path has ``part`` in it."""
        return [request for request in self.requests if part in request.path and request.method == method]

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.part in path and fault.method == method:
                    fault.times -= 1
                    return fault
        return None


def _content(name: str, content: bytes | str | Path) -> bytes | Path:
    if isinstance(content, Path):
        return content if name.endswith(LARGE) else content.read_bytes()
    return content.encode() if isinstance(content, str) else content


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        self.server.requests.append(Request(self.command, self.path, self.headers["Range"], token))
        path = unquote_path(self.path)
        fault = self.server.fault(self.command, self.path) or Fault("")
        if fault.status:
            self.answer(fault.status, b"", fault.headers, fault)
        elif match := API.fullmatch(path):
            self.api(fault, **match.groupdict())
        elif match := RESOLVE.fullmatch(path):
            self.resolve(fault, token, **match.groupdict())
        elif match := STORED.fullmatch(path):
            self.file(fault, self.large(match["sha256"]), {})
        else:
            self.answer(404, b"", {}, fault)

    do_HEAD = do_GET

    def api(self, fault: Fault, repo: str, route: str | None, revision: str | None) -> None:
        found = self.find(repo, unquote(revision or "main"))
        if isinstance(found, str):
            return self.refuse(fault, found)
        commit, files = found
        if route == "tree":
            return self.json(fault, [file.as_json("path", name) for name, file in sorted(files.items())])
        card = {"license": self.server.repositories[repo].license}
        siblings = [file.as_json("rfilename", name) for name, file in sorted(files.items())]
        return self.json(fault, {"id": repo, "sha": commit, "siblings": siblings, "cardData": card, "tags": []})

    def resolve(self, fault: Fault, token: str | None, repo: str, revision: str, name: str) -> None:
        found = self.find(repo, unquote(revision))
        if isinstance(found, str):
            return self.refuse(fault, found)
        if self.server.repositories[repo].gated and token != self.server.token:
            return self.refuse(fault, "GatedRepo", 403 if token else 401)
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if name not in files:
            return self.refuse(fault, "EntryNotFound", headers=headers)
        file = files[name]
        if not file.large:
            return self.file(fault, file, {"ETag": f'"{file.etag}"', **headers})
        location = f"http://localhost:{self.server.server_port}/lfs/{file.etag}"
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size), "Location": location}
        return self.answer(302, b"", headers | linked, fault)

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, Stored]] | str:
        """The commit and its files, or the Hub's code for what is not there."""
        repository = self.server.repositories.get(repo)
        if repository is None:
            return "RepoNotFound"
        commit = repository.branches.get(revision, revision)
        return (commit, repository.commits[commit]) if commit in repository.commits else "RevisionNotFound"

    def large(self, sha256: str) -> Stored:
        commits = (commit for repo in self.server.repositories.values() for commit in repo.commits.values())
        return next(file for files in commits for file in files.values() if file.etag == sha256)

    def file(self, fault: Fault, file: Stored, headers: Mapping[str, str]) -> None:
        start, stop, status = 0, file.size, 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        if match and not fault.whole:
            start, stop, status = int(match[1]), min(int(match[2] or file.size) + 1, file.size), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{file.size}"}
        headers = {**headers, "Accept-Ranges": "bytes"}
        if start >= file.size > 0:
            return self.answer(416, b"", headers, fault)
        return self.answer(status, file.read(start, stop), headers, fault)

    def refuse(self, fault: Fault, code: str, status: int = 404, headers: Mapping[str, str] | None = None) -> None:
        status = 401 if code == "RepoNotFound" else status  # the Hub does not tell strangers what is private
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, fault)

    def json(self, fault: Fault, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, fault)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str], fault: Fault) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.body(body if fault.cut is None else body[: fault.cut], fault.delay)
        self.close_connection = self.close_connection or fault.cut is not None

    def body(self, data: bytes, delay: float) -> None:
        for start in range(0, len(data), 1 << 16):
            time.sleep(delay)
            self.write(data[start : start + (1 << 16)])

    def flush_headers(self) -> None:
        """The header lines go out here, so they are counted here."""
        self.write(b"".join(self._headers_buffer))  # type: ignore[has-type]
        self._headers_buffer = []

    def write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # the client has enough
            self.close_connection = True
        with self.server.lock:
            self.server.sent += len(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def unquote_path(path: str) -> str:
    """Without the query; %2F within a revision stays, as it separates nothing."""
    return "/".join(unquote(part.replace("%2F", "%252F")) for part in urlsplit(path).path.split("/"))
