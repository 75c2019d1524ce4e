"""Every layout in and out, and that the pipelines load what comes out."""

import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from fusing import assert_same, canonical, fuse, load, metadata, raw
from pico import PIPELINES, canonical_state, pico
from safetensors.torch import load_file, save_file
from tiers import of_each
from transformers import CLIPTextModel

from lcmmerge.bake.verify import verify
from lcmmerge.errors import IncompatibleError, NotFoundError, OutputError, ShapeMismatchError, VerificationError
from lcmmerge.tensors import open_source

ARCHITECTURES = ("sd1", "sd2", "sdxl", "ssd1b")
GIB = 1 << 30


def weights(pipeline, arch):
    """Canonical name → tensor of a loaded pipeline."""
    return canonical_state({name: getattr(pipeline, name) for name in arch.components})


@pytest.mark.parametrize("name", ["sdxl", *of_each(["sd1", "sd2", "ssd1b", "sd1-inpainting", "sdxl_refiner"])])
def test_single_file_to_diffusers_and_back_is_the_identity(name, files, tmp_path):
    inputs = files(name)
    lcm = {"lcm": inputs.lcm, "strengths": (0, 0)}
    fuse(inputs.base(), tmp_path / "folder", **lcm, layout="diffusers", config_from=inputs.folder())
    fuse(tmp_path / "folder", tmp_path / "back.safetensors", **lcm, layout="single-file")
    assert_same(load(tmp_path / "back.safetensors"), load(inputs.base()))
    assert_same(canonical(tmp_path / "folder"), canonical(inputs.folder()))


@pytest.mark.parametrize("name", of_each(ARCHITECTURES))
def test_what_a_fuse_writes_is_loaded_by_diffusers(name, files, tmp_path):
    """Both layouts from both layouts: the same weights, and both ways of loading find every one of them."""
    inputs, arch = files(name), pico(name).arch
    fuse(inputs.base(), tmp_path / "folder", inputs.style, inputs.lcm, layout="diffusers", config_from=inputs.folder())
    fuse(inputs.folder(), tmp_path / "file.safetensors", inputs.style, inputs.lcm, layout="single-file")
    folder = DiffusionPipeline.from_pretrained(tmp_path / "folder", torch_dtype=torch.float16, local_files_only=True)
    file = PIPELINES[name].from_single_file(
        str(tmp_path / "file.safetensors"),
        config=str(inputs.folder()),
        torch_dtype=torch.float16,
        local_files_only=True,
    )
    expected = canonical(tmp_path / "folder")
    assert type(folder) is PIPELINES[name]
    assert_same(weights(folder, arch), expected)
    assert_same(weights(file, arch), expected)
    assert_same(canonical(tmp_path / "file.safetensors"), expected)


@pytest.mark.parametrize(("dtype", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_dtype(dtype, stored, files, tmp_path):
    inputs = files("sd1")
    base = pico("sd1").single_file(tmp_path / "base.safetensors", extras=True)
    fuse(base, tmp_path / "fused.safetensors", inputs.style, inputs.lcm, dtype=dtype)
    found = load(tmp_path / "fused.safetensors")
    kept = {"alphas_cumprod", "cond_stage_model.transformer.text_model.embeddings.position_ids"}
    assert found.keys() == load(base).keys()
    assert {name for name, tensor in found.items() if tensor.dtype != stored} == kept


def test_shards_of_a_single_file(files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.base(), tmp_path / "whole.safetensors", inputs.style)
    fuse(inputs.base(), tmp_path / "cut.safetensors", inputs.style, shard=500_000)
    names = {path.name for path in tmp_path.iterdir()} - {"whole.safetensors"}
    assert names == {"cut.safetensors.index.json", *(f"cut-{number:05}-of-00003.safetensors" for number in (1, 2, 3))}
    index = json.loads((tmp_path / "cut.safetensors.index.json").read_text())
    whole = load(tmp_path / "whole.safetensors")
    shards = {file: load_file(tmp_path / file) for file in set(index["weight_map"].values())}
    assert_same({name: shards[file][name] for name, file in index["weight_map"].items()}, whole)
    assert sum(map(len, shards.values())) == len(whole)
    assert all(sum(tensor.nbytes for tensor in shard.values()) <= 500_000 for shard in shards.values())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())

    # What was cut is a base, too; by its index, and put together again.
    fuse(
        tmp_path / "cut.safetensors.index.json",
        tmp_path / "joined.safetensors",
        lcm=inputs.lcm,
        strengths=(0, 0),
        shard=GIB,
    )
    assert_same(load(tmp_path / "joined.safetensors"), whole)


def test_shards_of_a_folder_are_loaded(files, tmp_path):
    inputs, arch = files("sd2"), pico("sd2").arch
    fuse(inputs.folder(), tmp_path / "cut", inputs.style, inputs.lcm, shard=300_000)
    fuse(inputs.folder(), tmp_path / "whole", inputs.style, inputs.lcm)
    assert (tmp_path / "cut/unet/diffusion_pytorch_model.safetensors.index.json").exists()
    assert not (tmp_path / "cut/unet/diffusion_pytorch_model.safetensors").exists()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "cut", torch_dtype=torch.float16, local_files_only=True)
    assert_same(weights(pipeline, arch), canonical(tmp_path / "whole"))
    assert_same(load(tmp_path / "cut"), load(tmp_path / "whole"))


def test_a_text_encoder_in_shards_is_loaded(files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.folder(), tmp_path / "cut", inputs.style, inputs.lcm, shard=20_000)
    encoder = CLIPTextModel.from_pretrained(tmp_path / "cut/text_encoder", torch_dtype=torch.float16)
    expected = canonical(tmp_path / "cut")
    assert_same(
        canonical_state({"text_encoder": encoder}),
        {name: tensor for name, tensor in expected.items() if name.startswith("text_encoder.")},
    )


def test_the_layout_stays_the_inputs(files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.folder(), tmp_path / "fused", inputs.style, inputs.lcm)
    before, found = canonical(inputs.folder()), load(tmp_path / "fused")
    assert found.keys() == before.keys()
    small = [file for file in inputs.folder().rglob("*") if file.is_file() and file.suffix != ".safetensors"]
    assert len(small) >= 7
    for file in small:
        assert (tmp_path / "fused" / file.relative_to(inputs.folder())).read_bytes() == file.read_bytes()


def test_ckpt(files, tmp_path):
    inputs = files("sd1")
    torch.save({"state_dict": load(inputs.base()), "global_step": 470_000}, tmp_path / "base.ckpt")
    fuse(tmp_path / "base.ckpt", tmp_path / "fused.safetensors", inputs.style, inputs.lcm)
    fuse(inputs.base(), tmp_path / "expected.safetensors", inputs.style, inputs.lcm)
    assert_same(load(tmp_path / "fused.safetensors"), load(tmp_path / "expected.safetensors"))


def test_a_unet_alone(files, tmp_path):
    """A file of ComfyUI's ``diffusion_models``, or a component's folder: only its own names come back."""
    inputs = files("sdxl")
    alone = inputs.folder() / "unet"
    fuse(alone, tmp_path / "unet.safetensors", lcm=inputs.lcm)
    fuse(inputs.folder(), tmp_path / "whole", lcm=inputs.lcm)
    found = load(tmp_path / "unet.safetensors")
    assert_same({f"unet.{name}": tensor for name, tensor in found.items()}, only_unet(load(tmp_path / "whole")))
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(alone))
    unet.load_state_dict(found)
    with pytest.raises(IncompatibleError, match="U-Net alone"):
        fuse(alone, tmp_path / "refused", lcm=inputs.lcm, layout="diffusers", config_from=inputs.folder())


@pytest.mark.parametrize(
    ("begins", "said"),
    [
        ("first_stage_model.", "has no vae, and"),
        ("cond_stage_model.", "has no text_encoder, and"),
        ("cond_stage_model.transformer.text_model.encoder.layers.11.",
         "lacks text_encoder.text_model.encoder.layers.11."),
        ("first_stage_model.decoder.conv_out.bias",
         "lacks vae.decoder.conv_out.bias, and makes no whole diffusers model"),
    ],
)
def test_what_is_not_whole_is_not_converted(begins, said, files, tmp_path):
    """It would be found out by who loads it. In its own layout it is merged as it is."""
    inputs = files("sd1")
    stored = load(inputs.base())
    pruned = {name: tensor for name, tensor in stored.items() if not name.startswith(begins)}
    save_file(pruned, tmp_path / "base.safetensors")
    with pytest.raises(IncompatibleError, match=said) as caught:
        fuse(
            tmp_path / "base.safetensors", tmp_path / "out", lcm=inputs.lcm, layout="diffusers",
            config_from=inputs.folder(),
        )  # fmt: skip
    assert "omit --layout" in caught.value.hint
    assert not (tmp_path / "out").exists()
    fuse(tmp_path / "base.safetensors", tmp_path / "same.safetensors", lcm=inputs.lcm)
    assert load(tmp_path / "same.safetensors").keys() == pruned.keys()


def test_a_folder_without_a_part_makes_no_single_file(files, tmp_path):
    inputs = files("sdxl")
    shutil.copytree(inputs.folder(), tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "text_encoder_2")
    with pytest.raises(IncompatibleError, match="has no text_encoder_2, and makes no whole single-file model"):
        fuse(tmp_path / "base", tmp_path / "out.safetensors", lcm=inputs.lcm, layout="single-file")


def only_unet(tensors):
    return {name: tensor for name, tensor in tensors.items() if name.startswith("unet.")}


def test_inpainting_takes_the_loras_of_its_architecture(files, tmp_path):
    inputs = files("sd1")
    fuse(files("sd1-inpainting").base(), tmp_path / "fused.safetensors", inputs.style, inputs.lcm)
    found, before = canonical(tmp_path / "fused.safetensors"), canonical(files("sd1-inpainting").base())
    assert found["unet.conv_in.weight"].shape[1] == 9
    assert sum(not torch.equal(found[name], before[name]) for name in found) == 350


def test_variant(files, tmp_path):
    """fp16 beside the plain files; the output's files are plain."""
    folder = tmp_path / "both"
    shutil.copytree(files("sd1").folder("fp32"), folder)
    for file in files("sd1").folder("fp16").rglob("*.safetensors"):
        shutil.copy(file, folder / file.parent.name / file.name.replace(".safetensors", ".fp16.safetensors"))
    lcm = files("sd1").lcm
    fuse(folder, tmp_path / "half", lcm=lcm, strengths=(0, 0), variant="fp16")
    fuse(folder, tmp_path / "full", lcm=lcm, strengths=(0, 0))
    assert_same(load(tmp_path / "half"), canonical(files("sd1").folder("fp16")))
    assert_same(load(tmp_path / "full"), canonical(files("sd1").folder("fp32")))
    DiffusionPipeline.from_pretrained(tmp_path / "half", local_files_only=True)
    with pytest.raises(NotFoundError, match="bf16"):
        fuse(folder, tmp_path / "none", lcm=lcm, variant="bf16")


def test_a_safety_checker_without_weights_is_struck(files, tmp_path):
    """A single file holds none, and its configs may name one: diffusers would not load the folder."""
    configs = tmp_path / "configs"
    shutil.copytree(files("sd1").folder(), configs, ignore=shutil.ignore_patterns("*.safetensors"))
    index = json.loads((configs / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    (configs / "model_index.json").write_text(json.dumps(index))
    for name in ("safety_checker", "feature_extractor"):
        (configs / name).mkdir()
        (configs / name / "config.json").write_text("{}")
    fuse(files("sd1").base(), tmp_path / "fused", lcm=files("sd1").lcm, layout="diffusers", config_from=configs)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "fused", local_files_only=True)
    assert pipeline.safety_checker is None
    assert pipeline.config.requires_safety_checker is False
    assert not (tmp_path / "fused/safety_checker").exists()


def test_only_the_pipeline_s_own_files_come_along(files, tmp_path):
    """Of an export there would be graphs' folders and a manifest of other weights."""
    base = shutil.copytree(files("sd1").folder(), tmp_path / "base")
    expected = {path.relative_to(base) for path in base.rglob("*")}
    expected |= {Path("tokenizer", name) for name in ("vocab.json", "merges.txt")}
    (base / "lcmmerge.json").write_text("{}")
    for name in ("vae_decoder", "unet_quantised"):
        (base / name).mkdir()
        (base / name / "config.json").write_text("{}")
    fuse(base, tmp_path / "fused", lcm=files("sd1").lcm)
    assert {path.relative_to(tmp_path / "fused") for path in (tmp_path / "fused").rglob("*")} == expected


@pytest.mark.parametrize("drop", [False, True])
def test_ema_is_copied_or_dropped(drop, files, tmp_path):
    base = pico("sd1").single_file(tmp_path / "base.safetensors", extras=True)
    report = fuse(base, tmp_path / "fused.safetensors", lcm=files("sd1").lcm, drop_ema=drop)
    found, before = load(tmp_path / "fused.safetensors"), load(base)
    ema = {name for name in before if name.startswith("model_ema.")}
    assert len(ema) == 687
    assert found.keys() == (before.keys() - ema if drop else before.keys())
    assert set(report.dropped) == (ema if drop else set())
    others = [name for name in found if name in ema or not name.startswith("model.")]
    assert all(torch.equal(raw(found[name]), raw(before[name])) for name in others)


def test_leftovers_do_not_fit_in_the_other_layout_and_are_listed(files, tmp_path):
    base = pico("sd2").single_file(tmp_path / "base.safetensors", extras=True)
    options = {"layout": "diffusers", "config_from": files("sd2").folder()}
    report = fuse(base, tmp_path / "fused", lcm=files("sd2").lcm, strengths=(0, 0), **options)
    assert set(report.dropped) == load(base).keys() - load(files("sd2").base()).keys()
    assert_same(canonical(tmp_path / "fused"), canonical(files("sd2").folder()))


@pytest.mark.parametrize(("model", "configs"), [
    (model, configs) if "sd1" in (model, configs) else pytest.param(model, configs, marks=pytest.mark.e2e)
    for model, configs in permutations([*ARCHITECTURES, "sd1-inpainting", "sdxl_refiner"], 2)
])  # fmt: skip
def test_configs_of_another_model_are_refused(model, configs, files, tmp_path):
    base, options = files(model).base(), {"layout": "diffusers", "config_from": files(configs).folder()}
    with pytest.raises((ShapeMismatchError, NotFoundError)) as caught:
        fuse(base, tmp_path / "fused", lcm=files(model).lcm, **options)
    assert "--config-from" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_offline_without_configs_is_said_before_anything_is_read(files, process, tmp_path):
    """With a base whose data are damaged: the headers alone were read."""
    base = files("sd1").base()
    done = process(
        "fuse", base, "--lcm", files("sd1").lcm, "--layout", "diffusers", "-o", tmp_path / "fused",
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.code == 1
    error, hint = done.err.splitlines()
    assert error.startswith("Error: configs 'hf://stable-diffusion-v1-5/stable-diffusion-v1-5'")
    assert "HF_HUB_OFFLINE" in error
    assert hint.startswith("Hint: ")
    assert not (tmp_path / "fused").exists()


def test_a_pickle_is_not_written(files, tmp_path):
    with pytest.raises(OutputError, match=r"\.ckpt"):
        fuse(files("sd1").base(), tmp_path / "fused.ckpt", lcm=files("sd1").lcm)


def test_configs_that_lack_what_they_promise(files, tmp_path):
    """A folder that nobody could load is not written."""
    configs = tmp_path / "configs"
    shutil.copytree(files("sd1").folder(), configs)
    (configs / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(NotFoundError, match=r"has no scheduler/scheduler_config\.json"):
        fuse(configs, tmp_path / "out", files("sd1").style)
    assert not (tmp_path / "out").exists()


def scheduler_of(folder):
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


MARKS = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


def test_what_a_model_predicts_goes_into_both_layouts(files, tmp_path):
    """Marks of single files, schedulers of folders; with an accelerator's scheduler, too."""
    inputs = files("sdxl")
    marked = tmp_path / "marked.safetensors"
    save_file(load(inputs.base()) | MARKS, marked)
    for name, strengths in (("folder", (0, 0)), ("fast", (0, 1))):
        lcm = {"lcm": inputs.lcm, "strengths": strengths, "accelerator": "lcm"}
        fuse(marked, tmp_path / name, **lcm, layout="diffusers", config_from=inputs.folder())
        config = scheduler_of(tmp_path / name)
        assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("v_prediction", True)
        assert (config["_class_name"] == "LCMScheduler") == (name == "fast")
    assert scheduler_of(tmp_path / "folder")["timestep_spacing"] == "trailing"
    idle = {"lcm": inputs.lcm, "strengths": (0, 0)}
    report = fuse(tmp_path / "folder", tmp_path / "back.safetensors", **idle, layout="single-file")
    assert_same(load(tmp_path / "back.safetensors"), load(marked))
    assert not report.dropped
    fuse(marked, tmp_path / "same.safetensors", **idle)
    assert_same(load(tmp_path / "same.safetensors"), load(marked))


@pytest.mark.parametrize(
    "changed", [{"prediction_type": "sample"}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}], ids=str
)
def test_what_no_mark_says_goes_into_no_single_file(changed, files, tmp_path):
    inputs, folder = files("sd1"), tmp_path / "folder"
    shutil.copytree(inputs.folder(), folder)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler_of(folder) | changed))
    with pytest.raises(IncompatibleError, match="which a single file made of it would not say"):
        fuse(folder, tmp_path / "out.safetensors", inputs.style, layout="single-file")


def test_a_merge_without_the_marks_of_today_is_not_called_changed(files, tmp_path):
    """As merged before marks were written; or its folder's scheduler, which no hash holds, says something else now."""
    inputs, folder, merged = files("sd1"), tmp_path / "folder", tmp_path / "merged.safetensors"
    shutil.copytree(inputs.folder(), folder)
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps(scheduler_of(folder) | {"prediction_type": "v_prediction"})
    )
    fuse(folder, merged, inputs.style, layout="single-file")
    old, tensors = tmp_path / "old.safetensors", load(merged)
    del tensors["v_pred"]
    save_file(tensors, old, metadata(merged))
    places = [str(tmp_path), str(inputs.root)]
    verify(open_source(merged), places).check()
    with pytest.raises(VerificationError, match=r"weights are what .* gives, but .*: v_pred is missing") as caught:
        verify(open_source(old), places).check()
    assert "merged before they were written" in caught.value.hint


def test_what_a_person_says_goes_before_the_marks(files, tmp_path):
    inputs = files("sdxl")
    marked = tmp_path / "marked.safetensors"
    save_file(load(inputs.base()) | MARKS, marked)
    idle = {"lcm": inputs.lcm, "strengths": (0, 0)}
    fuse(marked, tmp_path / "epsilon.safetensors", **idle, prediction="epsilon")
    assert load(tmp_path / "epsilon.safetensors").keys() == load(inputs.base()).keys()
    fuse(inputs.base(), tmp_path / "v.safetensors", **idle, prediction="v-zero-snr")
    assert_same(load(tmp_path / "v.safetensors"), load(marked))
    assert not verify(open_source(tmp_path / "v.safetensors"), [str(inputs.root)]).different


def test_sd2_of_either_kind_comes_back_as_it_was(files, tmp_path):
    """No mark says ε: the metadata do."""
    inputs = files("sd2")
    idle = {"lcm": inputs.lcm, "strengths": (0, 0)}
    to_folder = {"layout": "diffusers", "config_from": inputs.folder()}
    fuse(inputs.base(), tmp_path / "epsilon", **idle, **to_folder, prediction="epsilon")
    assert scheduler_of(tmp_path / "epsilon")["prediction_type"] == "epsilon"
    fuse(tmp_path / "epsilon", tmp_path / "file.safetensors", **idle, layout="single-file")
    assert load(tmp_path / "file.safetensors").keys() == load(inputs.base()).keys()
    fuse(tmp_path / "file.safetensors", tmp_path / "again", **idle, **to_folder)
    assert scheduler_of(tmp_path / "again")["prediction_type"] == "epsilon"


def test_edm_needs_its_own_scheduler(files, tmp_path):
    inputs = files("sdxl")
    save_file(load(inputs.base()) | {"edm_vpred.sigma_max": torch.tensor(120.0)}, tmp_path / "edm.safetensors")
    with pytest.raises(IncompatibleError, match="predicts in EDM's scaling") as caught:
        fuse(tmp_path / "edm.safetensors", tmp_path / "out", lcm=inputs.lcm, layout="diffusers",
             config_from=inputs.folder())  # fmt: skip
    assert "--config-from" in caught.value.hint
