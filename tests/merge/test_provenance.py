"""What an output says about itself."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from fusing import fuse, load, metadata
from pico import pico
from safetensors.torch import load_file, save_file

from lcmmerge.bake.outcome import Settings
from lcmmerge.errors import AlreadyFusedError
from lcmmerge.history import older
from lcmmerge.tensors import open_source


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_modelspec_and_recipe(files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.base(), tmp_path / "fused.safetensors", inputs.style, inputs.lcm, block_weights={"style": "M00=0.5"})
    found = metadata(tmp_path / "fused.safetensors")
    assert found["modelspec.sai_model_spec"] == "1.0.1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1"
    assert found["modelspec.title"] == "sd1-fp16 + sd1-style + sd1-lcm"
    assert found["modelspec.merged_from"] == "sd1-fp16.safetensors, sd1-style.safetensors, sd1-lcm.safetensors"
    recipe = json.loads(found["sd_merge_recipe"])
    assert recipe["base"] == {"name": "sd1-fp16.safetensors", "sha256": sha256(inputs.base())}
    assert recipe["terms"] == [
        {
            "term": "style",
            "lambda": 0.8,
            "name": "sd1-style.safetensors",
            "sha256": sha256(inputs.style),
            "block_weights": {"M00": 0.5},
        },
        {"term": "lcm", "lambda": 1.0, "name": "sd1-lcm.safetensors", "sha256": sha256(inputs.lcm)},
    ]
    assert json.loads(found["sd_merge_models"]).keys() == {
        sha256(path) for path in (inputs.base(), inputs.style, inputs.lcm)
    }
    assert str(tmp_path) not in str(found)
    assert str(inputs.root) not in str(found)


def test_the_hash_is_of_the_tensor_bytes(files, tmp_path):
    report = fuse(files("sd1").base(), tmp_path / "fused.safetensors", lcm=files("sd1").lcm)
    data = (tmp_path / "fused.safetensors").read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    digest = hashlib.sha256(tensors).hexdigest()
    assert metadata(tmp_path / "fused.safetensors")["modelspec.hash_sha256"] == f"0x{digest}"
    assert report.sha256 == {"fused.safetensors": digest}


def test_each_file_of_a_folder_has_its_own_hash(files, tmp_path):
    report = fuse(files("sd1").folder(), tmp_path / "fused", lcm=files("sd1").lcm, shard=400_000)
    assert len(report.sha256) == len(list((tmp_path / "fused").rglob("*.safetensors"))) > 3
    for name, digest in report.sha256.items():
        data = (tmp_path / "fused" / name).read_bytes()
        assert hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest() == digest
        assert metadata(tmp_path / "fused" / name)["modelspec.hash_sha256"] == f"0x{digest}"


def test_the_bases_metadata_stay(files, tmp_path):
    save_file(
        load_file(files("sd1").base()),
        tmp_path / "base.safetensors",
        {"modelspec.license": "somebody's", "note": "ünïcode"},
    )
    fuse(tmp_path / "base.safetensors", tmp_path / "fused.safetensors", lcm=files("sd1").lcm)
    found = metadata(tmp_path / "fused.safetensors")
    assert (found["modelspec.license"], found["note"]) == ("somebody's", "ünïcode")


def test_what_is_said_of_the_base_alone_goes(files, tmp_path):
    alone = ("author", "date", "thumbnail", "hash_md5", "implementation_version", "unet_dtype")
    said = dict.fromkeys([f"modelspec.{key}" for key in alone] + ["sshs_model_hash", "sshs_legacy_hash"], "the base's")
    save_file(load_file(files("sd1").base()), tmp_path / "base.safetensors", said)
    fuse(tmp_path / "base.safetensors", tmp_path / "fused.safetensors", lcm=files("sd1").lcm)
    assert "the base's" not in metadata(tmp_path / "fused.safetensors").values()


@pytest.mark.parametrize(
    ("name", "said", "architecture", "resolution"),
    [
        ("sd1", {}, "stable-diffusion-v1", "512x512"),
        ("sd1-inpainting", {}, "stable-diffusion-v1-inpainting", "512x512"),
        ("sd1", {"modelspec.architecture": "of its own", "modelspec.resolution": "640x640"}, "of its own", "640x640"),
        ("sd2", {}, "stable-diffusion-v2-768-v", "768x768"),
        ("sd2", {"modelspec.architecture": "stable-diffusion-v2-512"}, "stable-diffusion-v2-512", "512x512"),
        ("sd2", {"modelspec.prediction_type": "epsilon"}, "stable-diffusion-v2-512", "512x512"),
        ("sdxl", {}, "stable-diffusion-xl-v1-base", "1024x1024"),
    ],
)
def test_architecture_and_resolution(name, said, architecture, resolution, files, tmp_path):
    save_file(load_file(files(name).base()), tmp_path / "base.safetensors", said)
    fuse(tmp_path / "base.safetensors", tmp_path / "fused.safetensors", lcm=files(name.partition("-")[0]).lcm)
    found = metadata(tmp_path / "fused.safetensors")
    assert (found["modelspec.architecture"], found["modelspec.resolution"]) == (architecture, resolution)


def test_a_folders_scheduler_tells_an_epsilon_model(files, tmp_path):
    folder = Path(shutil.copytree(files("sd2").folder(), tmp_path / "base"))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "epsilon"}))
    fuse(folder, tmp_path / "fused", lcm=files("sd2").lcm)
    unet = tmp_path / "fused" / "unet" / "diffusion_pytorch_model.safetensors"
    assert metadata(unet)["modelspec.architecture"] == "stable-diffusion-v2-512"


def test_the_words_that_prompts_need(files, tmp_path):
    for name in ("style", "detail", "idle"):
        said = {"modelspec.trigger_phrase": f"in the {name}'s manner"}
        save_file(load_file(files("sd1").style), tmp_path / f"{name}.safetensors", said)
    style, adapters = tmp_path / "style.safetensors", ((tmp_path / "detail.safetensors", 0.5),)
    adapters += ((tmp_path / "idle.safetensors", 0.0),)
    fuse(files("sd1").base(), tmp_path / "fused.safetensors", style, adapters=adapters, strengths=(1.0, 0.0))
    said = metadata(tmp_path / "fused.safetensors")["modelspec.trigger_phrase"]
    assert said == "in the style's manner, in the detail's manner"


def test_seed_and_dtype_are_recorded(files, tmp_path):
    fuse(files("sd1").base(), tmp_path / "fused.safetensors", lcm=files("sd1").lcm, dtype="bf16", rounding_seed=7)
    recipe = json.loads(metadata(tmp_path / "fused.safetensors")["sd_merge_recipe"])
    assert (recipe["rounding_seed"], recipe["dtype"]) == (7, "BF16")


def test_the_base_of_a_tuned_style_is_recorded(files, tmp_path):
    style, start = pico("sd1", seed=1).single_file(tmp_path / "tuned.safetensors"), files("sd1").folder()
    fuse(files("sd1").base(), tmp_path / "fused.safetensors", style, strengths=(0.5, 0), tuned_from=start)
    (term,) = json.loads(metadata(tmp_path / "fused.safetensors")["sd_merge_recipe"])["terms"]
    assert term["tuned_from"]["name"] == start.name
    assert re.fullmatch("[0-9a-f]{64}", term["tuned_from"]["sha256"])


# Fused already


@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_an_adapter_is_fused_only_once(layout, files, tmp_path):
    inputs = files("sd1")
    base, once, twice = (
        (inputs.base(), tmp_path / "once.safetensors", tmp_path / "twice.safetensors")
        if layout == "single-file"
        else (inputs.folder(), tmp_path / "once", tmp_path / "twice")
    )
    fuse(base, once, inputs.style, inputs.lcm)
    for again in ({"style": inputs.style}, {"lcm": inputs.lcm}, {"adapters": ((inputs.style, 0.1),)}):
        with pytest.raises(AlreadyFusedError) as caught:
            fuse(once, twice, **again)
        assert caught.value.exit_code == 3
        assert "--force" in caught.value.hint
        assert not twice.exists()
    fuse(once, twice, lcm=inputs.lcm, force=True)
    assert twice.exists()


def test_what_went_in_before_is_remembered(files, tmp_path):
    """Three merges, one after another: the last still knows the first one's style."""
    inputs = files("sd1")
    other = pico("sd1", seed=1).single_file(tmp_path / "other.safetensors")
    fuse(inputs.base(), tmp_path / "one.safetensors", inputs.style)
    fuse(tmp_path / "one.safetensors", tmp_path / "two.safetensors", lcm=inputs.lcm)
    fuse(tmp_path / "two.safetensors", tmp_path / "three.safetensors", other, strengths=(0.1, 0))
    with pytest.raises(AlreadyFusedError, match=r"sd1-style\.safetensors"):
        fuse(tmp_path / "three.safetensors", tmp_path / "four.safetensors", inputs.style)


def test_the_recipe_of_a_merged_base_stays(files, tmp_path):
    """Where web UIs have it: with the model, in sd_merge_models; also where nobody hashed the base."""
    inputs, one = files("sd1"), tmp_path / "one.safetensors"
    fuse(inputs.base(), one, inputs.style, strengths=(0.7345, 0))
    first = json.loads(metadata(one)["sd_merge_recipe"])
    for hashed in (True, False):
        two, three = tmp_path / f"two-{hashed}.safetensors", tmp_path / f"three-{hashed}.safetensors"
        fuse(one, two, lcm=inputs.lcm, settings=Settings(hash_base=hashed))
        fuse(two, three, inputs.style, strengths=(0.1, 0), force=True)
        second = json.loads(metadata(two)["sd_merge_recipe"])
        models = json.loads(metadata(three)["sd_merge_models"])
        assert models[sha256(one) if hashed else one.name] == {"name": one.name, "sd_merge_recipe": first}
        assert older(open_source(three)) == {one.name: first, two.name: second}


def test_a_term_of_lambda_zero_was_not_fused(files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.base(), tmp_path / "styled.safetensors", inputs.style, inputs.lcm, (0.8, 0))
    fuse(tmp_path / "styled.safetensors", tmp_path / "fused.safetensors", inputs.style, inputs.lcm, (0, 1))
    fuse(inputs.base(), tmp_path / "lcm.safetensors", inputs.style, inputs.lcm, (0, 1))
    with pytest.raises(AlreadyFusedError):
        fuse(tmp_path / "fused.safetensors", tmp_path / "again.safetensors", lcm=inputs.lcm)
    assert load(tmp_path / "fused.safetensors").keys() == load(tmp_path / "lcm.safetensors").keys()


@pytest.mark.parametrize("recorded", ["", "not json", "[]", "17", '{"unknown": null}'])
def test_metadata_of_other_programs_do_no_harm(recorded, files, tmp_path):
    save_file(load_file(files("sd1").base()), tmp_path / "base.safetensors", {"sd_merge_models": recorded})
    fuse(tmp_path / "base.safetensors", tmp_path / "fused.safetensors", lcm=files("sd1").lcm)
    assert len(json.loads(metadata(tmp_path / "fused.safetensors")["sd_merge_models"])) >= 2
