"""Publishing, to a Hub on the loopback: only when asked for, one commit, and nothing but the outputs."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
from forked import command
from fusing import Files
from hub import Fault, Handler, Hub
from recipefile import contents, recipe, run

from lcmmerge.errors import FormatError
from lcmmerge.recipe import manifest
from lcmmerge.recipe.steps import publish


class Uploads(Handler):
    """What an upload asks for: https://huggingface.co/docs/hub/api and the LFS batch API."""

    server: UploadHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.server.token not in (self.headers["Authorization"] or ""):
            return self.refuse(Fault(""), "Unauthorized", 401)
        if self.server.garbles:
            return self.answer(200, b"<html>", {}, Fault(""))
        if self.path == "/api/repos/create":
            repo = json.loads(body)
            name = f"{repo.get('organization')}/{repo['name']}"
            return self.json(Fault(""), {"url": f"{self.server.endpoint}/{name}", "name": name, "id": "1"})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": _mode(file["path"])}
                for file in json.loads(body)["files"]
            ]
            return self.json(Fault(""), {"files": files})
        if self.path == "/api/validate-yaml":
            return self.json(Fault(""), {"errors": [], "warnings": []})
        if self.path.endswith("/objects/batch"):
            objects = [self.place(item) for item in json.loads(body)["objects"]]
            return self.json(Fault(""), {"transfer": "basic", "objects": objects})
        assert re.fullmatch(r"/api/models/[^/]+/[^/]+/commit/main", self.path)
        self.server.commits.append([json.loads(line) for line in body.splitlines()])
        url = f"{self.server.endpoint}/owner/made/commit/{'1' * 40}"
        return self.json(Fault(""), {"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def place(self, item: dict[str, object]) -> dict[str, object]:
        """Where to put an object; nowhere, if it is here already."""
        if item["oid"] in self.server.objects:
            return item
        return item | {"actions": {"upload": {"href": f"{self.server.endpoint}/put/{item['oid']}"}}}

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, b"", {}, Fault(""))


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


class UploadHub(Hub):
    """``commits``: the operations of each; ``objects``: sha256 → content; ``garbles``: as a proxy's login page does."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = Uploads
        self.commits: list[list[dict[str, dict[str, str]]]] = []
        self.objects: dict[str, bytes] = {}
        self.garbles = False


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with UploadHub() as hub:
        yield hub


def published(hub: UploadHub, number: int) -> dict[str, bytes]:
    """Path → content of a commit."""
    found = {}
    for operation in hub.commits[number]:
        value = operation["value"]
        if operation["key"] == "file":
            found[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            found[value["path"]] = hub.objects[value["oid"]]
    return found


def lcmmerge(hub: UploadHub, home: Path, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return forked.run(command, *map(str, arguments), env=hub.environment(home, **more))


@pytest.mark.e2e
def test_publish(hub: UploadHub, files: Callable[[str], Files], tmp_path: Path) -> None:
    path, out = recipe(tmp_path, files("sd1"), more="publish: hf://owner/made\n"), tmp_path / "out"
    assert lcmmerge(hub, tmp_path, "run", path, "-o", out, HF_TOKEN=hub.token).returncode == 0
    assert not hub.requests
    assert not hub.commits  # nobody asked
    denied = lcmmerge(hub, tmp_path, "run", path, "-o", out, "--publish", HF_TOKEN="hf_wrongWrongWrong")
    assert (denied.returncode, hub.commits) == (1, [])
    assert "hf_wrong" not in denied.stdout + denied.stderr
    ran = lcmmerge(hub, tmp_path, "run", path, "-o", out, "--publish", HF_TOKEN=hub.token)
    assert ran.returncode == 0, ran.stderr
    assert "%|" not in ran.stderr  # a bar
    assert f"Published: {hub.endpoint}/owner/made/commit/1" in ran.stderr
    assert len(hub.commits) == 1
    local = contents(out)
    expected = {name.removeprefix("pico/"): data for name, data in local.items() if name.startswith("pico/")}
    assert published(hub, 0) == expected


@pytest.mark.e2e
def test_what_keeps_it_from_the_hub(hub: UploadHub, files: Callable[[str], Files], tmp_path: Path) -> None:
    path, out = recipe(tmp_path, files("sd1"), more="publish: hf://owner/made\n"), tmp_path / "out"
    run(path, out)
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = f"http://127.0.0.1:{server.getsockname()[1]}"
    cases = {
        f"{nobody} cannot be reached (ConnectError)": {"HF_ENDPOINT": nobody},
        "HF_HUB_OFFLINE is set": {"HF_HUB_OFFLINE": "1"},
        "the Hub denies access (401)": {"HF_TOKEN": "hf_wrongWrongWrong"},
        "the upload failed (JSONDecodeError)": {},
    }
    hub.garbles = True
    for cause, environment in cases.items():
        ran = lcmmerge(hub, tmp_path, "run", path, "-o", out, "--publish", **{"HF_TOKEN": hub.token, **environment})
        error, hint = ran.stderr.splitlines()
        assert (ran.returncode, error) == (1, f"Error: publish 'owner/made': {cause}")
        assert hint.startswith("Hint: ")
        assert "hf_" not in ran.stdout + ran.stderr
    assert not hub.commits


def test_a_link_is_not_published(hub: UploadHub, files: Callable[[str], Files], tmp_path: Path) -> None:
    """One that took an output's place after the run had read it."""
    path, out = recipe(tmp_path, files("sd1"), more="publish: hf://owner/made\n"), tmp_path / "out"
    run(path, out)
    found = manifest.read_manifest(out)
    name = next(name for step in found.steps.values() for name in step.outputs)
    (tmp_path / "key").write_text("secret")
    (out / name).unlink()
    (out / name).symlink_to(tmp_path / "key")
    with pytest.raises(FormatError, match="symbolic link"):
        publish.upload("owner/made", out, found)
    assert not hub.requests


@pytest.mark.e2e
def test_several_outputs_are_folders(hub: UploadHub, files: Callable[[str], Files], tmp_path: Path) -> None:
    more = "publish: hf://owner/made\nmatrix: {lambda.lcm: [0.5, 1]}\n"
    path, out = recipe(tmp_path, files("sd1"), more=more), tmp_path / "out"
    ran = lcmmerge(hub, tmp_path, "run", path, "-o", out, "--publish", HF_TOKEN=hub.token)
    assert ran.returncode == 0, ran.stderr
    assert published(hub, 0) == {name: data for name, data in contents(out).items() if name.startswith("pico-")}


@pytest.mark.e2e
def test_a_missed_check_publishes_nothing(hub: UploadHub, files: Callable[[str], Files], tmp_path: Path) -> None:
    more = "publish: hf://owner/made\ncheck: {signal: {min: 1e9}}\n"
    path = recipe(tmp_path, files("sd1"), more=more)
    ran = lcmmerge(hub, tmp_path, "run", path, "-o", tmp_path / "out", "--publish", HF_TOKEN=hub.token)
    assert (ran.returncode, hub.commits) == (4, [])
