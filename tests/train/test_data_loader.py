"""Batches: what is in them, and that their numbers alone decide it."""

from __future__ import annotations

import copy
from itertools import islice

import pytest
import torch
from pico import pico
from pictures import encoder_of, folder_of

from lcmmerge.errors import FormatError, NumericError
from lcmmerge.train.data import loader, open_data
from lcmmerge.train.data.base import Indexed
from lcmmerge.train.data.loader import MOST_BAD, batches, full_precision, posterior, sample
from lcmmerge.train.data.transforms import Transform

VIEW = Transform(16, "random", flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("images"), 7)


def read(data, count, name="sd1", **options):
    options = {"seed": 5, "batch_size": 2, "transform": VIEW} | options
    return list(islice(batches(data, encoder_of(name), pico(name).pipeline.vae, **options), count))


def same(some, others):
    pairs = zip(some, others, strict=True)
    return all(
        torch.equal(one.latents, other.latents)
        and torch.equal(one.prompt.hidden, other.prompt.hidden)
        and torch.equal(one.blank.hidden, other.blank.hidden)
        for one, other in pairs
    )


def test_latents_as_diffusers_samples_them():
    vae, pixels = pico("sd1").pipeline.vae, torch.rand(2, 3, 32, 40) * 2 - 1
    mean, std = posterior(vae, pixels)
    ours = sample(mean, std, [torch.Generator().manual_seed(row) for row in range(2)])
    for row in range(2):
        theirs = vae.encode(pixels[row : row + 1]).latent_dist.sample(torch.Generator().manual_seed(row))
        assert torch.allclose(ours[row : row + 1], theirs * vae.config.scaling_factor, atol=1e-6)


def test_a_shift_is_taken_off():
    vae = copy.deepcopy(pico("sd1").pipeline.vae)
    pixels = torch.rand(1, 3, 16, 16)
    mean, std = posterior(vae, pixels)
    vae.register_to_config(shift_factor=0.5)
    shifted, same_std = posterior(vae, pixels)
    assert torch.allclose(shifted, mean - 0.5 * vae.config.scaling_factor, atol=1e-6)
    assert torch.equal(same_std, std)


def test_many_pixels_are_encoded_in_parts(monkeypatch):
    vae, pixels = pico("sd1").pipeline.vae, torch.rand(3, 3, 16, 24)
    alone = torch.cat([posterior(vae, one)[0] for one in pixels.split(1)])
    monkeypatch.setattr(loader, "AT_ONCE", 16 * 24)
    assert torch.equal(posterior(vae, pixels)[0], alone)


def test_an_fp16_vae_is_run_in_float32_where_it_would_overflow():
    half = copy.deepcopy(pico("sd1").pipeline.vae).half()
    assert full_precision(half).dtype == torch.float32
    assert half.dtype == torch.float16
    half.register_to_config(force_upcast=False)
    assert full_precision(half) is half
    wide = copy.deepcopy(pico("sd1").pipeline.vae)
    wide.quant_conv.weight.fill_(float("inf"))
    with pytest.raises(NumericError, match="NaN or infinity"):
        posterior(wide, torch.rand(1, 3, 16, 16))


def test_a_batch_holds_what_it_says(folder):
    (batch,) = read(open_data(str(folder)), 1, "sdxl", transform=Transform(16), batch_size=3)
    assert batch.latents.shape == (3, 4, 2, 2)
    assert batch.prompt.hidden.shape == batch.blank.hidden.shape == (3, 77, 40)
    assert batch.prompt.time_ids.tolist() == [[18, 24, 0, 2, 16, 16]] * 3
    assert torch.equal(batch.blank.time_ids, batch.prompt.time_ids)
    assert not batch.blank.hidden.any()
    assert not batch.blank.pooled.any()
    assert batch.prompt.pooled.any()


def test_reading_goes_on_where_it_stopped_and_whoever_decodes(folder):
    data = open_data(str(folder))
    unbroken = read(data, 9)
    assert not same(unbroken[:1], unbroken[1:2])
    assert same(read(data, 5, start=4), unbroken[4:])
    assert same(read(data, 9, workers=3), unbroken)
    assert not same(read(data, 1, seed=6), unbroken[:1])


def test_processes_share_the_data(folder):
    data = open_data(str(folder))
    alone = read(data, 6)
    shares = [read(data, 3, process=process, processes=2) for process in range(2)]
    assert same([shares[number % 2][number // 2] for number in range(6)], alone)
    assert same(read(data, 1, process=1, processes=2, start=2), alone[5:])


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_captions_are_dropped_as_often_as_asked(name, folder):
    """Of 400, between 25 and 35 % (more than two standard deviations of 2.3 %)."""
    data = open_data(str(folder))
    options = {"batch_size": 100, "transform": Transform(8), "workers": 2}
    full, dropped = read(data, 4, name, **options), read(data, 4, name, drop_captions=0.3, **options)
    empty = [(batch.prompt.hidden == batch.blank.hidden).flatten(1).all(1) for batch in dropped]
    assert 100 < sum(int(rows.sum()) for rows in empty) < 140
    for batch, whole, rows in zip(dropped, full, empty, strict=True):
        assert torch.equal(batch.latents, whole.latents)
        assert torch.equal(batch.prompt.hidden[~rows], whole.prompt.hidden[~rows])
        if name == "sdxl":
            assert not batch.prompt.pooled[rows].any()
            assert torch.equal(batch.prompt.time_ids, whole.prompt.time_ids)
    assert same(read(data, 1, name, start=3, drop_captions=0.3, **options), dropped[3:])
    everything = read(data, 1, name, drop_captions=1.0)[0]
    assert torch.equal(everything.prompt.hidden, everything.blank.hidden)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_image_takes_a_bad_ones_place(workers, tmp_path):
    folder = folder_of(tmp_path, 5)
    (folder / "image02.png").write_bytes(b"no image")
    data = open_data(str(folder))
    with pytest.raises(FormatError, match=r"image02\.png: not an image"):
        read(data, 3, workers=workers)
    skipped = []
    found = read(data, 5, workers=workers, on_bad=skipped.append)
    assert {error.message.partition(":")[0] for error in skipped} == {str(folder / "image02.png")}
    for start in range(5):
        assert same(read(data, 5 - start, start=start, workers=workers, on_bad=skipped.append), found[start:])


def test_data_without_one_good_image(tmp_path):
    folder = folder_of(tmp_path, 2)
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    skipped = []
    with pytest.raises(FormatError):
        read(open_data(str(folder)), 1, on_bad=skipped.append)
    assert len(skipped) == MOST_BAD - 1


def test_no_more_than_a_batch_is_read_ahead(folder):
    data, asked = open_data(str(folder)), []
    counted = Indexed("counted", lambda row: asked.append(row) or data.get(row), range(7))
    found = batches(counted, encoder_of("sd1"), pico("sd1").pipeline.vae,
                    seed=0, batch_size=3, transform=VIEW, workers=2)  # fmt: skip
    assert asked == []
    for number in range(1, 4):
        next(found)
        assert 3 * number <= len(asked) <= 3 * number + 4
