"""What does not fit a diffusion transformer: one line, and nothing left. And what a whole file holds besides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import each_family, families, folder, single_file, state_of, stored
from safetensors.torch import load_file, save_file
from torch import Tensor

Cli = Callable[..., object]
State = dict[str, Tensor]
QKV = "double_blocks.0.img_attn.qkv"


def lora(key: str, out: int, width: int) -> State:
    return {f"{key}.lora_up.weight": torch.ones(out, 3), f"{key}.lora_down.weight": torch.ones(3, width)}


def bare(state: State) -> State:
    return {name.removeprefix("transformer."): tensor for name, tensor in state.items()}


def of_every_matrix(family: str) -> State:
    found: State = {}
    for name, tensor in stored(family, state_of(family)).items():
        if tensor.dim() == 2 and name.endswith(".weight"):
            found |= lora(f"diffusion_model.{name.removesuffix('.weight')}", *tensor.shape)
    return found


def assert_refused(base: Path, file: State, code: int, words: str, tmp_path: Path, cli: Cli) -> str:
    save_file(file, tmp_path / "style.safetensors")
    before = {path.name for path in tmp_path.iterdir()}
    done = cli("fuse", base, tmp_path / "style.safetensors", "--lambda", "1", "0", "-o", tmp_path / f"out{base.suffix}")
    done.assert_fault(code, words)
    assert {path.name for path in tmp_path.iterdir()} == before
    return done.err


@pytest.mark.parametrize("family", each_family())
def test_an_adapter_of_every_family_on_another(family: str, tmp_path: Path, cli: Cli) -> None:
    other = "z_image" if family == "flux1" else "flux1"
    base = single_file(tmp_path / "base.safetensors", other, state_of(other))
    err = assert_refused(base, of_every_matrix(family), 3, "style.safetensors: ", tmp_path, cli)
    assert f"made for {families()[family].title}, the base is {families()[other].title}" in err


@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        (lora(f"diffusion_model.{QKV}", 48, 24), 3, "down is 3×24, not 3×16"),
        (lora(f"diffusion_model.{QKV}", 46, 16), 3, "up is 46×3, not 48×3"),
        (lora("diffusion_model.img_in", 16, 8), 3, "down is 3×8, not 3×4"),  # of a model with more inputs
        (lora(f"diffusion_model.{QKV}", 48, 16) | lora(f"lora_unet_{QKV.replace('.', '_')}", 48, 16), 1, "two of its"),
        (lora(f"diffusion_model.{QKV}", 48, 16) | lora("transformer_blocks.0.attn.to_q", 16, 16), 1, "two of its"),
        ({f"diffusion_model.{QKV}.lora_up.weight": torch.ones(48, 3)}, 1, "has up without down"),
        (lora(QKV, 48, 16) | {"diffusion_model.img_in.set_weight": torch.ones(1)}, 3, "set_weight"),
        ({f"diffusion_model.{QKV}.diff": torch.ones(16, 16)}, 3, "diff is 16×16, not 48×16"),
        ({f"diffusion_model.{QKV}.diff_b": torch.ones(16)}, 3, "diff_b is 16, not 48"),
    ],
)
@pytest.mark.parametrize("make", [single_file, folder])
def test_an_adapter(
    make: Callable[..., Path], file: State, code: int, words: str, tmp_path: Path, cli: Cli
) -> None:
    base = make(tmp_path / ("base.safetensors" if make is single_file else "base"), "flux1", state_of("flux1"))
    assert_refused(base, file, code, words, tmp_path, cli)


def test_a_split_base_without_a_part(tmp_path: Path, cli: Cli) -> None:
    weights = {name: tensor for name, tensor in state_of("flux1").items() if not name.endswith("0.attn.to_v.weight")}
    save_file(bare(weights), tmp_path / "base.safetensors")
    words = "lacks 2 tensors, the first of them 'transformer.transformer_blocks.0.attn.to_v.weight'"
    assert_refused(tmp_path / "base.safetensors", lora(QKV, 48, 16), 3, words, tmp_path, cli)


def test_a_part_with_other_rows(tmp_path: Path, cli: Cli) -> None:
    """Thirds that are none."""
    weights = state_of("flux1") | {"transformer.transformer_blocks.0.attn.to_v.weight": torch.ones(8, 16)}
    save_file(bare(weights), tmp_path / "base.safetensors")
    words = "[16, 16], [16, 16], [8, 16] make up no tensor of its own"
    assert_refused(tmp_path / "base.safetensors", lora(f"diffusion_model.{QKV}", 48, 16), 3, words, tmp_path, cli)


def test_a_fused_tensor_that_cannot_be_cut(tmp_path: Path, cli: Cli) -> None:
    single = stored("flux1", state_of("flux1")) | {f"{QKV}.weight": torch.ones(47, 16)}
    save_file(single, tmp_path / "base.safetensors")
    assert_refused(tmp_path / "base.safetensors", lora(QKV, 48, 16), 1, "is not 3 equal parts", tmp_path, cli)


@pytest.mark.parametrize("family", ["flux1", "z_image"])
@pytest.mark.parametrize("second", ["model.diffusion_model.", "transformer."])
def test_a_base_in_two_spellings(family: str, second: str, tmp_path: Path, cli: Cli) -> None:
    single = stored(family, state_of(family))
    other = state_of(family) if second == "transformer." else {f"{second}{name}": single[name] for name in single}
    save_file({name: tensor.clone() for name, tensor in (single | other).items()}, tmp_path / "base.safetensors")
    assert_refused(tmp_path / "base.safetensors", lora(QKV, 48, 16), 1, "two spellings", tmp_path, cli)


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_base_that_was_not_copied_whole(kept: float, tmp_path: Path, cli: Cli) -> None:
    base = single_file(tmp_path / "base.safetensors", "z_image", state_of("z_image"))
    content = base.read_bytes()
    base.write_bytes(content[: int(kept * len(content))])
    assert_refused(base, lora("layers.0.attention.qkv", 48, 16), 1, "base.safetensors", tmp_path, cli)


def test_everything_else_of_a_whole_file_passes_through(tmp_path: Path, cli: Cli) -> None:
    """LTX-2's: its VAEs, vocoder, text projection and connectors, in whatever dtype, also beside one of ours."""
    single = stored("ltx2", state_of("ltx2"))
    beside = {
        "vae.encoder.conv_in.conv.weight": torch.randn(4, 3, 3, 3, 3).bfloat16(),
        "vae.per_channel_statistics.mean-of-means": torch.randn(4),
        "audio_vae.decoder.conv_in.conv.weight": torch.randn(4, 4, 3, 3),
        "vocoder.conv_pre.weight": torch.randn(4, 4, 7).half(),
        "vocoder.steps": torch.tensor(3),
        "text_embedding_projection.aggregate_embed.weight": torch.randn(8, 16),
        "model.diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.weight": torch.randn(8, 8),
        "model.diffusion_model.audio_embeddings_connector.learnable_registers": torch.randn(4, 8).bfloat16(),
    }
    base, target = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    whole = {f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in single.items()} | beside
    save_file(whole, base, {"config": "{}", "model_version": "2.0"})
    file = of_every_matrix("ltx2")
    changed = [f"model.{name.removesuffix('.lora_up.weight')}.weight" for name in file if ".lora_up." in name]
    save_file(file, tmp_path / "style.safetensors")
    for options in ((), ("--dtype", "bf16", "--force")):
        done = cli("fuse", base, tmp_path / "style.safetensors", "--lambda", "0.1", "0", *options, "-o", target)
        assert done.code == 0, done.err
        found = load_file(target)
        assert found.keys() == whole.keys()
        for name, tensor in beside.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name
    assert not [name for name in changed if torch.equal(found[name], whole[name].bfloat16())]
    key = "vocoder.conv_pre"
    assert_refused(base, lora(key, 4, 28), 3, f"no home in base.safetensors: {key}", tmp_path, cli)

