"""The encoder against diffusers' own pipelines, bit for bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from pico import PICOS, pico
from pictures import encoder_of

TRAINED = [name for name in PICOS if name in ("sd1", "sd2", "sdxl", "ssd1b")]
CAPTIONS = ["a thin thing", "", "THE END, in the 2nd!", "in thin " * 40]


def prompted(name, caption, clip_skip):
    """(c, ∅, pooled c, pooled ∅) of diffusers; the pooled ones None for SD."""
    pipeline = pico(name).pipeline
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return pipeline.encode_prompt(caption, device="cpu", clip_skip=clip_skip)
    return (*pipeline.encode_prompt(caption, "cpu", 1, True, clip_skip=clip_skip), None, None)


def same(ours, theirs):
    return ours is None if theirs is None else torch.equal(ours, theirs)


# transformers 5 has no `text_encoder.text_model`, which diffusers' own clip_skip asks SD's for.
@pytest.mark.parametrize(("name", "clip_skip"), [*((name, None) for name in TRAINED), ("sdxl", 1), ("ssd1b", 2)])
def test_as_the_pipelines_encode(name, clip_skip):
    encoder = encoder_of(name, clip_skip=clip_skip)
    told, blank = encoder(CAPTIONS), encoder.blank(len(CAPTIONS))
    for row, caption in enumerate(CAPTIONS):
        hidden, no_hidden, pooled, no_pooled = prompted(name, caption, clip_skip)
        assert torch.equal(told.hidden[row : row + 1], hidden)
        assert torch.equal(blank.hidden[row : row + 1], no_hidden)
        assert same(told.pooled if pooled is None else told.pooled[row : row + 1], pooled)
        assert same(blank.pooled if no_pooled is None else blank.pooled[row : row + 1], no_pooled)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_a_skipped_layer_is_as_if_the_model_lacked_it(name):
    encoder = pico(name).pipeline.text_encoder
    last = encoder.encoder.layers[-1]
    encoder.encoder.layers = encoder.encoder.layers[:-1]
    try:
        without = prompted(name, CAPTIONS[0], None)[0]
    finally:
        encoder.encoder.layers.append(last)
    assert torch.equal(encoder_of(name, clip_skip=1)(CAPTIONS[:1]).hidden, without)
    assert torch.equal(encoder_of(name, clip_skip=1).blank(1).hidden, prompted(name, "", None)[0])


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_caption_is_encoded_alike_alone_in_a_batch_and_from_the_cache(name):
    encoder = encoder_of(name)
    together = encoder(CAPTIONS)
    again = encoder(CAPTIONS[::-1])
    for row, caption in enumerate(CAPTIONS):
        alone = encoder_of(name)([caption])
        assert torch.equal(together.hidden[row : row + 1], alone.hidden)
        assert torch.equal(again.hidden[-1 - row], alone.hidden[0])


def test_the_sizes_that_sdxl_is_told():
    pipeline, sizes = pico("sdxl").pipeline, torch.tensor([[1023, 700, 3, 0, 512, 512], [64, 48, 0, 9, 512, 512]])
    encoder = encoder_of("sdxl")
    for told in (encoder(["a", "b"], sizes), encoder.blank(2, sizes)):
        for row, size in zip(told.time_ids, sizes.tolist(), strict=True):
            pairs = [tuple(size[i : i + 2]) for i in (0, 2, 4)]
            theirs = pipeline._get_add_time_ids(*pairs, torch.float32, pipeline.text_encoder_2.config.projection_dim)
            assert torch.equal(row[None], theirs)
    assert encoder_of("sd1")(["a"], sizes[:1]).time_ids is None


def test_the_dtype_that_is_asked_for():
    told = encoder_of("sdxl", dtype=torch.float16)(["a thing"], torch.tensor([[4001, 3, 0, 0, 8, 8]]))
    assert told.hidden.dtype == told.pooled.dtype == torch.float16
    assert told.time_ids.tolist() == [[4001, 3, 0, 0, 8, 8]]
    assert torch.equal(told.hidden, encoder_of("sdxl")(["a thing"]).hidden.half())
