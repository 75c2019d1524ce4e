"""Drawing with θ(λ) without baking it is drawing with the baked checkpoint."""

import numpy as np
import pytest
import torch
from fusing import fuse
from merging import merge_of
from pico import pico
from sampling import CPU, assert_alike, drawn, images, one, pipeline, preset

from lcmmerge.draw import drawable
from lcmmerge.draw.live import load_live, plan_live
from lcmmerge.errors import AlreadyFusedError, IncompatibleError, ShapeMismatchError


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_live_merge_is_the_baked_one(name, files, tmp_path):
    """Weights to the bit, in the base's dtype; so the images are equal too."""
    inputs = files(name)
    baked = tmp_path / "baked.safetensors"
    fuse(inputs.base(), baked, inputs.style, inputs.lcm, (0.8, 1.0))
    asked = merge_of(str(inputs.base()), style=str(inputs.style), strengths=(0.8, 1.0), lcm=str(inputs.lcm))
    plan = plan_live(asked)
    live, expected = load_live(plan, inputs.folder(), torch.float32, CPU), pipeline(baked, inputs.folder())
    for component in plan.base.components:
        found = getattr(live, component).state_dict()
        for key, tensor in getattr(expected, component).state_dict().items():
            assert torch.equal(found[key], tensor), key
    chosen = preset(inputs.folder(), scheduler="lcm")
    assert_alike(images(drawn(live, [one()], chosen)), images(drawn(expected, [one()], chosen)))
    base = pipeline(inputs.base(), inputs.folder())
    assert not np.array_equal(images(drawn(live, [one()], chosen)), images(drawn(base, [one()], chosen)))


def test_nothing_is_written(files, tmp_path, monkeypatch):
    inputs = files("sd1")
    monkeypatch.chdir(tmp_path)
    plan = plan_live(merge_of(str(inputs.folder()), lcm=str(inputs.lcm)))
    load_live(plan, drawable.configs_of(plan.base), torch.float32, CPU)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused(files, tmp_path):
    inputs = files("sd1")
    with pytest.raises(ShapeMismatchError):
        plan_live(merge_of(str(inputs.base()), style=str(files("sdxl").style), strengths=(1.0, 0.0)))
    refiner = pico("sdxl_refiner").single_file(tmp_path / "refiner.safetensors")
    with pytest.raises(IncompatibleError, match="refiner"):
        plan_live(merge_of(str(refiner), strengths=(1.0, 0.0)))


def test_an_adapter_does_not_count_twice(files, tmp_path):
    inputs, baked = files("sd1"), tmp_path / "baked.safetensors"
    fuse(inputs.base(), baked, lcm=inputs.lcm)
    again = merge_of(str(baked), lcm=str(inputs.lcm))
    with pytest.raises(AlreadyFusedError):
        plan_live(again)
    assert plan_live(again, force=True).terms
