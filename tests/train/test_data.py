"""What data are read, in which order, and as which pixels."""

from __future__ import annotations

import io
import json
import shutil
import socket
import tarfile

import datasets
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import strategies as st
from pictures import folder_of, picture
from PIL import Image, ImageOps

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.train.data import Options, kinds, open_data
from lcmmerge.train.data.base import Indexed, TrainingExample, draws, order
from lcmmerge.train.data.shards import BLOCK
from lcmmerge.train.data.transforms import Transform, read

seeds = st.integers(0, 2**63 - 1)
counts = st.integers(1, 40)


def names(examples):
    return [example.name for example in examples]


def captions(examples):
    return [example.caption for example in examples]


def one_line(error, *parts):
    for line in (error.message, error.hint):
        assert line
        assert "\n" not in line
    for part in parts:
        assert part in f"{error.message} | {error.hint}"


# The order


@given(seeds, st.integers(0, 5), counts)
def test_an_order_is_a_permutation(seed, epoch, count):
    assert sorted(order(seed, epoch, count).tolist()) == list(range(count))


def test_an_order_is_the_same_in_every_process():
    """Recorded: neither Python's hash seed, nor threads, nor a new version may change it."""
    assert order(0, 0, 8).tolist() == [7, 5, 6, 0, 1, 4, 2, 3]
    assert order(0, 1, 8).tolist() != order(0, 0, 8).tolist()
    assert draws(0, 0, "view").random() != draws(0, 1, "view").random() != draws(1, 1, "view").random()


@given(seeds, counts, st.integers(0, 90), st.integers(0, 30))
def test_reading_may_begin_at_any_number(seed, count, start, length):
    data = Indexed("numbers", lambda index: index, range(count))
    unbroken = list(data.examples(seed, range(start + length)))
    assert list(data.examples(seed, range(start, start + length))) == unbroken[start:]
    for epoch in range(0, len(unbroken) - count + 1, count):
        assert sorted(unbroken[epoch : epoch + count]) == list(range(count))


@given(seeds, st.integers(2, 40), st.data())
def test_a_split_parts_the_data(seed, count, data):
    validation_count = data.draw(st.integers(1, count - 1))
    training, validation = Indexed("numbers", lambda index: index, range(count)).split(validation_count, seed)
    assert len(validation) == validation_count
    assert sorted([*training, *validation]) == list(range(count))


def test_a_split_larger_than_the_data():
    with pytest.raises(FormatError) as caught:
        Indexed("numbers", lambda index: index, range(3)).split(3, 0)
    one_line(caught.value, "numbers: 3 examples, and 3 are asked for")


# Folders


def test_a_folder_with_captions_beside(tmp_path):
    folder_of(tmp_path, 3)
    folder_of(tmp_path / "within", 1)
    folder_of(tmp_path / ".hidden", 1)
    (tmp_path / "notes.md").write_text("no image")
    data = list(open_data(str(tmp_path)))
    assert captions(data) == ["picture 0", "picture 1", "picture 2", "picture 0"]
    assert names(data) == [str(tmp_path / name) for name in ("image00.png", "image01.png", "image02.png")] + [
        str(tmp_path / "within" / "image00.png")
    ]
    assert np.array_equal(read(data[1]), picture(1))


def write_metadata(folder, kind, entries):
    if kind == "jsonl":
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
    else:
        text = "file_name,text\n" + "".join(f'{entry["file_name"]},"{entry["text"]}"\n' for entry in entries)
    (folder / f"metadata.{kind}").write_text(text, "utf-8")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_as_imagefolder_reads_them(kind, tmp_path):
    folder, cache = folder_of(tmp_path / "images", 3), tmp_path / "cache"
    for path in folder.glob("*.txt"):
        path.unlink()
    entries = [{"file_name": f"image{number:02}.png", "text": f"a, {number} – é"} for number in (2, 0, 1)]
    write_metadata(folder, kind, entries)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))
    expected = {row["text"]: np.array(row["image"]) for row in theirs}
    found = {example.caption: np.array(read(example)) for example in open_data(str(folder))}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[caption], pixels) for caption, pixels in expected.items())


def test_one_caption_for_all(tmp_path):
    folder_of(tmp_path, 2)
    (tmp_path / "image00.txt").unlink()
    assert captions(open_data(str(tmp_path), Options(caption="a sks thing"))) == ["a sks thing"] * 2


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda folder: (folder / "image01.txt").unlink(), ["image01.png: has no caption", "image01.txt", "--caption"]),
        (lambda folder: (folder / "image01.txt").write_text(" \n"), ["image01.png: has no caption"]),
        (lambda folder: (folder / "image01.txt").write_bytes(b"\xff\xfe\x00"), ["image01.txt", "not UTF-8"]),
        (lambda folder: [path.unlink() for path in folder.iterdir()], ["holds no examples", "png"]),
        (lambda folder: write_metadata(folder, "jsonl", [{"file_name": "no.png"}]), ["no.png: no such image", ":1"]),
        (lambda folder: write_metadata(folder, "jsonl", [{"text": "a"}]), ["metadata.jsonl:1: no file_name"]),
        (lambda folder: write_metadata(folder, "jsonl", [{"file_name": "image00.png"}]), ["00.png: has no caption"]),
        (lambda folder: (folder / "metadata.jsonl").write_text("{\n"), ["metadata.jsonl:1: not JSON"]),
        (lambda folder: shutil.rmtree(folder), ["no such folder", "tar shards"]),
    ],
)  # fmt: skip
def test_faults_of_a_folder(spoil, parts, tmp_path):
    folder = folder_of(tmp_path / "images", 2)
    spoil(folder)
    with pytest.raises((FormatError, NotFoundError)) as caught:
        open_data(str(folder))
    one_line(caught.value, *parts)


# The library datasets


def saved(path, texts, column="text"):
    features = datasets.Features({"image": datasets.Image(), column: datasets.Value("string")})
    rows = {"image": [picture(number) for number in range(len(texts))], column: texts}
    return datasets.Dataset.from_dict(rows, features=features), str(path)


def test_a_saved_dataset(tmp_path):
    rows, place = saved(tmp_path / "rows", ["one", "two", "three"])
    rows.save_to_disk(place)
    data = list(open_data(place))
    assert captions(data) == ["one", "two", "three"]
    assert all(np.array_equal(read(example), picture(number)) for number, example in enumerate(data))
    training, validation = open_data(place).split(1, 0)
    assert sorted(captions([*training, *validation])) == ["one", "three", "two"]


def test_splits_and_columns(tmp_path):
    rows, place = saved(tmp_path / "rows", ["one", "two"], column="caption")
    datasets.DatasetDict(good=rows).save_to_disk(place)
    assert captions(open_data(place, Options(split="good", text_column="caption"))) == ["one", "two"]
    assert captions(open_data(place, Options(split="good", caption="x"))) == ["x", "x"]
    faults = {
        Options(text_column="caption"): ["no split 'train'", "good"],
        Options(split="good"): ["no column 'text'", "image, caption"],
        Options(split="good", image_column="caption", text_column="caption"): ["holds no images"],
    }
    for options, parts in faults.items():
        with pytest.raises((FormatError, NotFoundError)) as caught:
            open_data(place, options)
        one_line(caught.value, *parts)


def test_faults_of_a_dataset(tmp_path):
    rows, place = saved(tmp_path / "rows", ["one", None])
    rows.save_to_disk(place)
    with pytest.raises(FormatError) as caught:
        open_data(place)
    one_line(caught.value, "rows[1]: has no caption")
    (tmp_path / "rows" / "state.json").write_text("{")
    with pytest.raises(NotFoundError) as unloadable:
        open_data(place)
    one_line(unloadable.value, "cannot be loaded")


@pytest.mark.parametrize(("revision", "asked"), [("", None), ("@v1.0", "v1.0")])
def test_a_dataset_on_the_hub(revision, asked, tmp_path, monkeypatch):
    """The library does the download: here it is only looked at what it is asked for."""
    rows, calls = saved(tmp_path / "rows", ["one", "two"])[0], []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: calls.append((names, options)) or
                        datasets.DatasetDict(train=rows))  # fmt: skip
    assert captions(open_data(f"hf://datasets/owner/name{revision}")) == ["one", "two"]
    assert calls == [(("owner/name",), {"revision": asked})]


# Tar shards


def shard(path, numbers, suffix="txt"):
    """Files as WebDataset's own writer names them."""
    path.parent.mkdir(exist_ok=True)
    files = {}
    for number in numbers:
        text = f"picture {number}" if suffix == "txt" else json.dumps({"text": f"picture {number}"})
        files |= {f"{number:04}.png": example_of(picture(number)).source(), f"{number:04}.{suffix}": text.encode()}
    return tar_of(path, files)


def tar_of(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        shard(folder / f"{number:02}.tar", range(5 * number, 5 * number + 5 - number), ["txt", "json"][number % 2])
    return folder


EVERY = [f"picture {number}" for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12)]


@pytest.mark.parametrize("pattern", ["*.tar", "{00..02}.tar"])
def test_shards_are_read_in_order(pattern, shards):
    data = open_data(f"{shards}/{pattern}")
    assert captions(data) == EVERY
    assert all(np.array_equal(read(one), picture(int(one.caption[8:]))) for one in data)
    assert next(iter(data)).name == f"{shards}/00.tar:0000"


@given(seeds, st.integers(0, 40), st.integers(1, 30), st.integers(1, 3))
def test_a_stream_may_begin_at_any_number(shards, seed, start, length, step):
    data = open_data(f"{shards}/*.tar")
    unbroken = names(data.examples(seed, range(start + length)))
    assert names(data.examples(seed, range(start, start + length, step))) == unbroken[start::step]
    for epoch in range(0, len(unbroken) - len(EVERY) + 1, len(EVERY)):
        assert len(set(unbroken[epoch : epoch + len(EVERY)])) == len(EVERY)


def test_a_stream_is_shuffled_within_its_shards_too(tmp_path):
    data = open_data(str(shard(tmp_path / "one.tar", range(12))))
    epochs = [captions(data.examples(0, range(first, first + 12))) for first in (0, 12)]
    assert epochs[0] != epochs[1] != captions(data)
    assert BLOCK > 12


def test_the_first_of_a_stream_are_for_validation(shards):
    training, validation = open_data(f"{shards}/*.tar").split(6, 0)
    assert captions(validation) == EVERY[:6]
    assert captions(training) == EVERY[6:]
    assert set(captions(training.examples(0, range(18)))) == set(EVERY[6:])


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({"0.png": b"x"}, ["bad.tar:0: has no caption", "add a .txt"]),
        ({"0.txt": b"x"}, ["bad.tar:0: has no image"]),
        ({}, ["holds no examples"]),
        (None, ["bad.tar: cannot be read (", "again"]),
    ],
)
def test_faults_of_shards(files, parts, tmp_path):
    path = tmp_path / "bad.tar"
    if files is None:
        path.write_bytes(shard(path, range(3)).read_bytes()[:900])
    else:
        tar_of(path, files | {"__meta__": b""})
    with pytest.raises(FormatError) as caught:
        list(open_data(str(path)).examples(0, range(4)))
    one_line(caught.value, *parts)


def test_captions_of_shards(tmp_path):
    """Beside the image, of several kinds in one shard; of what else is there nothing is read."""
    files = {"a.caption": b"one", "b.txt": "two é".encode(), "c.json": b'{"caption": "three", "text": null, "n": [1]}'}
    files |= {f"{name.partition('.')[0]}.png": example_of(picture(0)).source() for name in files}
    files |= {"c.seg.png": b"x", "c.cls": b"7"}
    path = tar_of(tmp_path / "a [1].tar", {name: files[name] for name in sorted(files)})
    assert captions(open_data(str(tmp_path / "*.tar"))) == ["one", "two é", "three"]
    assert captions(open_data(str(tmp_path / "*.tar"), Options(caption="x"))) == ["x"] * 3
    assert names(open_data(str(tmp_path / "*.tar")))[0] == f"{path}:a"


def test_shards_ask_no_server(shards, monkeypatch):
    """The library would count that it is used, whatever it reads."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **more: pytest.fail(f"asks {address}"))
    assert captions(open_data(f"{shards}/*.tar")) == EVERY


def test_no_shard(tmp_path):
    with pytest.raises(NotFoundError) as caught:
        open_data(f"{tmp_path}/{{0..2}}.tar")
    one_line(caught.value, "0.tar: no such shard")


def test_every_kind_says_what_it_is():
    assert list(kinds()) == ["encoded", "folder", "hub_datasets", "shards"]
    assert all(kind.help for kind in kinds().values())


# Pixels


def example_of(image):
    """As a PNG in memory."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return TrainingExample("an image", "a caption", lambda: file.getvalue())


@pytest.mark.parametrize(("width", "height"), [(48, 40), (40, 48), (32, 32), (17, 90)])
def test_a_centre_crop_as_pil_and_diffusers_make_it(width, height):
    image = picture(3, width, height)
    seen = Transform(32).see(example_of(image), 0, 0)
    theirs = ImageOps.fit(image, (32, 32)) if width == height else None
    scale = 32 / min(width, height)
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    top, left = (resized.height - 32) // 2, (resized.width - 32) // 2
    cut = theirs or resized.crop((left, top, left + 32, top + 32))
    assert torch.allclose(seen.pixels, VaeImageProcessor(do_resize=False).preprocess(cut)[0], atol=1e-6)
    assert seen.sizes == (height, width, top, left, 32, 32)


@given(seeds, st.integers(0, 1000), st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.booleans())
def test_a_random_view_is_one_of_the_image(seed, number, width, height, side, flip):
    image = picture(5, width, height)
    transform = Transform(side, "random", flip)
    seen = transform.see(example_of(image), seed, number)
    again = transform.see(example_of(image), seed, number)
    assert torch.equal(seen.pixels, again.pixels)
    assert seen.sizes == again.sizes
    assert seen.pixels.shape == (3, side, side)
    assert seen.pixels.min() >= -1
    assert seen.pixels.max() <= 1
    original_height, original_width, top, left, *target = seen.sizes
    assert (original_height, original_width, target) == (height, width, [side, side])
    scale = side / min(width, height)
    resized = image.resize((max(side, round(width * scale)), max(side, round(height * scale))), 1)
    assert 0 <= top <= resized.height - side
    assert 0 <= left <= resized.width - side
    views = [view.crop((left, top, left + side, top + side)) for view in (resized, ImageOps.mirror(resized))]
    found = ((seen.pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert any(np.array_equal(found, view) for view in views[: 1 + flip])


def test_random_views_differ():
    transform, example = Transform(16, "random", flip=True), example_of(picture(1, 40, 16))
    lefts = {transform.see(example, 0, number).sizes[3] for number in range(60)}
    assert {min(lefts), max(lefts)} == {0, 24}
    still = Transform(16, flip=True)
    mirrored = [not torch.equal(still.see(example, 0, n).pixels, Transform(16).see(example, 0, n).pixels)
                for n in range(200)]  # fmt: skip
    assert 70 < sum(mirrored) < 130


def test_what_is_transparent_is_white_and_what_lies_is_upright():
    clear = picture(1).convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    assert np.asarray(read(example_of(clear))).min() == 255
    assert read(example_of(picture(1).convert("L"))).mode == "RGB"

    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture(1, 24, 18).save(file, "PNG", exif=exif)
    assert read(TrainingExample("turned", "", file.getvalue)).size == (18, 24)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no image at all", "cannot identify"),
        (b"", "cannot identify"),
        ("cut", "truncated"),
        ("deep", "8 bits do not hold"),
        (None, "No such file"),
    ],
)
def test_an_image_that_cannot_be_read(content, reason, tmp_path):
    path = tmp_path / "bad.png"
    if content == "cut":
        picture(0, 200, 200).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif content == "deep":
        Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        Transform(8).see(TrainingExample(str(path), "", lambda: path), 0, 0)
    one_line(caught.value, f"{path}: not an image", reason, "--skip-bad")
