"""What is encoded beforehand is what a training would have encoded."""

from __future__ import annotations

import hashlib
import json
import resource
from itertools import islice

import pytest
import torch
from pico import pico
from pictures import encoder_of, folder_of

from lcmmerge.errors import FormatError, IncompatibleError, OutputError
from lcmmerge.train.data import Options, open_data
from lcmmerge.train.data.encoded import MANIFEST
from lcmmerge.train.data.loader import batches
from lcmmerge.train.data.transforms import Transform
from lcmmerge.train.encode import EncodingPlan, encode

PLAN = EncodingPlan("0123abc", Transform(16), batch_size=2, shard_size=3)


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "images", 7)


def run(folder, target, plan=PLAN, name="sd1", **options):
    return encode(open_data(str(folder)), encoder_of(name), pico(name).pipeline.vae, target, plan, **options)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_the_same_batches_as_from_the_images(name, folder, tmp_path):
    manifest = run(folder, tmp_path / "encoded", name=name, workers=2)
    assert manifest.shards == (3, 3, 1)
    options = {"seed": 3, "batch_size": 2, "transform": Transform(16), "drop_captions": 0.3, "start": 1}
    images = batches(open_data(str(folder)), encoder_of(name), pico(name).pipeline.vae, **options)
    encoded = batches(open_data(str(tmp_path / "encoded")), **options)
    for one, other in islice(zip(images, encoded, strict=False), 8):
        pairs = [(one.latents, other.latents)]
        for mine, theirs in ((one.prompt, other.prompt), (one.blank, other.blank)):
            pairs += [(mine.hidden, theirs.hidden), (mine.pooled, theirs.pooled), (mine.time_ids, theirs.time_ids)]
        for expected, found in pairs:
            assert (expected is None) == (found is None)
            if expected is not None:
                assert expected.dtype == found.dtype
                assert torch.allclose(expected, found, rtol=0, atol=1e-6)


def test_captions_and_a_split(folder, tmp_path):
    run(folder, tmp_path / "encoded")
    data = open_data(str(tmp_path / "encoded"))
    assert [row.caption for row in data] == [f"picture {number}" for number in range(7)]
    training, validation = data.split(2, 0)
    assert len({row.caption for row in [*training, *validation]}) == 7
    assert next(batches(validation, seed=0, batch_size=2, transform=Transform(16))).latents.shape == (2, 4, 2, 2)


def test_a_caption_is_stored_once(folder, tmp_path):
    data = open_data(str(folder), Options(caption="one for all"))
    encode(data, encoder_of("sd1"), pico("sd1").pipeline.vae, tmp_path / "encoded", PLAN)
    run(folder, tmp_path / "own")
    sizes = [(tmp_path / name / "00000.safetensors").stat().st_size for name in ("encoded", "own")]
    assert sizes[1] - sizes[0] == 2 * 77 * 16 * 4
    assert {row.caption for row in open_data(str(tmp_path / "encoded"))} == {"one for all"}


def test_interrupted_and_continued_gives_the_same_bytes(folder, tmp_path):
    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "broken", done=stop)
    with pytest.raises(FormatError, match="not encoded to its end"):
        open_data(str(tmp_path / "broken"))
    first = tmp_path / "broken" / "00000.safetensors"
    before = first.stat().st_mtime_ns
    run(folder, tmp_path / "broken")
    run(folder, tmp_path / "unbroken")
    assert first.stat().st_mtime_ns == before
    assert digests(tmp_path / "broken") == digests(tmp_path / "unbroken")


def test_only_shards_whose_data_changed_are_made_again(folder, tmp_path):
    target = tmp_path / "encoded"
    run(folder, target)
    times = {path.name: path.stat().st_mtime_ns for path in target.glob("0*")}
    (folder / "image04.txt").write_text("another")
    run(folder, target)
    assert [name for name, time in times.items() if (target / name).stat().st_mtime_ns != time] == ["00001.safetensors"]
    assert [row.caption for row in open_data(str(target))][4] == "another"


def test_other_settings_are_refused(folder, tmp_path):
    run(folder, tmp_path / "encoded")
    with pytest.raises(OutputError, match=r"resolution 16, now 8\)"):
        run(folder, tmp_path / "encoded", EncodingPlan("0123abc", Transform(8), batch_size=2, shard_size=3))
    with pytest.raises(OutputError, match="model 0123abc, now else"):
        run(folder, tmp_path / "encoded", EncodingPlan("else", Transform(16), batch_size=2, shard_size=3))
    with pytest.raises(OutputError, match="holds something else"):
        run(folder, folder)
    with pytest.raises(IncompatibleError, match="encoded at 16 pixels, and 8 are asked for"):
        batches(open_data(str(tmp_path / "encoded")), seed=0, batch_size=1, transform=Transform(8))


def test_bad_images_are_left_out(folder, tmp_path):
    for name in ("image01.png", "image06.png"):  # the second is its shard's only one
        (folder / name).write_bytes(b"no image")
    with pytest.raises(FormatError, match=r"image01\.png: not an image"):
        run(folder, tmp_path / "encoded")
    skipped = []
    assert run(folder, tmp_path / "encoded", on_bad=skipped.append).shards == (2, 3, 0)
    assert len(skipped) == 2
    assert [row.caption for row in open_data(str(tmp_path / "encoded"))] == [f"picture {n}" for n in (0, 2, 3, 4, 5)]


def test_a_full_disk(folder, tmp_path):
    """A limit on the size of files that lets the manifest through, and no shard."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OutputError, match="File too large") as caught:
            run(folder, tmp_path / "encoded")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in caught.value.message
    assert [path.name for path in (tmp_path / "encoded").iterdir()] == [MANIFEST]
    assert run(folder, tmp_path / "encoded").shards == (3, 3, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (MANIFEST, b"{", "cannot be read"),
        (MANIFEST, json.dumps({"settings": {}, "shards": [1], "version": 9}).encode(), "of version 9, known is 1"),
        ("00001.safetensors", b"short", "00001.safetensors: cannot be read"),
        ("blank.safetensors", None, "blank.safetensors: cannot be read"),
    ],
)
def test_damaged_folders(name, content, message, folder, tmp_path):
    target = tmp_path / "encoded"
    run(folder, target)
    (target / name).unlink()
    if content is not None:
        (target / name).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        open_data(str(target))
    assert "\n" not in caught.value.message
