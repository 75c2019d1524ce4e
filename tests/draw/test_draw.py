"""An image depends on its job alone; memory, sizes and damage on the way."""

import numpy as np
import pytest
import torch
from sampling import BOTH, drawn, images, one, pipeline, preset, several

from lcmmerge.draw.draw import DrawOutputs, draw
from lcmmerge.draw.encode import Encoder
from lcmmerge.errors import FormatError, LcmMergeError, NumericError

# Float32 on the CPU: kernels for other batch sizes add in another order. The latents' own scale is about 10.
TOLERANCE = 2e-3
NOISY = {"lcm": {"scheduler": "lcm"}, "tcd": {"accelerator": "tcd"}, "hyper": {"accelerator": "hyper-1step"}}


@pytest.fixture(scope="module")
def folder(files):
    return files("sd1").folder()


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline(folder)


def latents(drawing):
    return torch.stack([drawn.latents for drawn in drawing])


@pytest.mark.parametrize("name", NOISY)
def test_batches_change_nothing(name, folder, pipe):
    """Also where every step adds fresh noise."""
    chosen, jobs = preset(folder, **NOISY[name], steps=3), several("a", "the thing", count=2)
    alone = drawn(pipe, jobs, chosen, 1)
    for batch in (3, 4):
        together = drawn(pipe, jobs, chosen, batch)
        assert [found.job for found in together] == jobs
        torch.testing.assert_close(latents(together), latents(alone), atol=TOLERANCE, rtol=0)
        assert np.abs(images(together).astype(int) - images(alone)).max() <= 1
    assert (latents(alone)[0] - latents(alone)[1]).abs().max() > 1  # seeds differ


def test_the_same_again_to_the_bit(folder, pipe):
    chosen, jobs = preset(folder, scheduler="lcm"), several("a", "b", count=2)
    first, second = drawn(pipe, jobs, chosen, 2), drawn(pipe, jobs, chosen, 2)
    assert torch.equal(latents(first), latents(second))
    assert np.array_equal(images(first), images(second))


@pytest.mark.e2e
def test_guidance_with_a_negative_prompt_in_batches(files):
    folder = files("sdxl").folder()
    pipe, chosen = pipeline(folder), preset(folder, scheduler="dpm-solver++")
    jobs = [one("a", "b"), one("the thing", ""), one("a", "c")]
    alone, together = drawn(pipe, jobs, chosen, 1), drawn(pipe, jobs, chosen, 3)
    torch.testing.assert_close(latents(together), latents(alone), atol=TOLERANCE, rtol=0)
    assert (latents(alone)[0] - latents(alone)[2]).abs().max() > TOLERANCE  # the negative prompt counts


def test_sizes_are_not_mixed(folder, pipe):
    jobs = [one(size=(64, 64)), one(size=(64, 128)), one(size=(64, 128)), one(size=(64, 64))]
    found = drawn(pipe, jobs, preset(folder, scheduler="euler"), 4)
    assert [drawn.image.size for drawn in found] == [job.size for job in jobs]
    assert [tuple(drawn.latents.shape) for drawn in found] == [(4, 8, 8), (4, 16, 8), (4, 16, 8), (4, 8, 8)]
    assert np.array_equal(np.asarray(found[0].image), np.asarray(found[3].image))


def test_latents_without_images(folder, pipe):
    chosen = preset(folder, scheduler="ddim")
    calls = counted(pipe.vae.decoder)
    (alone,) = draw(pipe, [one()], chosen, wanted=DrawOutputs(images=False, latents=True))
    assert alone.image is None
    assert calls == []
    assert torch.equal(alone.latents, drawn(pipe, [one()], chosen)[0].latents)
    assert alone.latents.dtype == torch.float32


def counted(module):
    """A list that grows by the batch size with each of the module's calls."""
    calls = []
    module.register_forward_hook(lambda module, inputs, output: calls.append(len(output[0])))
    return calls


def test_each_prompt_is_encoded_once(folder):
    pipe, said = pipeline(folder), []
    calls = counted(pipe.text_encoder)
    encoder = Encoder(pipe, said.append)
    jobs = several("a", "b", "a", count=3)
    drawn(pipe, jobs, preset(folder, scheduler="ddim"), 2, encoder=encoder)
    assert len(calls) == 3  # a, b, and ∅
    drawn(pipe, jobs, preset(folder, scheduler="ddim"), 2, encoder=encoder)
    assert len(calls) == 3
    assert said == []


def test_a_prompt_longer_than_clip_reads_is_told(folder, pipe):
    said = []
    found = drawn(pipe, [one("a " * 100)], preset(folder, scheduler="ddim"), say=said.append)
    assert len(found) == 1
    assert said[0].startswith("CLIP reads 77 tokens; of 102 ")


@pytest.fixture
def small(folder):
    """``small(n)``: a pipeline whose U-Net has memory for n images."""

    def with_room_for(number):
        pipe = pipeline(folder)

        def check(module, inputs):
            if len(inputs[0]) > number:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        pipe.unet.register_forward_pre_hook(check)
        return pipe

    return with_room_for


def test_out_of_memory_halves_the_batch_and_says_so(folder, pipe, small):
    chosen, jobs, said, steps = preset(folder, scheduler="lcm"), several("a", count=7), [], []
    found = drawn(small(3), jobs, chosen, 7, say=said.append, progress=steps.append)
    assert [drawn.job for drawn in found] == jobs
    assert said == ["7 images at once do not fit into memory: going on with 3"]
    assert sum(steps) == 7 * 2
    torch.testing.assert_close(latents(found), latents(drawn(pipe, jobs, chosen)), atol=TOLERANCE, rtol=0)


def test_out_of_memory_in_the_vae_of_sdxl(files):
    """It decodes float16 in float32, and is in between when memory ends."""
    folder, said = files("sdxl").folder(), []
    pipe = pipeline(folder, dtype=torch.float16)
    calls = counted(pipe.vae.decoder)

    def check(module, inputs):
        assert inputs[0].dtype == torch.float32
        if len(inputs[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    pipe.vae.decoder.register_forward_pre_hook(check)
    found = drawn(pipe, several("a", count=2), preset(folder, scheduler="lcm"), 2, say=said.append)
    assert (len(found), len(calls), len(said)) == (2, 2, 1)
    assert pipe.vae.dtype == torch.float16


def test_one_image_that_does_not_fit_ends_it(folder, small):
    said = []
    with pytest.raises(LcmMergeError, match="64×64: one image does not fit") as refused:
        drawn(small(0), several("a", count=2), preset(folder, scheduler="lcm"), 2, say=said.append)
    assert "--size" in refused.value.hint
    assert said == ["2 images at once do not fit into memory: going on with 1"]


def test_other_errors_are_not_memory(folder):
    pipe = pipeline(folder)
    pipe.unet.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(FormatError, match="ZeroDivisionError: division by zero") as caught:
        drawn(pipe, several("a", count=2), preset(folder, scheduler="lcm"), 2)
    assert "--config-from" in caught.value.hint


@pytest.mark.parametrize("component", ["unet", "vae"])
def test_nan_is_no_image(component, folder):
    pipe = pipeline(folder)
    next(getattr(pipe, component).parameters()).fill_(float("nan"))
    broken = {"unet": pipe.unet.conv_out.bias, "vae": pipe.vae.decoder.conv_out.bias}[component]
    broken.fill_(float("nan"))
    with pytest.raises(NumericError, match="NaN or Inf"):
        drawn(pipe, [one()], preset(folder, scheduler="lcm"))


def test_the_pipeline_keeps_its_scheduler(folder, pipe):
    own = pipe.scheduler
    drawn(pipe, [one()], preset(folder, scheduler="lcm"))
    assert pipe.scheduler is own


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_draws_the_same_noise(dtype, folder, pipe):
    """Half precision through three steps of a random network: alike, not equal."""
    chosen, jobs = preset(folder, scheduler="lcm", steps=3), several("a", count=2)
    cuda = pipeline(folder, dtype=dtype).to("cuda")
    found = list(draw(cuda, jobs, chosen, 2, wanted=BOTH))
    expected = latents(drawn(pipe, jobs, chosen, 2))
    error = (latents(found) - expected).norm() / expected.norm()
    assert error < 0.1
