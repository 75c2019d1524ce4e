from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from distilling import FAST
from fusing import Files, load
from hollow import hollow_model
from pictures import folder_of

if TYPE_CHECKING:
    from conftest import Ran

Cli = Callable[..., "Ran"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("data") / "images", 6)


@pytest.fixture(scope="module")
def base(files: Callable[[str], Files]) -> Path:
    return files("sd1").folder("fp32")


@pytest.mark.e2e
def test_from_a_folder_of_images_to_a_merge(base: Path, data: Path, cli: Cli, tmp_path: Path) -> None:
    """With two images held out, and from a single file with the configs of a folder; the second time from latents."""
    lora = tmp_path / "lcm.safetensors"
    ran = cli("distill", base, "--data", data, "-o", lora, "--steps", 2, "--validate", 2, *FAST)
    assert ran.code == 0
    assert ran.out.startswith(f"{lora}  after step 2, validation score ")
    assert ran.err.splitlines()[-1] == "Draw with LCMScheduler, 4 steps (2–8), guidance 1 (0–2)."
    work = {path.relative_to(tmp_path / "lcm.training").as_posix() for path in (tmp_path / "lcm.training").rglob("*")}
    assert {"log.csv", "scores.csv", "sheets/step-000002.png", "step-000002/state.json"} <= work
    merged = cli("fuse", base, "--lcm", lora, "-o", tmp_path / "merged", "--json")
    assert [row["parameters"] for row in json.loads(merged.out)["coverage"]] == [278]


@pytest.mark.e2e
def test_latents_encoded_before_train_as_images_do(base: Path, data: Path, cli: Cli, tmp_path: Path) -> None:
    encoded = tmp_path / "encoded"
    ran = cli("distill", base, "--data", data, "-o", encoded, "--encode-only", *FAST)
    assert (ran.code, ran.out) == (0, f"{encoded}  6 examples\n")
    for name, reference in (("images", data), ("latents", encoded)):
        ran = cli("distill", base, "--data", reference, "-o", tmp_path / name, "--steps", 1, "--dtype", "fp32", *FAST)
        assert ran.code == 0
    images, latents = (load(tmp_path / f"{name}.safetensors") for name in ("images", "latents"))
    assert max(float((images[key] - latents[key]).abs().max()) for key in images) < 1e-5
    ran = cli("distill", base, "--data", encoded, "-o", tmp_path / "again", "--encode-only", *FAST)
    assert ran.code == 1
    assert "is encoded already" in ran.err


@pytest.mark.e2e
def test_sdxl_learns_with_its_own_guidance(files: Callable[[str], Files], data: Path, cli: Cli, tmp_path: Path) -> None:
    base = files("ssd1b").folder("fp32")
    ran = cli("distill", base, "--data", data, "-o", tmp_path / "lcm", "--steps", 1, *FAST, "--batch", 1, "--json")
    assert json.loads(ran.out)["sampling"]["scheduler"] == "LCMScheduler"
    assert "w_low: 3.0" in (tmp_path / "lcm.md").read_text()


@pytest.mark.parametrize(("name", "modules", "millions"), [("sd1", 278, 67.25), ("sdxl", 788, 196.75)])
def test_the_papers_table(name: str, modules: int, millions: float, cli: Cli, tmp_path: Path) -> None:
    """LCM-LoRA, arXiv 2311.05556, table 1, from the headers of a checkpoint of the real size."""
    base = hollow_model(tmp_path / "base.safetensors", name)
    found = json.loads(cli("distill", base, "--count-parameters", "--json").out)
    assert found["modules"] == modules
    assert found["trainable_parameters"] / 1e6 == pytest.approx(millions, abs=0.005)
    assert sum(target["modules"] for target in found["targets"].values()) == modules
    shown = cli("distill", base, "--count-parameters", "--rank", 32, "-v").out
    assert f"{millions / 2:.2f}"[:4] in shown
    assert "time_emb_proj" in shown


def test_counting_needs_no_torch(files: Callable[[str], Files], process: Callable[..., Ran]) -> None:
    ran = process("distill", files("sd1").base(), "--count-parameters", PYTHONPROFILEIMPORTTIME="1")
    assert ran.code == 0
    assert " torch\n" not in ran.err
    assert "Stable Diffusion 1" in ran.out


@pytest.mark.e2e
def test_ctrl_c_ends_the_step_and_says_how_to_go_on(base: Path, data: Path, cli: Cli, tmp_path: Path) -> None:
    lora, log = tmp_path / "lcm.safetensors", tmp_path / "lcm.training" / "log.csv"

    def interrupt() -> None:
        while not log.exists() or log.read_text().count("\n") < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.getsignal(signal.SIGINT)
    ran = cli("distill", base, "--data", data, "-o", lora, "--steps", 500, *FAST)
    done = log.read_text().count("\n") - 1
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-1] == f"Interrupted; step {done} is saved: go on from it with --resume."
    assert signal.getsignal(signal.SIGINT) == before
    assert not lora.exists()
    ran = cli("distill", base, "--data", data, "-o", lora, "--steps", done + 1, *FAST, "--resume")
    assert (ran.code, ran.out) == (0, f"{lora}  after step {done + 1}\n")


def test_a_loss_that_is_no_number(base: Path, data: Path, cli: Cli, tmp_path: Path) -> None:
    """The step before is kept and named; resumed with other settings it is refused."""
    command = ("distill", base, "--data", data, "-o", tmp_path / "lcm", "--checkpoint-every", 1, *FAST)
    ran = cli(*command, "--learning-rate", 1e30, "--steps", 3)
    assert ran.code == 1
    error, hint = ran.err.splitlines()[-2:]
    assert error in ("Error: step 2: the loss is nan", "Error: step 2: the loss is inf")
    assert hint.startswith("Hint: step 1 is saved; begin anew with a lower --learning-rate")
    assert [path.name for path in (tmp_path / "lcm.training").glob("step-*")] == ["step-000001"]
    ran = cli(*command, "--resume", "--drop-captions", 0.5)
    assert ran.code == 1
    assert "  learning_rate: 1e+30 then, 0.0001 now" in ran.err.splitlines()
    assert "  drop_captions: 0.0 then, 0.5 now" in ran.err.splitlines()
    ran = cli(*command)
    assert (ran.code, ran.err.splitlines()[-1]) == (1, "Hint: go on with --resume, or begin anew with --force")
    assert [path.name for path in tmp_path.iterdir()] == ["lcm.training"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{base}", "--data", "{data}"), 2, "Missing option '-o'"),
        (("{base}", "-o", "{new}"), 2, "Missing option '--data'"),
        (("{base}", "--data", "{data}", "-o", "{new}", "--full", "--rank", "8"), 2, "--full trains none"),
        (("{base}", "--data", "{data}", "-o", "{old}"), 1, "old.safetensors: exists already"),
        (("{base}", "--data", "nowhere", "-o", "{new}"), 1, "data 'nowhere': no such folder"),
        (("nowhere", "--data", "{data}", "-o", "{new}"), 1, "'nowhere': no such file or folder"),
        (("{base}", "--data", "{data}", "-o", "{new}", "--device", "cuda:9"), 1, "there is none here"),
        (("{unet}", "--data", "{data}", "-o", "{new}"), 3, "has no vae, text_encoder"),
        (("{refiner}", "--data", "{data}", "-o", "{new}"), 3, "refiner"),
        (("{inpainting}", "--data", "{data}", "-o", "{new}"), 3, "inpainting"),
    ],
)
def test_faults(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    base: Path,
    data: Path,
    files: Callable[[str], Files],
    cli: Cli,
    tmp_path: Path,
) -> None:
    (tmp_path / "old.safetensors").touch()
    paths = {
        "base": base,
        "data": data,
        "unet": base / "unet" / "diffusion_pytorch_model.safetensors",
        "refiner": files("sdxl_refiner").base(),
        "inpainting": files("sd1-inpainting").base(),
        "old": tmp_path / "old.safetensors",
        "new": tmp_path / "new",
    }
    ran = cli("distill", *(argument.format(**paths) for argument in arguments))
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
