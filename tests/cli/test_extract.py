from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fusing import Files, fuse

from lcmmerge.tensors import open_source

if TYPE_CHECKING:
    from conftest import Ran


@pytest.fixture(scope="module")
def tuned(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    fuse(files("sd1").base("fp32"), target, files("sd1").style, files("sd1").lcm)
    return target


def test_report(tuned: Path, files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    base = files("sd1").base("fp32")
    ran = cli("extract", tuned, base, "-o", tmp_path / "lora", "--rank", 8)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{tmp_path / 'lora.safetensors'}  350 parameters, 100.00% of ‖Δ‖² kept\n"
    facts = json.loads(cli("extract", tuned, base, "-o", tmp_path / "b.safetensors", "--rank", 2, "--json").out)
    assert len(facts["layers"]) == 350
    assert 0 < facts["energy"] < 1
    assert all(layer["rank"] == 2 and 0 < layer["energy"] <= 1 + 1e-6 for layer in facts["layers"])
    assert {info.dtype.name for info in open_source(tmp_path / "b.safetensors")} == {"F16"}


def test_inspect_shows_where_it_comes_from(
    tuned: Path, files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path
) -> None:
    base = files("sd1").base("fp32")
    ran = cli("extract", tuned, base, "-o", tmp_path / "lora", "--energy", 0.5, "--dtype", "bf16", "-v")
    assert "unet.down_blocks.0.attentions.0.proj_in" in "".join(ran.out.split())
    shown = cli("inspect", tmp_path / "lora.safetensors").out
    assert f"Recipe: tuned.safetensors − {base.name}, rank 64" in shown
    assert "Adapter for Stable Diffusion 1, kohya names, BF16" in shown


def test_what_is_left_out_is_said(files: Callable[[str], Files], cli: Callable[..., Ran], tmp_path: Path) -> None:
    """Another seed of the same structure: everything differs, norms, embeddings and VAE too."""
    from pico import pico

    other = pico("sd1", seed=5).single_file(tmp_path / "other.safetensors")
    ran = cli("extract", other, files("sd1").base(), "-o", tmp_path / "lora", "--rank", 1)
    assert ran.code == 0
    assert "changed parameters are left out (norms and biases come with --full): " in ran.err
    full = cli("extract", other, files("sd1").base(), "-o", tmp_path / "full", "--rank", 1, "--full", "--json")
    left_out = json.loads(full.out)["left_out"]
    assert {name.partition(".")[0] for name in left_out} == {"vae", "text_encoder"}


@pytest.mark.e2e
def test_the_same_bytes_whatever_the_threads_and_the_hash_seed(
    tuned: Path, files: Callable[[str], Files], process: Callable[..., Ran], tmp_path: Path
) -> None:
    written = []
    for number in ("1", "2"):
        target = tmp_path / f"{number}.safetensors"
        arguments = ("extract", tuned, files("sd1").base("fp32"), "-o", target, "--rank", 3)
        assert process(*arguments, OMP_NUM_THREADS=number, PYTHONHASHSEED=number).code == 0
        written.append(target.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere.safetensors", "{base}", "-o", "{new}"), 1, "tuned checkpoint 'nowhere.safetensors': no such file"),
        (("{tuned}", "{base}", "-o", "{tuned}"), 1, "is an input of this run"),
        (("{tuned}", "{base}", "-o", "{old}"), 1, "exists already"),
        (("{tuned}", "{base}", "-o", "{new}.ckpt"), 1, "can hold code and are not written"),
        (("{style}", "{base}", "-o", "{new}"), 3, "is an adapter already"),
        (("{xl}", "{base}", "-o", "{new}"), 3, "the base's"),
        (("{base}", "{base}", "-o", "{new}"), 3, "no change at all"),
        (("{tuned}", "{base}"), 2, "Missing option '-o'"),
        (("{tuned}", "{base}", "-o", "{new}", "--rank", "0"), 2, "--rank"),
        (("{tuned}", "{base}", "-o", "{new}", "--energy", "1.5"), 2, "--energy"),
    ],
)
def test_faults(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tuned: Path,
    files: Callable[[str], Files],
    cli: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    (tmp_path / "old.safetensors").touch()
    paths = {
        "base": files("sd1").base("fp32"),
        "xl": files("sdxl").base(),
        "style": files("sd1").style,
        "tuned": tuned,
        "old": tmp_path / "old.safetensors",
        "new": tmp_path / "new",
    }
    ran = cli("extract", *(argument.format(**paths) for argument in arguments))
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
