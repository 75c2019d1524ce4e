"""Sources on the Hub, whose headers are read in place: by commands in their own processes, from a loopback Hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hollow import hollow_lora, hollow_model
from hub import Fault, Hub
from safetensors import safe_open
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from conftest import Ran
    from fusing import Files


@pytest.fixture
def remote(hub: Hub, process: Callable[..., Ran], tmp_path: Path) -> Callable[..., Ran]:
    """The command line in a process of its own, with a cache of its own."""
    environment = hub.environment(tmp_path / "home")
    # What it inherits besides is this process's environment, in which a user may have a token.
    absent = {name: "" for name in os.environ if name in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return lambda *arguments, **more: process(*arguments, **(absent | environment | more))


@pytest.fixture
def sd1(hub: Hub, files: Callable[[str], Files]) -> Files:
    """A pico's base, style and LCM-LoRA, on disk and on the Hub."""
    pico = files("sd1")
    hub.add("owner/base", {"base.safetensors": pico.base()}, license="openrail")
    hub.add("owner/style", {"style.safetensors": pico.style})
    hub.add("owner/lcm", {"lcm.safetensors": pico.lcm})
    return pico


BASE, STYLE, LCM = "hf://owner/base/base.safetensors", "hf://owner/style", "hf://owner/lcm/lcm.safetensors"


def downloads(hub: Hub) -> int:
    """How many large files were asked for as a whole."""
    return sum(request.range is None for request in hub.asked("/lfs/"))


def facts(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = json.loads(ran.out)
    return {key: value for key, value in found.items() if key not in ("path", "files")}


def test_a_dry_run_of_7_gb_moves_2_mb_at_most(hub: Hub, remote: Callable[..., Ran], tmp_path: Path) -> None:
    base = hollow_model(tmp_path / "base.safetensors", "sdxl")
    lcm = hollow_lora(tmp_path / "lcm.safetensors", "sdxl", 64)
    style = hollow_lora(tmp_path / "style.safetensors", "sdxl", 32)
    nbytes = sum(path.stat().st_size for path in (base, lcm, style))
    assert nbytes > 7e9
    for name, path in {"base": base, "style": style, "lcm": lcm}.items():
        hub.add(f"owner/{name}", {path.name: path}, sha256={path.name: name.encode().hex().ljust(64, "0")})
    ran = remote("fuse", BASE, STYLE, "--lcm", LCM, "-o", tmp_path / "fused", "--dry-run", "--json")
    assert hub.sent < 2e6
    assert downloads(hub) == 0
    if shutil.disk_usage(tmp_path).free > 7.2e9:
        assert facts(ran)["download"] == nbytes
        assert [term["parameters"] for term in facts(ran)["terms"]] == [{"unet": 788}] * 2


@pytest.mark.parametrize("kind", ["base", "style", "lcm"])
def test_a_file_is_inspected_as_if_it_were_here(
    kind: str, hub: Hub, sd1: Files, remote: Callable[..., Ran], cli: Callable[..., Ran]
) -> None:
    path, reference = {"base": (sd1.base(), BASE), "style": (sd1.style, STYLE), "lcm": (sd1.lcm, LCM)}[kind]
    assert facts(remote("inspect", reference, "--json")) == facts(cli("inspect", path, "--json"))
    assert downloads(hub) == 0


def test_a_folder_is_inspected_as_if_it_were_here(
    hub: Hub, files: Callable[[str], Files], remote: Callable[..., Ran], cli: Callable[..., Ran]
) -> None:
    hub.add_folder("owner/pipe", files("sd2").folder())
    here = facts(cli("inspect", files("sd2").folder(), "--json"))
    assert facts(remote("inspect", "hf://owner/pipe", "--json")) == here
    assert downloads(hub) == 0


def test_what_peft_keeps_beside_the_file_is_read_too(
    hub: Hub, remote: Callable[..., Ran], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    key = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"{key}.lora_A.weight": torch.ones(4, 8), f"{key}.lora_B.weight": torch.ones(8, 4)}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 7}))
    hub.add_folder("owner/peft", tmp_path)
    found = facts(remote("inspect", "hf://owner/peft/adapter_model.safetensors", "--json"))
    assert found == facts(cli("inspect", tmp_path / "adapter_model.safetensors", "--json"))
    assert found["parts"][0]["alphas"] == {"7": 1}


def test_a_fuse_from_the_hub_is_that_of_the_files(
    hub: Hub, sd1: Files, remote: Callable[..., Ran], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    arguments = ("--lambda", 0.8, 1.0, "-o")
    style = "hf://owner/style/style.safetensors"
    ran = remote("fuse", BASE, style, "--lcm", LCM, *arguments, tmp_path / "there.safetensors")
    assert ran.code == 0, ran.err
    assert downloads(hub) == 3
    for path, name in ((sd1.base(), "base"), (sd1.style, "style"), (sd1.lcm, "lcm")):
        shutil.copyfile(path, tmp_path / f"{name}.safetensors")
    base, here, lcm = (tmp_path / f"{name}.safetensors" for name in ("base", "style", "lcm"))
    assert cli("fuse", base, here, "--lcm", lcm, *arguments, tmp_path / "here.safetensors").code == 0
    assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
    offline = {"HF_HUB_OFFLINE": "1"}
    ran = remote("fuse", BASE, style, "--lcm", LCM, *arguments, tmp_path / "again.safetensors", **offline)
    assert ran.code == 0, ran.err
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()


def test_a_fuse_of_a_pipeline_on_the_hub(
    hub: Hub, files: Callable[[str], Files], remote: Callable[..., Ran], tmp_path: Path
) -> None:
    hub.add_folder("owner/pipe", files("sd1").folder())
    hub.add("owner/style", {"style.safetensors": files("sd1").style})
    arguments = ("fuse", "hf://owner/pipe", STYLE, "--lambda", 1, 0, "-o", tmp_path / "fused")
    plan = facts(remote(*arguments, "--dry-run", "--json"))
    assert (plan["layout"], plan["terms"][0]["file"], downloads(hub)) == ("diffusers", "style", 0)
    assert not (tmp_path / "fused").exists()
    ran = remote(*arguments)
    assert ran.code == 0, ran.err
    assert (tmp_path / "fused/scheduler/scheduler_config.json").is_file()
    with safe_open(tmp_path / "fused/unet/diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.metadata()["modelspec.merged_from"] == "pipe, style"


def test_a_wrong_lora_is_refused_before_the_download(
    hub: Hub, sd1: Files, files: Callable[[str], Files], remote: Callable[..., Ran], tmp_path: Path
) -> None:
    hub.add("owner/style", {"style.safetensors": files("sdxl").style})
    ran = remote("fuse", BASE, STYLE, "--lcm", LCM, "-o", tmp_path / "fused.safetensors")
    assert (ran.code, "looks made for Stable Diffusion XL" in ran.err) == (3, True)
    assert downloads(hub) == 0


def test_an_output_that_is_there_is_refused_before_the_download(
    hub: Hub, sd1: Files, remote: Callable[..., Ran], tmp_path: Path
) -> None:
    (tmp_path / "fused.safetensors").touch()
    ran = remote("fuse", BASE, STYLE, "--lcm", LCM, "-o", tmp_path / "fused.safetensors")
    assert (ran.code, "exists already" in ran.err) == (1, True)
    assert downloads(hub) == 0


def test_what_the_base_holds_already_is_refused_by_the_hubs_hash(
    hub: Hub, sd1: Files, cli: Callable[..., Ran], remote: Callable[..., Ran], tmp_path: Path
) -> None:
    fused = tmp_path / "base.safetensors"
    assert cli("fuse", sd1.base(), "--lcm", sd1.lcm, "-o", fused).code == 0
    hub.add("owner/base", {"base.safetensors": fused})
    ran = remote("fuse", BASE, "--lcm", LCM, "--dry-run")
    assert (ran.code, "already holds it" in ran.err) == (3, True)
    assert downloads(hub) == 0


def test_a_pickle_tells_nothing_before_it_is_downloaded(
    hub: Hub, sd1: Files, remote: Callable[..., Ran], tmp_path: Path
) -> None:
    torch.save({"state_dict": load_file(sd1.base())}, tmp_path / "base.ckpt")
    hub.add("owner/base", {"base.ckpt": tmp_path / "base.ckpt"})
    reference = "hf://owner/base/base.ckpt"
    for command in (("inspect", reference), ("fuse", reference, "--lcm", LCM, "--dry-run")):
        ran = remote(*command)
        assert (ran.code, "Hint: `hf download owner/base base.ckpt` first" in ran.err) == (1, True)
    assert downloads(hub) == 0
    ran = remote("fuse", reference, "--lcm", LCM, "-o", tmp_path / "fused.safetensors")
    assert ran.code == 0, ran.err


def test_a_header_that_comes_at_the_fourth_try(hub: Hub, sd1: Files, remote: Callable[..., Ran]) -> None:
    faults: list[dict[str, Any]] = [{"cut": 1000}, {"status": 503}, {"status": 429, "headers": {"Retry-After": "0"}}]
    hub.faults = [Fault("/lfs/", **fault) for fault in faults]
    assert remote("inspect", LCM).code == 0
    assert downloads(hub) == 0


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"whole": True}, "the server gives no part of a file by itself"),
        ({"cut": 1000}, "cannot be reached"),
        ({"status": 500}, "the Hub fails (500)"),
    ],
)
def test_a_header_that_does_not_come(
    fault: dict[str, Any], cause: str, hub: Hub, sd1: Files, remote: Callable[..., Ran]
) -> None:
    hub.faults = [Fault("/lfs/", times=99, **fault)]
    ran = remote("inspect", BASE)
    assert (ran.code, cause in ran.err) == (1, True), ran.err
    assert "Traceback" not in ran.err


def test_a_file_that_is_no_safetensors(hub: Hub, remote: Callable[..., Ran]) -> None:
    hub.add("owner/base", {"base.safetensors": b"version https://git-lfs.github.com/spec/v1"})
    ran = remote("inspect", BASE)
    assert (ran.code, "Git LFS pointer" in ran.err) == (1, True)


def test_gated(hub: Hub, sd1: Files, remote: Callable[..., Ran]) -> None:
    hub.add("owner/base", {"base.safetensors": sd1.base()}, gated=True)
    ran = remote("inspect", BASE)
    assert (ran.code, "accept the terms" in ran.err) == (1, True)
    ran = remote("inspect", BASE, HF_TOKEN=hub.token)
    assert ran.code == 0, ran.err
    assert {request.token for request in hub.asked("/lfs/")} == {None}
    assert hub.token not in ran.out + ran.err
