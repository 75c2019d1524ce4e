"""The encoder against diffusers' own pipelines, bit for bit."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from pico import PICOS, pico
from pictures import encoder_of

TRAINED = [name for name in PICOS if name in ("sd1", "sd2", "sdxl", "ssd1b")]
CAPTIONS = ["a thin thing", "", "THE END, in the 2nd!", "in thin " * 40]


def prompted(name, caption):
    """(c, ∅, pooled c, pooled ∅) of diffusers; the pooled ones None for SD."""
    pipeline = pico(name).pipeline
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return pipeline.encode_prompt(caption, device="cpu")
    return (*pipeline.encode_prompt(caption, "cpu", 1, True), None, None)


def same(ours, theirs):
    return ours is None if theirs is None else torch.equal(ours, theirs)


@pytest.mark.parametrize("name", TRAINED)
def test_as_the_pipelines_encode(name):
    encoder = encoder_of(name)
    told, blank = encoder(CAPTIONS), encoder.blank(len(CAPTIONS))
    for row, caption in enumerate(CAPTIONS):
        hidden, no_hidden, pooled, no_pooled = prompted(name, caption)
        assert torch.equal(told.hidden[row : row + 1], hidden)
        assert torch.equal(blank.hidden[row : row + 1], no_hidden)
        assert same(told.pooled if pooled is None else told.pooled[row : row + 1], pooled)
        assert same(blank.pooled if no_pooled is None else blank.pooled[row : row + 1], no_pooled)


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
