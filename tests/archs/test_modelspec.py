"""What files say of the model that they hold. Oracle: ids as SwarmUI, sd-scripts and musubi-tuner have them."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import families, folder, single_file, state_of

from lcmmerge.archs import identify, modelspec
from lcmmerge.tensors import open_source

PUBLISHED = {
    "auraflow": ("auraflow-v1", ""),
    "chroma": ("chroma", "chroma"),
    "cosmos2": ("nvidia-cosmos-predict2-t2i-2b", "anima"),
    "flux1": ("flux-1-dev", "flux1"),
    "flux2": ("Flux.2-dev", "flux_2_dev"),
    "hidream": ("hidream-i1", ""),
    "hunyuan_video": ("hunyuan-video", "hunyuan_video"),
    "hunyuan_video15": ("hunyuan-video-1_5", "hunyuan_video_1_5"),
    "krea2": ("Krea-2", "krea2"),
    "ltx2": ("lightricks-ltx-video-2", ""),
    "lumina2": ("lumina-2", "lumina2"),
    "qwen_image": ("qwen-image", "qwen_image"),
    "sana": ("nvidia-sana-1600", ""),
    "sd3": ("stable-diffusion-v3.5-large", ""),
    "wan": ("wan2.1", "wan"),
    "z_image": ("z-image", "z_image"),
}
OURS = ("ernie_image", "flux3", "ideogram4", "minimax_h3", "qwen_image21")


@pytest.mark.parametrize("name", families())
def test_ids(name: str) -> None:
    variant = modelspec.usual(families()[name])
    known = PUBLISHED.get(families()[name].name)
    assert (name in OURS and not variant.version) or (variant.modelspec, variant.version) == known
    said = modelspec.network(variant, {4.0: 2.0}, whole=False)
    assert said.get("ss_base_model_version", "") == variant.version


@pytest.mark.parametrize("name", families())
def test_implementation(name: str, tmp_path: Path) -> None:
    """Whose names the tensors have, wherever they are."""
    arch, weights = families()[name], state_of(name)
    diffusers = "https://github.com/huggingface/diffusers"
    single = identify(open_source(single_file(tmp_path / "base.safetensors", name, weights)))
    whole = identify(open_source(folder(tmp_path / "base", name, weights)))
    alone = identify(open_source(tmp_path / "base" / "transformer"))
    said = [modelspec.spec_of(model, model.layout, "title", "0") for model in (single, whole, alone)]
    told = [each[f"{modelspec.KEYS}implementation"] for each in said]
    same = name in ("qwen_image", "hidream", "ernie_image")  # in every layout
    assert told == [diffusers if same else arch.implementation, diffusers, diffusers]
