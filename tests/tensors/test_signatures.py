"""What people have in place of weights is named, and what has another's suffix is read for what it is."""

import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save, save_file

from lcmmerge.errors import FormatError
from lcmmerge.tensors import open_source

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 165\n"
PORT = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
GRAPH = helper.make_model(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [PORT], [PORT]),
                          producer_name="pytorch")  # fmt: skip
CASES = {
    "pointer": (POINTER, "Git LFS pointer", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "web page", "signed in"),
    "bucket": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page", "signed in"),
    "answer": (b'{"error":"Unauthorized"}', "site's error or a config ('{\"error\":\"Unauthorized\"}')", "signed in"),
    "text": (b"Entry not found", "a text ('Entry not found')", "again"),
    "onnx": (GRAPH.SerializeToString(), "an ONNX graph", "checkpoint"),
    "archive": (b"7z\xbc\xaf\x27\x1c" + bytes(600), "a 7z archive", "unpack"),
    "tar": (bytes(1) + b"w" * 256 + b"ustar" + bytes(600), "a tar archive", "unpack"),
    "xz": (b"\xfd7zXZ\0" + bytes(600), "an xz archive", "unpack"),
    "array": (b"\x93NUMPY" + bytes(600), "one array of numpy", "safetensors"),
    "preview": (b"\x89PNG\r\n\x1a\n" + bytes(600), "a picture", "preview"),
    "empty": (b"", "is empty", "again"),
    "zeros": (bytes(5000), "all zeros", "again"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", CASES)
def test_what_holds_no_weights_is_named(tmp_path: Path, name: str, suffix: str) -> None:
    content, what, cure = CASES[name]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        open_source(path)
    assert what in caught.value.message
    assert cure in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_onnx_of_any_version_is_known() -> None:
    assert GRAPH.ir_version <= onnx.IR_VERSION < 0x20


@pytest.mark.parametrize("name", ["w.ckpt", "w.PT", "w.bin", "w.sft", "w.SAFETENSORS", "w.download", "w"])
def test_safetensors_of_any_name(tmp_path: Path, name: str) -> None:
    save_file({"w": torch.tensor([3.0])}, tmp_path / name)
    assert open_source(tmp_path / name)["w"].scalar() == 3


@pytest.mark.parametrize("name", ["w.safetensors", "w.CKPT", "w.sft", "w"])
def test_a_pickle_of_any_name(tmp_path: Path, name: str) -> None:
    torch.save({"w": torch.tensor([3.0])}, tmp_path / name)
    assert open_source(tmp_path / name)["w"].scalar() == 3


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_a_zip_archive_of_something_else_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("lora.safetensors", save({"w": torch.ones(2)}))
    with pytest.raises(FormatError, match=r"zip archive of other files \('lora\.safetensors' first\)") as caught:
        open_source(tmp_path / name)
    assert "unpack it" in caught.value.hint


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])
def test_a_pickle_of_old_is_named(tmp_path: Path, name: str) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"as torch before 1\.6 wrote it"):
        open_source(tmp_path / name)


@pytest.mark.parametrize("keep", [9, 100, -1])
def test_what_is_cut_off_is_still_called_truncated(tmp_path: Path, keep: int) -> None:
    (tmp_path / "w.ckpt").write_bytes(save({"w": torch.ones(64)})[:keep])
    with pytest.raises(FormatError, match="truncated"):
        open_source(tmp_path / "w.ckpt")


def test_a_folder_with_suffixes_of_either_case(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"w": torch.tensor([3.0])}, tmp_path / "unet" / "diffusion_pytorch_model.SFT")
    assert open_source(tmp_path)["unet.w"].scalar() == 3
