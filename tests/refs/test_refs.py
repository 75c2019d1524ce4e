"""References against a Hub on the loopback, by the real client over the real protocol.

huggingface_hub reads its environment when it is imported, so each case runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hub import Fault, Hub

from lcmmerge import refs
from lcmmerge.errors import NotFoundError

REPO = "owner/repo"
LORA = "hf://owner/repo/lora.safetensors"
WEIGHTS = bytes(range(256)) * 2048  # half a megabyte: several blocks of a body

RUN = """
import json, sys
from dataclasses import asdict
from lcmmerge import refs
from lcmmerge.errors import LcmMergeError
for function, reference, options in json.loads(sys.argv[1]):
    try:
        answer = getattr(refs, function)(reference, **options)
        print(json.dumps(asdict(answer) if function == "pin" else {"path": str(answer)}))
    except LcmMergeError as error:
        print(json.dumps({"kind": type(error).__name__, "message": error.message, "hint": error.hint}))
"""
FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))"

Answer = dict[str, Any]


def ask(
    environment: Mapping[str, str], *calls: tuple[str, str] | tuple[str, str, Answer], before: str = ""
) -> list[Answer]:
    """What ``refs`` says to each call (function, reference, options), in a fresh process."""
    full = [(*call, {})[:3] for call in calls]
    done = subprocess.run(
        [sys.executable, "-c", before + RUN, json.dumps(full)],
        env={"HF_TOKEN": "hf_secretSecretSecret", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    assert "%|" not in done.stderr  # a bar
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(calls)
    assert not any("\n" in answer.get(text, "") for answer in answers for text in ("message", "hint"))
    return answers


def resolve(environment: Mapping[str, str], *references: str, before: str = "") -> list[Answer]:
    return ask(environment, *(("resolve", reference) for reference in references), before=before)


def refused(answer: Answer, cause: str, cure: str, kind: str = "NotFoundError") -> bool:
    return (answer.get("kind"), cause in answer["message"], cure in answer["hint"]) == (kind, True, True)


def offline(environment: dict[str, str]) -> dict[str, str]:
    return environment | {"HF_HUB_OFFLINE": "1"}


def closed(environment: dict[str, str]) -> dict[str, str]:
    """The Hub's address is one where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return environment | {"HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}


@pytest.fixture
def lora(hub: Hub) -> str:
    """A Hub with one LoRA; its commit."""
    return hub.add(REPO, {"lora.safetensors": WEIGHTS, "README.md": "A LoRA."})


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


PIPELINE = {
    "model_index.json": json.dumps({part: ["diffusers", "X"] for part in ("unet", "vae", "scheduler", "tokenizer")}),
    "README.md": "A pipeline.",
    "sd.safetensors": b"all in one",
    "sd-ema.ckpt": b"and again",
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.safetensors": b"unet",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"unet fp16",
    "unet/diffusion_pytorch_model.bin": b"unet, pickled",
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.safetensors": b"vae",
    "vae/diffusion_pytorch_model.fp16.bin": b"vae fp16, pickled",
    "vae_1_0/config.json": "{}",
    "vae_1_0/diffusion_pytorch_model.safetensors": b"old vae",
    "scheduler/scheduler_config.json": "{}",
    "tokenizer/merges.txt": "#version",
    "assets/card.json": "{}",
}
SMALL = [
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"),
    *("unet/config.json", "vae/config.json"),
]


def downloaded(folder: str) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


# What a reference says


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


@pytest.mark.parametrize(
    "reference",
    [
        *("hf://", "hf://repo", "hf://owner/repo@", "hf://datasets/owner/repo/f", "hf://owner/repo/a//b"),
        *("https://example.org/owner/repo/resolve/main/f", "https://huggingface.co/owner"),
        "https://huggingface.co/owner/repo/discussions/3",
    ],
)
def test_what_is_no_reference_to_a_model(reference: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        refs.parse(reference)
    assert refs.HUB_FORM in caught.value.hint


def test_what_ships_with_lcmmerge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (refs.resolve("zoo:digits/base") / "model_index.json").is_file()
    assert refs.parse("zoo:digits/neon.safetensors").name == "neon.safetensors"
    with pytest.raises(NotFoundError, match="'zoo:digits/none': no such file or folder"):
        refs.parse("zoo:digits/none")


@pytest.mark.parametrize(
    "reference",
    [
        *("hf://owner/repo/../../f", "hf://owner/repo/..", "hf://owner/repo/a/./f", "hf://owner/repo/a\\..\\f"),
        *("hf://owner/repo@..%2F..%2Fx/f", "https://huggingface.co/owner/repo/blob/main/%2E%2E/f"),
    ],
)
def test_a_path_that_steps_out(reference: str) -> None:
    with pytest.raises(NotFoundError, match="steps out of the repository"):
        refs.parse(reference)


@pytest.mark.parametrize(
    ("reference", "revision", "path"),
    [
        ("hf://owner/repo", None, ""),
        ("hf://owner/repo@v1", "v1", ""),
        ("hf://owner/repo/a/f.safetensors", None, "a/f.safetensors"),
        ("hf://owner/repo@refs/pr/3/f.safetensors", "refs/pr/3", "f.safetensors"),
        ("hf://owner/repo@feature%2Fx/unet/", "feature/x", "unet"),
        ("https://huggingface.co/owner/repo", None, ""),
        ("huggingface.co/owner/repo/tree/main", "main", ""),
        ("https://hf.co/owner/repo/blob/v1/a/f.safetensors", "v1", "a/f.safetensors"),
        (
            "https://huggingface.co/owner/repo/resolve/main/my%20lora.safetensors?download=true",
            "main",
            "my lora.safetensors",
        ),
    ],
)
def test_what_a_reference_says(reference: str, revision: str | None, path: str) -> None:
    parsed = refs.parse(reference)
    assert (parsed.kind, parsed.repo, parsed.revision, parsed.path_in_repo) == ("hub", REPO, revision, path)
    again = refs.parse(parsed.at("0" * 40))
    assert (again.repo, again.revision, again.path_in_repo) == (REPO, "0" * 40, path)


def test_configs_of_a_local_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model_index"):
        refs.configs(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    assert refs.configs(str(tmp_path)) == tmp_path


# Downloads


def test_a_file(hub: Hub, environment: dict[str, str]) -> None:
    files = {"a/lora.safetensors": WEIGHTS, "a/adapter_config.json": "{}", "b/adapter_config.json": "{}"}
    hub.add(REPO, files | {"a/lora.bin": b"pickled", "README.md": ""})
    (answer,) = resolve(environment, "hf://owner/repo/a/lora.safetensors")
    assert Path(answer["path"]).read_bytes() == WEIGHTS
    assert Path(answer["path"]).is_relative_to(environment["HF_HOME"])
    assert downloaded(str(Path(answer["path"]).parent.parent)) == ["a/adapter_config.json", "a/lora.safetensors"]
    assert {request.token for request in hub.asked("/lfs/")} == {None}
    assert {request.token for request in hub.asked("/resolve/", "HEAD")} == {"hf_secretSecretSecret"}


def test_a_url_on_the_endpoint(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    (answer,) = resolve(environment, f"{hub.endpoint}/owner/repo/blob/main/lora.safetensors")
    assert Path(answer["path"]).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (None, ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]),
        ("fp16", ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"]),
    ],
)
def test_a_folder(hub: Hub, environment: dict[str, str], variant: str | None, weights: list[str]) -> None:
    hub.add(REPO, PIPELINE)
    (answer,) = ask(environment, ("resolve", "hf://owner/repo", {"variant": variant}))
    assert downloaded(answer["path"]) == sorted([*SMALL, *weights])


def test_a_folder_in_a_repository(hub: Hub, environment: dict[str, str]) -> None:
    hub.add(REPO, {f"models/{name}": content for name, content in PIPELINE.items()} | {"unet/config.json": "{}"})
    folder, unet, configs = ask(
        environment,
        ("resolve", "hf://owner/repo/models", {"variant": "fp16"}),
        ("resolve", "hf://owner/repo/models/vae"),
        ("configs", "hf://owner/repo/models"),
    )
    assert Path(folder["path"]).name == "models"
    assert (Path(folder["path"]) / "unet/diffusion_pytorch_model.fp16.safetensors").read_bytes() == b"unet fp16"
    assert unet["path"] == str(Path(folder["path"]) / "vae")
    assert configs == folder


def test_shards_by_their_index(hub: Hub, environment: dict[str, str]) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": b"%d" % n for n in (1, 2)}
    index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    hub.add(REPO, {**shards, "model.safetensors.index.json": index, "other.safetensors": b""})
    (answer,) = resolve(environment, "hf://owner/repo/model.safetensors.index.json")
    assert downloaded(str(Path(answer["path"]).parent)) == [*shards, "model.safetensors.index.json"]


def test_several_files_where_one_is_meant(hub: Hub, environment: dict[str, str]) -> None:
    hub.add(REPO, {"a.safetensors": b"a", "b.safetensors": b"b"})
    (answer,) = resolve(environment, "hf://owner/repo")
    assert refused(answer, "hf://owner/repo: holds several weight files: a.safetensors", "name the file itself")
    assert not hub.asked("/lfs/")


def test_a_repository_whose_names_step_out(hub: Hub, environment: dict[str, str]) -> None:
    hub.add(REPO, {"../../outside.safetensors": WEIGHTS, "..\\outside.safetensors": WEIGHTS})
    (answer,) = resolve(environment, "hf://owner/repo")
    assert refused(answer, "holds no weights", "it needs .safetensors")


def test_configs(hub: Hub, environment: dict[str, str]) -> None:
    hub.add(REPO, PIPELINE)
    hub.add("owner/other", {"README.md": ""})
    found, missing = ask(environment, ("configs", "hf://owner/repo"), ("configs", "hf://owner/other"))
    assert downloaded(found["path"]) == SMALL
    assert refused(missing, "no model_index.json", "name a diffusers pipeline")


def test_what_is_in_the_cache_is_not_downloaded_again(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    first = resolve(environment, LORA)
    before = len(hub.requests)
    assert resolve(environment, LORA) == first
    assert [request.path for request in hub.requests[before:]] == ["/api/models/owner/repo/revision/main?blobs=true"]


def test_a_revision_that_moves(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    resolve(environment, LORA)
    later = hub.add(REPO, {"lora.safetensors": b"retrained"})
    hub.add(REPO, {"lora.safetensors": b"branched"}, branch="feature/x")
    pinned = f"hf://owner/repo@{lora}/lora.safetensors"
    contents = (b"retrained", WEIGHTS, b"branched")
    answers = resolve(environment, LORA, pinned, "hf://owner/repo@feature%2Fx/lora.safetensors")
    for answer, content in zip(answers, contents, strict=True):
        assert Path(answer["path"]).read_bytes() == content
    (answer,) = resolve(offline(environment), LORA)
    assert Path(answer["path"]).parent.name == later


# Without the Hub


def test_from_a_warm_cache(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    hub.add("owner/pipe", PIPELINE, branch="v1")
    calls = (
        ("resolve", LORA),
        ("resolve", f"hf://owner/repo@{lora}/lora.safetensors"),
        ("resolve", "hf://owner/pipe@v1"),
        ("configs", "hf://owner/pipe@v1"),
    )
    answers = ask(environment, *calls)
    assert all(Path(answer["path"]).exists() for answer in answers)
    assert ask(offline(environment), *calls) == answers
    assert ask(closed(environment), *calls) == answers


def test_from_a_cold_cache(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    for answer in resolve(offline(environment), LORA, "hf://owner/repo"):
        assert refused(answer, "not in the cache, and HF_HUB_OFFLINE is set", "unset it")
    nowhere = closed(environment)
    for answer in resolve(nowhere, LORA, "hf://owner/repo"):
        assert refused(answer, f"{nowhere['HF_ENDPOINT']} cannot be reached", "check the network")


def test_from_half_a_cache(hub: Hub, environment: dict[str, str]) -> None:
    """A pipeline whose VAE did not arrive is not taken for one that has none."""
    hub.add(REPO, PIPELINE)
    (answer,) = resolve(environment, "hf://owner/repo")
    (Path(answer["path"]) / "vae/diffusion_pytorch_model.safetensors").unlink()
    others = (
        "hf://owner/repo/unet",
        "hf://owner/repo@v2",
        "hf://owner/repo/sd.safetensors",
        "hf://owner/repo/none.bin",
    )
    whole, unet, *rest = resolve(offline(environment), "hf://owner/repo", *others)
    assert unet == {"path": f"{answer['path']}/unet"}
    for answer in (whole, *rest):
        assert refused(answer, "not in the cache, and HF_HUB_OFFLINE is set", "unset it")


# Faults


def test_a_download_that_is_cut_goes_on(hub: Hub, environment: dict[str, str]) -> None:
    content = WEIGHTS * 24
    hub.add(REPO, {"lora.safetensors": content})
    hub.faults = [Fault("/lfs/", cut=11_000_000)]
    (answer,) = resolve(environment, LORA)
    assert Path(answer["path"]).read_bytes() == content
    assert [request.range for request in hub.asked("/lfs/")] == [
        None,
        f"bytes={10 << 20}-",
    ]  # it keeps blocks of 10 MiB


def test_a_download_that_stalls_goes_on(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    hub.faults = [Fault("/lfs/", delay=1.5)]
    (answer,) = resolve(environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}, LORA)
    assert Path(answer["path"]).read_bytes() == WEIGHTS
    assert len(hub.asked("/lfs/")) == 2


def test_downloads_that_are_interrupted_end(hub: Hub, environment: dict[str, str]) -> None:
    """At once, and with nothing left of what had come."""
    hub.add(REPO, PIPELINE | {f"{part}/diffusion_pytorch_model.safetensors": WEIGHTS for part in ("unet", "vae")})
    hub.faults = [Fault("/lfs/", times=9, delay=2)]
    program = subprocess.Popen(
        [sys.executable, "-c", "from lcmmerge import refs; refs.resolve('hf://owner/repo')"],
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    while not list(Path(environment["HF_HOME"]).rglob("*.incomplete")):
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    begun = time.monotonic()
    program.wait(60)
    assert time.monotonic() - begun < 12  # of 16 s
    assert not list(Path(environment["HF_HOME"]).rglob("*.incomplete"))


def test_other_bytes_than_the_hub_records(hub: Hub, environment: dict[str, str]) -> None:
    hub.add(REPO, {"lora.safetensors": WEIGHTS}, sha256={"lora.safetensors": "ab" * 32})
    for answer in resolve(environment, LORA, LORA):  # what came is not kept
        assert refused(answer, "the Hub records abababababab", "try again", "FormatError")
        assert hashlib.sha256(WEIGHTS).hexdigest()[:12] in answer["message"]
    assert not [
        path for path in Path(environment["HF_HOME"]).rglob("*") if path.is_file() and path.stat().st_size > 9999
    ]


def test_gated(hub: Hub, environment: dict[str, str]) -> None:
    hub.add(REPO, {"lora.safetensors": WEIGHTS}, gated=True)
    for token in ("", "hf_secretOfAnother"):
        (answer,) = resolve(environment | {"HF_TOKEN": token}, LORA)
        assert refused(answer, "is gated", f"accept the terms at {hub.endpoint}/owner/repo, then `hf auth login`")
    (answer,) = resolve(environment, LORA)
    assert Path(answer["path"]).read_bytes() == WEIGHTS


def test_what_is_not_there(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    expected = {
        "hf://owner/none/x.bin": ("no such repository", "hf auth login"),
        "hf://owner/none": ("no such repository", "hf auth login"),
        "hf://owner/repo/x.bin": ("no such file in the repository", f"{hub.endpoint}/owner/repo"),
        "hf://owner/repo/lora": ("no such file in the repository", f"{hub.endpoint}/owner/repo"),
        "hf://owner/repo@v9/lora.safetensors": ("no such revision", f"{hub.endpoint}/owner/repo"),
        f"hf://owner/repo@{'0' * 40}": ("no such revision", f"{hub.endpoint}/owner/repo"),
    }
    for (reference, (cause, cure)), answer in zip(expected.items(), resolve(environment, *expected), strict=True):
        assert refused(answer, f"file {reference!r}: {cause}", cure)


@pytest.mark.e2e
def test_a_limited_rate(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    wait = {"Retry-After": "0"}
    hub.faults = [Fault("/api/", status=429, headers=wait), Fault("/lfs/", status=429, headers=wait)]
    (answer,) = resolve(environment, LORA)
    assert Path(answer["path"]).read_bytes() == WEIGHTS
    hub.faults = [Fault("/api/", times=9, status=429, headers=wait)]
    (answer,) = resolve(hub.environment(Path(environment["HF_HOME"], "cold")), LORA)
    assert refused(answer, "limits the rate", "wait a few minutes")


@pytest.mark.e2e
def test_a_hub_that_fails(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    hub.faults = [Fault("/api/", times=9, status=503)]
    (answer,) = resolve(environment, LORA)
    assert refused(answer, "the Hub fails (503)", "try again later")
    hub.faults = []
    (answer,) = resolve(environment, LORA)
    hub.faults = [Fault("/api/", times=9, status=503)]
    assert resolve(environment, LORA) == [answer]  # the cache has it


@pytest.mark.parametrize(
    ("status", "headers", "cause"),
    [(429, {"Retry-After": "3600"}, "limits the rate"), (503, {"Retry-After": "3600"}, "the Hub fails (503)")],
)
def test_a_hub_that_fails_at_a_file(
    hub: Hub, lora: str, environment: dict[str, str], status: int, headers: dict[str, str], cause: str
) -> None:
    hub.faults = [Fault("/resolve/", times=9, method="HEAD", status=status, headers=headers)]
    (answer,) = resolve(environment, LORA)
    assert refused(answer, cause, "")


def test_a_hub_that_answers_for_a_file_with_no_name_of_it(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    hub.faults = [Fault("/resolve/", times=9, method="HEAD", status=200)]
    (answer,) = resolve(environment, LORA)
    assert refused(answer, "does not say which file it has", "check HF_ENDPOINT")


def test_a_password_of_the_endpoint_is_nowhere(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    """Neither in what we say nor in what huggingface_hub logs."""
    environment |= {"HF_ENDPOINT": hub.endpoint.replace("//", "//me:hf_secretOfMine@")}
    hub.faults = [Fault("/api/", times=9, status=503)]
    for reference in (LORA, "hf://owner/none/x.bin"):
        resolve(environment, reference)
        hub.faults = []


def test_a_token_of_no_use(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    hub.faults = [
        Fault("/api/", status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
    ]
    (answer,) = resolve(environment, LORA)
    assert refused(answer, "the Hub denies access (401)", "hf auth")


def test_a_full_disk(hub: Hub, lora: str, environment: dict[str, str]) -> None:
    """A limit on the size of files stands for it: the same call fails. A disk that is full: test_full_disk.py."""
    (answer,) = resolve(environment, LORA, before=FULL_DISK)
    assert refused(answer, f"cannot be kept in {environment['HF_HOME']}/hub (File too large)", "set HF_HOME")
    assert not list(Path(environment["HF_HOME"]).rglob("*.safetensors"))
    (answer,) = resolve(environment, LORA)
    assert Path(answer["path"]).read_bytes() == WEIGHTS


# Pins


def test_a_pin_of_a_file(hub: Hub, environment: dict[str, str]) -> None:
    files = {"lora.safetensors": WEIGHTS, "adapter_config.json": "{}", "README.md": ""}
    commit = hub.add(REPO, files, license="openrail++")
    (pin,) = ask(environment, ("pin", LORA))
    assert (pin["reference"], pin["uri"]) == (LORA, f"hf://owner/repo@{commit}/lora.safetensors")
    assert (pin["commit"], pin["license"]) == (commit, "openrail++")
    assert pin["files"] == [_pinned("adapter_config.json", b"{}"), _pinned("lora.safetensors", WEIGHTS)]
    assert not hub.asked("/lfs/")
    resolve(environment, LORA)
    for unreached in (offline(environment), closed(environment)):
        (again,) = ask(unreached, ("pin", LORA))
        assert (again["uri"], again["files"]) == (pin["uri"], pin["files"])


def test_a_pin_of_a_folder_here_and_there(hub: Hub, environment: dict[str, str], tmp_path: Path) -> None:
    names = [*SMALL, "unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    contents = {name: content.encode() if isinstance(content, str) else content for name, content in PIPELINE.items()}
    for name, content in contents.items():
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    commit = hub.add_folder(REPO, tmp_path)
    variant = {"variant": "fp16"}
    here, there = ask(
        environment, ("pin", str(tmp_path / "models"), variant), ("pin", "hf://owner/repo/models", variant)
    )
    assert here["files"] == there["files"] == [_pinned(name, contents[name]) for name in sorted(names)]
    assert (there["uri"], there["commit"]) == (f"hf://owner/repo@{commit}/models", commit)
    assert (here["uri"], here["commit"], here["license"]) == (str(tmp_path / "models"), None, None)
    assert not hub.asked("/lfs/")


def test_a_pin_of_a_file_here(tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "other.safetensors").write_bytes(b"")
    pin = refs.pin(str(tmp_path / "lora.safetensors"))
    assert pin.files == (refs.PinnedFile("lora.safetensors", len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest()),)


def _pinned(name: str, content: bytes) -> Answer:
    return {"path": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_tilde_is_the_home_folder_where_no_shell_expands_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.safetensors").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refs.parse("~/base.safetensors").path == tmp_path / "base.safetensors"
    with pytest.raises(NotFoundError, match="no such file or folder"):
        refs.parse("~nobody-of-this-name/base.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "base.safetensors").touch()
    assert refs.parse("~/base.safetensors").path == Path("~/base.safetensors")  # what is there comes first
