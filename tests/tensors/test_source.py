"""Layouts as diffusers, transformers and people leave them on disk."""

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.tensors import open_source


def weights(path: Path, value: float = 0.0, name: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.tensor([value])}
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)
    return path


def index(path: Path, weight_map: object) -> Path:
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def value(source_path: Path, name: str = "w", variant: str | None = None) -> float:
    return open_source(source_path, variant)[name].scalar()


def error(kind: type[FormatError | NotFoundError], path: Path, variant: str | None = None) -> str:
    with pytest.raises(kind) as caught:
        open_source(path, variant)
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return f"{caught.value.message} ({caught.value.hint})"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    first = weights(tmp_path / "model-00001-of-00002.safetensors", 1.0, "a")
    second = weights(tmp_path / "model-00002-of-00002.safetensors", 2.0, "b")
    return index(tmp_path / "model.safetensors.index.json", {"b": second.name, "a": first.name})


def test_a_single_file(tmp_path: Path) -> None:
    path = weights(tmp_path / "v1-5-pruned.safetensors", 3.0)
    source = open_source(path)
    assert (source.layout, source.files, source.metadata) == ("single-file", (path,), {"format": "pt"})
    assert (list(source.tensors), source.nbytes) == (["w"], 4)
    assert torch.equal(source["w"].read(), torch.tensor([3.0]))


def test_shards_by_index_by_folder_and_without_index(shards: Path) -> None:
    for path in (shards, shards.parent):
        source = open_source(path)
        assert source.layout == "single-file"
        assert [(info.name, info.path.name[6:11]) for info in source] == [("a", "00001"), ("b", "00002")]
        assert source["b"].scalar() == 2.0
    shards.unlink()
    assert list(open_source(shards.parent).tensors) == ["a", "b"]


@pytest.mark.parametrize("pattern", ["model{suffix}.safetensors", "pytorch_model{suffix}.bin"])
def test_shards_that_huggingface_hub_writes(tmp_path: Path, pattern: str) -> None:
    values = {f"layer.{i}": float(i) for i in range(10)}
    state = {name: torch.full((64,), value) for name, value in values.items()}
    safe = "safetensors" in pattern
    save_torch_state_dict(state, tmp_path, filename_pattern=pattern, max_shard_size=600, safe_serialization=safe)
    assert len(list(tmp_path.glob("*-of-*"))) > 2
    assert {info.name: info.read()[0].item() for info in open_source(tmp_path)} == values


def test_a_missing_shard(shards: Path) -> None:
    (shards.parent / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: this shard is missing" in error(NotFoundError, shards)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_points_outside_its_folder(shards: Path, name: str) -> None:
    weights(shards.parent.parent / "outside.safetensors")
    assert "lies outside" in error(FormatError, index(shards, {"a": name}))


@pytest.mark.parametrize("name", ["..", ""])
def test_an_index_that_names_a_folder(shards: Path, name: str) -> None:
    assert "missing" in error(NotFoundError, index(shards, {"a": name}))


@pytest.mark.parametrize("weight_map", [{}, [], {"a": 1}, {"a": ["x"]}, None])
def test_an_index_that_is_none(shards: Path, weight_map: object) -> None:
    assert "not an index" in error(FormatError, index(shards, weight_map))
    shards.write_bytes(b"[\xff")
    assert "not a JSON object" in error(FormatError, shards)


def test_a_tensor_in_two_shards(shards: Path) -> None:
    weights(shards.parent / "model-00002-of-00002.safetensors", 2.0, "a")
    assert "'a' is also in" in error(FormatError, shards)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A diffusers folder, with what else lies in the one of SDXL."""
    parts = {"unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"], "scheduler": ["diffusers", "Euler"]}
    model_index = {"_class_name": "StableDiffusionPipeline", "safety_checker": ["x", "y"], **parts}
    (tmp_path / "model_index.json").write_text(json.dumps(model_index))
    weights(tmp_path / "unet/diffusion_pytorch_model.safetensors", 1.0)
    weights(tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors", 16.0)
    weights(tmp_path / "unet/diffusion_pytorch_model.non_ema.safetensors", 9.0)
    weights(tmp_path / "unet/diffusion_pytorch_model.bin", -1.0)
    weights(tmp_path / "vae/diffusion_pytorch_model.fp16.safetensors", 2.0)
    weights(tmp_path / "vae_1_0/diffusion_pytorch_model.safetensors", 3.0)
    weights(tmp_path / "v1-5-pruned.safetensors", 4.0)
    (tmp_path / "unet/config.json").write_text("{}")
    (tmp_path / "scheduler").mkdir()
    return tmp_path


def test_a_diffusers_folder(pipeline: Path) -> None:
    source = open_source(pipeline)
    assert source.layout == "diffusers"
    assert {info.name: info.scalar() for info in source} == {"unet.w": 1.0, "vae.w": 2.0}
    assert [file.parent.name for file in source.files] == ["unet", "vae"]


def test_a_variant_where_a_component_has_it(pipeline: Path) -> None:
    assert (value(pipeline, "unet.w", "fp16"), value(pipeline, "vae.w", "fp16")) == (16.0, 2.0)
    assert (value(pipeline, "unet.w", "non_ema"), value(pipeline, "vae.w", "non_ema")) == (9.0, 2.0)
    assert "has the variant 'int8'" in error(NotFoundError, pipeline, "int8")


def test_two_variants_without_a_plain_one_are_listed(pipeline: Path) -> None:
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        (pipeline / "unet" / name).unlink()
    message = error(NotFoundError, pipeline)
    assert "fp16, non_ema" in message
    assert "--variant" in message


def test_a_safety_checker_is_a_component(pipeline: Path) -> None:
    weights(pipeline / "safety_checker/model.safetensors", 5.0)
    assert list(open_source(pipeline).tensors) == ["safety_checker.w", "unet.w", "vae.w"]


def test_safetensors_before_pickles_and_pickles_alone(pipeline: Path) -> None:
    for file in (pipeline / "unet").glob("*.safetensors"):
        file.unlink()
    (pipeline / "unet/openvino_model.bin").write_bytes(b"weights of another program")
    (pipeline / "unet/openvino_model.xml").write_text("<net/>")
    assert value(pipeline, "unet.w") == -1.0


def test_a_folder_without_model_index_is_known_by_its_unet(pipeline: Path) -> None:
    (pipeline / "model_index.json").unlink()
    assert {info.name: info.scalar() for info in open_source(pipeline)} == {
        "unet.w": 1.0,
        "vae.w": 2.0,
        "vae_1_0.w": 3.0,
    }


@pytest.mark.parametrize(
    ("pattern", "index_name"),
    [
        ("model.fp16-{}.safetensors", "model.safetensors.index.fp16.json"),
        ("model-{}.fp16.safetensors", "model.safetensors.index.fp16.json"),
        ("model.fp16-{}.safetensors", None),
        ("model.fp16-{}.bin", "model.bin.index.fp16.json"),
    ],
)
def test_shards_of_a_variant(tmp_path: Path, pattern: str, index_name: str | None) -> None:
    names = {f"w{number}": pattern.format(f"0000{number}-of-00002") for number in (1, 2)}
    files = [weights(tmp_path / file, 16.0, name) for name, file in names.items()]
    if index_name:
        assert list(open_source(index(tmp_path / index_name, names)).tensors) == ["w1", "w2"]
    assert list(open_source(tmp_path).tensors) == ["w1", "w2"]
    weights(tmp_path / f"model{files[0].suffix}")
    assert list(open_source(tmp_path).tensors) == ["w"]
    assert open_source(tmp_path, "fp16").files == tuple(files)


def test_folders_without_weights_or_with_too_many(tmp_path: Path) -> None:
    assert "no weights" in error(NotFoundError, tmp_path)
    weights(tmp_path / "._lora.safetensors")  # left by macOS
    assert "no weights" in error(NotFoundError, tmp_path)
    weights(tmp_path / "first.safetensors")
    assert list(open_source(tmp_path).tensors) == ["w"]
    weights(tmp_path / "second.safetensors")
    assert "first.safetensors, second.safetensors" in error(NotFoundError, tmp_path)


@pytest.mark.parametrize("name", ["none.safetensors", "none.ckpt", "none.safetensors.index.json", "none"])
def test_a_path_that_is_not_there(tmp_path: Path, name: str) -> None:
    assert name in error(NotFoundError, tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_an_unreadable_file(tmp_path: Path, name: str) -> None:
    path = weights(tmp_path / name)
    path.chmod(0)
    assert "cannot be read" in error(NotFoundError, path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = weights(tmp_path / "x.safetensors")
    source = open_source(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(FormatError, match="ended inside 'w'"):
        source["w"].read()
