"""The Hub is played by a cache folder in its real layout, by a closed port, and by a small server.

huggingface_hub reads its environment when it is imported, so each case runs in a process of its own.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lcmmerge import refs
from lcmmerge.errors import NotFoundError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretSecretSecret"

RUN = """
import json, sys
from lcmmerge import refs
from lcmmerge.errors import NotFoundError
for reference in sys.argv[2:]:
    try:
        print(json.dumps({"path": str(getattr(refs, sys.argv[1])(reference))}))
    except NotFoundError as error:
        print(json.dumps({"message": error.message, "hint": error.hint}))
"""


def ask(function: str, *references: str, **environment: str) -> list[dict[str, str]]:
    """What ``refs.<function>`` says of each reference, in a fresh process with these variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, function, *references],
        env={**inherited, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert TOKEN not in done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(references)
    assert not any("\n" in text for answer in answers for text in answer.values())
    return answers


def cache(home: Path, files: Mapping[str, str]) -> Path:
    """A cached repository ``owner/repo``: blobs, a ref, and a snapshot of links to the blobs."""
    repository = home / "hub/models--owner--repo"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    for number, (name, content) in enumerate(files.items()):
        blob = repository / "blobs" / f"{number:040x}"
        blob.write_text(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner/repo").mkdir(parents=True)
    (tmp_path / "file.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert refs.resolve("owner/repo") == Path("owner/repo")
    assert refs.resolve(str(tmp_path / "file.safetensors")) == tmp_path / "file.safetensors"


@pytest.mark.parametrize("reference", ["latent-consistency/lcm-lora-sdv1-5", "owner/repo/file.safetensors"])
def test_a_missing_path_that_looks_like_the_hub_is_told_so(reference: str) -> None:
    with pytest.raises(NotFoundError, match=f"adapter '{reference}': no such file") as caught:
        refs.resolve(reference, "adapter")
    assert f"hf://{reference}" in caught.value.hint


@pytest.mark.parametrize("reference", ["base.safetensors", "/a/b", "./a/b", "../a", "a//b", "~/a"])
def test_a_missing_path_that_does_not(reference: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        refs.resolve(reference)
    assert caught.value.hint == "check the path"


@pytest.mark.parametrize("reference", ["hf://", "hf://repo", "hf://owner/repo@", "hf://datasets/owner/repo/f"])
def test_what_is_no_reference_to_a_model(reference: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        refs.resolve(reference)
    assert refs.HUB_FORM in caught.value.hint


def test_configs_of_a_local_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model_index"):
        refs.configs(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    assert refs.configs(str(tmp_path)) == tmp_path


def test_offline_from_a_warm_cache(tmp_path: Path) -> None:
    snapshot = cache(tmp_path, {"model_index.json": "{}", "unet/config.json": "{}", "lora.safetensors": "x"})
    hub = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    references = (
        "hf://owner/repo/lora.safetensors",
        f"hf://owner/repo@{COMMIT}/unet/config.json",
        "hf://owner/repo",
    )
    file, pinned, folder = ask("resolve", *references, **hub)
    assert file == {"path": str(snapshot / "lora.safetensors")}
    assert pinned == {"path": str(snapshot / "unet/config.json")}
    assert folder == {"path": str(snapshot)}
    assert ask("configs", "hf://owner/repo", **hub) == [{"path": str(snapshot)}]


def test_offline_from_a_cold_cache(tmp_path: Path) -> None:
    cache(tmp_path, {"lora.safetensors": "x"})
    references = ("hf://owner/repo/other.safetensors", "hf://owner/repo@v2/lora.safetensors", "hf://else/where")
    for answer in ask("resolve", *references, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"):
        assert "not in the cache, and HF_HUB_OFFLINE is set" in answer["message"]
        assert "unset it" in answer["hint"]


def test_a_closed_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
    # A folder, because over a file the Hub client tries again for 23 seconds.
    (answer,) = ask("resolve", "hf://owner/repo", HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    assert f"{endpoint} cannot be reached" in answer["message"]
    assert "HF_ENDPOINT" in answer["hint"]


class Hub(BaseHTTPRequestHandler):
    """Answers by what is asked for; the real one too names its errors in the header X-Error-Code."""

    def do_HEAD(self) -> None:
        if "/owner/gated" in self.path:
            return self.answer(403, "GatedRepo")
        if "/owner/none" in self.path:
            return self.answer(401, "RepoNotFound")
        if "/v9" in self.path:
            return self.answer(404, "RevisionNotFound")
        if not self.path.endswith("/lora.safetensors"):
            return self.answer(404, "EntryNotFound")
        return self.answer(200, "", b"weights" if self.command == "GET" else b"")

    do_GET = do_HEAD

    def answer(self, status: int, code: str, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "ETag": '"1234"', "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "7" if status == 200 else "0")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_the_hub_answers(tmp_path: Path, endpoint: str) -> None:
    expected = {
        "hf://owner/gated/x.bin": ("is gated", f"{endpoint}/owner/gated"),
        "hf://owner/gated": ("is gated", f"{endpoint}/owner/gated"),
        "hf://owner/none/x.bin": ("no such repository", "hf auth login"),
        "hf://owner/none": ("no such repository", "hf auth login"),
        "hf://owner/repo/x.bin": ("no such file in the repository", f"{endpoint}/owner/repo"),
        "hf://owner/repo@v9/lora.safetensors": ("no such revision", f"{endpoint}/owner/repo"),
        "hf://owner/repo@v9": ("no such revision", f"{endpoint}/owner/repo"),
    }
    answers = ask("resolve", *expected, HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    for (reference, (cause, cure)), answer in zip(expected.items(), answers, strict=True):
        assert answer["message"].startswith(f"file {reference!r}: ")
        assert cause in answer["message"]
        assert cure in answer["hint"]


def test_a_download(tmp_path: Path, endpoint: str) -> None:
    (answer,) = ask("resolve", "hf://owner/repo/lora.safetensors", HF_HOME=str(tmp_path), HF_ENDPOINT=endpoint)
    path = Path(answer["path"])
    assert path.is_relative_to(tmp_path)
    assert path.read_bytes() == b"weights"
