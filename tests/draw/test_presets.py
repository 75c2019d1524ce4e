"""Which scheduler, how many steps, what guidance; and what that costs, counted in the network itself."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from fusing import fuse
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sampling import assert_alike, by_diffusers, drawn, images, one, pipeline, preset, several

from lcmmerge.accelerators import ACCELERATORS
from lcmmerge.archs import identify
from lcmmerge.draw import presets
from lcmmerge.errors import FormatError, LcmMergeError, NotFoundError
from lcmmerge.tensors import open_source

TRAILING = {"timestep_spacing": "trailing"}
ORACLES = {
    "ddim": lambda config: DDIMScheduler.from_config(config, **TRAILING),
    "dpm-solver": lambda config: DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver", final_sigmas_type="sigma_min", **TRAILING
    ),
    "dpm-solver++": lambda config: DPMSolverMultistepScheduler.from_config(config, **TRAILING),
    "unipc": lambda config: UniPCMultistepScheduler.from_config(config, **TRAILING),
    "euler": lambda config: EulerDiscreteScheduler.from_config(config, **TRAILING),
    "lcm": lambda config: LCMScheduler.from_config(config),
}


@pytest.fixture(scope="module")
def folder(files):
    return files("sd1").folder()


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline(folder)


def evaluated(pipe, jobs, chosen, batch=2):
    """How many images went through the U-Net, per job."""
    seen = []
    handle = pipe.unet.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    drawn(pipe, jobs, chosen, batch)
    handle.remove()
    return sum(seen) / len(jobs)


def with_scheduler(folder, target, scheduler):
    """A copy of the folder's small files with another scheduler."""
    shutil.copytree(folder, target)
    scheduler.save_pretrained(target / "scheduler")
    return target


def test_every_baseline_is_tested():
    assert ORACLES.keys() == presets.BASELINES.keys()


@pytest.mark.parametrize("name", ORACLES)
def test_baselines_are_diffusers_own(name, folder, pipe):
    chosen = preset(folder, scheduler=name, steps=3)
    call = {"num_inference_steps": 3, "guidance_scale": chosen.guidance}
    expected = by_diffusers(folder, one(), ORACLES[name], **call)
    assert_alike(images(drawn(pipe, [one()], chosen)), expected)


@pytest.mark.parametrize("name", ORACLES)
def test_four_steps_begin_in_whole_noise(name, folder, pipe):
    scheduler = preset(folder, scheduler=name, steps=4).build(pipe.scheduler.config)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps[0] == 999


@pytest.mark.parametrize("guidance", [1, 1.5])
@pytest.mark.parametrize("name", ORACLES)
def test_evaluations_are_counted_in_the_network(name, guidance, folder, pipe):
    chosen = preset(folder, scheduler=name, guidance=guidance)
    expected = 4 if guidance > 1 else 2
    assert evaluated(pipe, several("a", "b"), chosen) == expected
    assert presets.evaluations_of(chosen, pipe) == expected
    assert presets.evaluations(2, guidance, pipe.unet) == expected


@pytest.mark.parametrize("name", [name for name, entry in ACCELERATORS.items() if entry.sampling.predicts == "epsilon"])
def test_every_accelerator_draws_as_it_says(name, folder, pipe):
    chosen = presets.of_sampling(name, ACCELERATORS[name].sampling)
    chosen = replace(chosen, steps=min(chosen.steps, 2))
    assert evaluated(pipe, [one()], chosen) == presets.evaluations_of(chosen, pipe)


@pytest.mark.parametrize(("kind", "evaluations"), [(PNDMScheduler, 6), (HeunDiscreteScheduler, 6)])
def test_schedulers_that_evaluate_more_often_than_they_step(kind, evaluations, folder, tmp_path):
    """Two steps with guidance."""
    extra = {"skip_prk_steps": True} if kind is PNDMScheduler else {}
    target = with_scheduler(folder, tmp_path / "model", kind(steps_offset=1, **extra))
    own, chosen = pipeline(target), preset(target)
    assert chosen.name == "own"
    assert evaluated(own, [one()], chosen) == presets.evaluations_of(chosen, own) == evaluations


def test_guidance_up_to_one_is_off(folder, pipe):
    off = [images(drawn(pipe, [one()], preset(folder, scheduler="lcm", guidance=g))) for g in (0, 0.5, 1)]
    assert np.array_equal(off[0], off[1])
    assert np.array_equal(off[0], off[2])


def test_guidance_of_the_family(files, folder):
    assert preset(folder, scheduler="ddim").guidance == 7.5
    assert preset(files("sdxl").folder(), scheduler="ddim").guidance == 5.0
    assert preset(folder, scheduler="lcm").guidance == 1.0
    assert preset(folder, scheduler="ddim", guidance=3).guidance == 3


@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_a_merge_records_how_it_is_drawn(layout, files, folder, tmp_path):
    inputs, target = files("sd1"), tmp_path / "fused.safetensors"
    fuse(
        inputs.base(), target, inputs.style, inputs.lcm, accelerator="hyper-1step", layout=layout, config_from=folder
    )
    chosen = presets.choose(identify(open_source(target)), target if layout == "diffusers" else folder)
    assert (chosen.scheduler, chosen.steps, chosen.guidance) == ("TCDScheduler", 1, 0)
    assert chosen.arguments == {"eta": 1.0}


def test_a_damaged_record_is_refused(files, folder, tmp_path):
    inputs, target = files("sd1"), tmp_path / "fused.safetensors"
    fuse(inputs.base(), target, lcm=inputs.lcm, accelerator="lcm")
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["sd_merge_recipe"])
    recipe["sampling"]["steps"] = "four"
    save_file(load_file(target), target, metadata | {"sd_merge_recipe": json.dumps(recipe)})
    with pytest.raises(FormatError, match="recipe is damaged"):
        presets.choose(identify(open_source(target)), folder)


def test_an_lcm_of_other_making_is_known_by_its_scheduler(folder, tmp_path):
    target = with_scheduler(folder, tmp_path / "lcm", LCMScheduler(steps_offset=1))
    chosen = presets.choose(identify(open_source(target)), target)
    assert (chosen.name, chosen.scheduler, chosen.steps, chosen.guidance) == ("own", "LCMScheduler", 4, 1)


@pytest.mark.parametrize(
    ("asked", "cause", "error"),
    [
        ({"scheduler": "lcm", "steps": 51}, "LCMScheduler takes at most 50", LcmMergeError),
        ({"scheduler": "ddim", "steps": 1001}, "DDIMScheduler takes at most 1000", LcmMergeError),
        ({"scheduler": "ddim", "steps": 0}, "nothing can be drawn so", LcmMergeError),
        ({"scheduler": "ddim", "guidance": float("nan")}, "nothing can be drawn so", LcmMergeError),
        ({"accelerator": "hyper-8step"}, "neither a file nor the name of an accelerator", NotFoundError),
    ],
)
def test_nonsense_is_one_line(asked, cause, error, folder):
    with pytest.raises(error, match=cause) as refused:
        preset(folder, **asked)
    assert "\n" not in refused.value.message
    assert refused.value.hint


def test_dmd2_takes_more_than_fifty(folder):
    assert preset(folder, accelerator="dmd2", steps=60).steps == 60


def test_a_model_s_marks_go_before_the_configs(files, tmp_path):
    inputs = files("sdxl")
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(load_file(inputs.base()) | marks, tmp_path / "v.safetensors")
    model = identify(open_source(tmp_path / "v.safetensors"))
    expected = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert presets.choose(model, inputs.folder()).settings.items() >= (expected | TRAILING).items()
    scheduler = presets.choose(model, inputs.folder(), scheduler="ddim").build(
        presets.own_scheduler(inputs.folder(), model).config
    )
    assert scheduler.config.items() >= expected.items()
    assert int(scheduler.timesteps[0]) == scheduler.config.num_train_timesteps - 1
    plain = presets.choose(model.predicting("epsilon"), inputs.folder())
    assert plain.settings["prediction_type"] == "epsilon"
