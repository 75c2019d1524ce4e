"""Oracle: torch.load. Whatever is refused must not have run anything."""

import os
import pickle
import sys
import types
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from lcmmerge.errors import FormatError, NotFoundError, UnsafePickleError
from lcmmerge.tensors import open_source
from lcmmerge.tensors.pickles import read_pickle

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64)
MODEL_CHECKPOINT = "pytorch_lightning.callbacks.model_checkpoint"


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"{dtype}": torch.randn(3, 5, generator=generator).to(dtype) for dtype in DTYPES}
    return made | {
        "scalar": torch.tensor(8.0),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 2, generator=generator)),
    }


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def repack(path: Path, compression: int = zipfile.ZIP_STORED, **replaced: bytes | None) -> Path:
    """The archive as another program would pack it; ``replaced`` records get other content, or go (None)."""
    packed = path.with_name(f"packed-{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for record in source.infolist():
            content = replaced.get(Path(record.filename).name.strip("."), source.read(record))
            if content is not None:
                target.writestr(record.filename, content)
    return packed


def assert_like_torch(path: Path, expected: dict[str, torch.Tensor]) -> None:
    infos = {info.name: info for info in read_pickle(path)}
    assert infos.keys() == expected.keys()
    for name, tensor in expected.items():
        read = infos[name].read()
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read.flatten().view(torch.uint8), tensor.detach().flatten().view(torch.uint8)), name


def test_every_dtype_reads_as_torch_load_reads_it(tmp_path: Path) -> None:
    path = save(tmp_path / "model.ckpt", weights())
    assert_like_torch(path, torch.load(path, weights_only=True))


def test_entries_are_in_file_order_and_the_source_reads_pickles(tmp_path: Path) -> None:
    path = save(tmp_path / "model.bin", {"state_dict": weights()})
    offsets = [info.offset for info in open_source(path)]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(weights())


def test_tied_tensors_and_slices_share_their_bytes(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    path = save(tmp_path / "tied.pt", {"b": table, "a": table, "row": table[1]})
    infos = {info.name: info for info in read_pickle(path)}
    assert list(infos) == ["a", "b", "row"]
    assert infos["a"].offset == infos["b"].offset == infos["row"].offset - 16
    assert_like_torch(path, {"a": table, "b": table, "row": table[1]})


def test_only_the_state_dict_is_weights(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(9)}}}],
        "stray": torch.ones(2),
        "state_dict": {"w": torch.zeros(2), "step": 7, 5: torch.ones(1)},
    }
    assert [info.name for info in read_pickle(save(tmp_path / "lightning.ckpt", content))] == ["w"]


def test_weights_saved_on_a_gpu_are_read_without_one(tmp_path: Path) -> None:
    path = save(tmp_path / "cpu.ckpt", {"w": torch.arange(4.0)})
    with zipfile.ZipFile(path) as archive:
        objects = archive.read("cpu/data.pkl").replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    packed = repack(path, **{"data.pkl": objects, "format_version": None})
    assert_like_torch(packed, {"w": torch.arange(4.0)})


@pytest.fixture
def model_checkpoint(monkeypatch: pytest.MonkeyPatch) -> type:
    """PyTorch Lightning's class, as far as a pickle names it: importable while writing only."""
    made = type("ModelCheckpoint", (), {"__module__": MODEL_CHECKPOINT})
    for depth in range(1, 4):
        name = ".".join(MODEL_CHECKPOINT.split(".")[:depth])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules[MODEL_CHECKPOINT], "ModelCheckpoint", made, raising=False)
    return made


def test_lightnings_leftovers_do_not_stop_a_checkpoint(
    tmp_path: Path, model_checkpoint: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = {model_checkpoint: {"best_model_score": np.float64(0.5), "best_model_path": "x.ckpt"}}
    path = save(tmp_path / "sd.ckpt", {"callbacks": callbacks, "state_dict": weights()})
    monkeypatch.undo()
    assert MODEL_CHECKPOINT not in sys.modules
    assert_like_torch(path, weights())
    with pytest.raises(pickle.UnpicklingError, match="ModelCheckpoint"):  # only that reading took it
        torch.load(path, weights_only=True)


class Calls:
    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("function", "named"), [(os.system, "system"), (eval, "eval"), (os.mkdir, "mkdir"), (getattr, "getattr")]
)
def test_a_pickle_that_calls_is_refused_and_calls_nothing(
    tmp_path: Path, function: object, named: str, nested: bool
) -> None:
    marker = tmp_path / "marker"
    argument = {
        "system": f"touch {marker}",
        "eval": f"open({str(marker)!r}, 'w')",
        "mkdir": str(marker),
        "getattr": "",
    }[named]
    arguments = ("", "upper") if named == "getattr" else (argument,)
    call = Calls(function, *arguments)
    state = {"w": torch.ones(2), "x": call}
    path = save(tmp_path / "evil.ckpt", {"state_dict": state} if nested else state)
    with pytest.raises(UnsafePickleError, match=named) as caught:
        read_pickle(path)
    assert "nothing in it was run" in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert "safetensors" in caught.value.hint
    assert not marker.exists()


def test_a_pickle_that_calls_what_it_built_is_refused(tmp_path: Path) -> None:
    """REDUCE on an object that is no allowed function names no global that a static look could find."""
    path = save(tmp_path / "model.ckpt", {"w": torch.ones(2)})
    called = b"\x80\x02}(X\x01\0\0\0aX\x01\0\0\0b\x85Ru."
    with pytest.raises(UnsafePickleError, match="nothing in it was run"):
        read_pickle(repack(path, **{"data.pkl": called}))


def test_a_plain_pickle_is_never_opened(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "plain.bin"
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {marker}")))
    with pytest.raises(FormatError, match="a pickle without an archive"):
        read_pickle(path)
    assert not marker.exists()


@pytest.mark.parametrize("keep", [1, 3, 200, -1])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path / "model.ckpt", weights())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match="truncated"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"w": torch.ones(2, 3).t()}, "strided"),
        ({"w": torch.ones(1).expand(4)}, "strided"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "complex64"),
        ({"w": torch.eye(2).to_sparse()}, "sparse"),
        ({"epoch": 1}, "no tensors"),
        ({"state_dict": ["w"]}, "no tensors"),
    ],
)
def test_what_is_no_plain_state_dict_is_said(tmp_path: Path, content: object, cause: str) -> None:
    with pytest.raises(FormatError, match=cause) as caught:
        read_pickle(save(tmp_path / "model.ckpt", content))
    assert caught.value.hint


def test_legacy_files_name_their_cure(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(weights(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"before 1\.6") as caught:
        read_pickle(path)
    assert "save it again" in caught.value.hint


def test_archives_of_other_programs_are_read_right_or_refused(tmp_path: Path) -> None:
    """torch reckons the offsets of archives that bear its format version without looking them up."""
    path = save(tmp_path / "model.ckpt", weights())
    assert_like_torch(repack(path, format_version=None), weights())
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with pytest.raises(FormatError, match="not where its archive"):
            read_pickle(repack(path, compression))


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "model.ckpt", weights())
    for mark in (b"big", b"little" * 1000):
        with pytest.raises(FormatError, match="big-endian"):
            read_pickle(repack(path, byteorder=mark, format_version=None))


def test_a_tensor_cannot_claim_bytes_beyond_its_storage(tmp_path: Path) -> None:
    path = save(tmp_path / "model.ckpt", {"w": torch.arange(4, dtype=torch.uint8)})
    with zipfile.ZipFile(path) as archive:
        objects = archive.read("model/data.pkl")
    claims_more = objects.replace(b"K\x04", b"K\x40")
    assert claims_more != objects
    with pytest.raises(FormatError):
        read_pickle(repack(path, **{"data.pkl": claims_more, "format_version": None}))


def test_a_damaged_pickle_is_one_clear_error(tmp_path: Path) -> None:
    path = save(tmp_path / "model.ckpt", {"w": torch.ones(4), "v": torch.ones(2)})
    with zipfile.ZipFile(path) as archive:
        objects = archive.read("model/data.pkl")
    for cut in range(0, len(objects), 7):
        for damaged in (objects[:cut], objects[:cut] + b"\xff" + objects[cut + 1 :]):
            with pytest.raises(FormatError):
                read_pickle(repack(path, **{"data.pkl": damaged, "format_version": None}))
                raise FormatError("a change that does not matter")


def test_random_damage_to_an_archive(tmp_path: Path) -> None:
    """Whatever the damage: an entry inside the file, or one clear error."""
    path = save(tmp_path / "model.ckpt", {"w": torch.ones(4), "v": torch.ones(2)})
    whole, random = path.read_bytes(), Random(0)
    directory = whole.index(b"PK\x01\x02")
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(random.choice((1, 1, 4))):
            byte = random.choice((0, 1, 255, random.randrange(256)))
            damaged[random.randrange(directory, len(whole))] = byte
        path.write_bytes(damaged)
        try:
            assert all(info.offset + info.nbytes <= len(whole) for info in read_pickle(path))
        except (FormatError, NotFoundError):
            refused += 1
    assert 0 < refused < 300


def test_torchscript_and_missing_files(tmp_path: Path) -> None:
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    with pytest.raises(FormatError):
        read_pickle(script)
    for missing in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(NotFoundError):
            read_pickle(missing)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"string_to_param": {"*": torch.ones(1, 768)}, "step": 3}, "string_to_param.*"),  # A1111's embedding
        ({768: ({"linear.0.weight": torch.ones(2, 2)}, {}), "name": "x"}, "768.0.linear.0.weight"),  # its hypernetwork
        ([torch.ones(1)], "0"),  # the first LoRAs
    ],
)
def test_what_is_no_state_dict_has_names_by_which_it_is_told(tmp_path: Path, content: object, name: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert list(open_source(tmp_path / "a.pt").tensors) == [name]
