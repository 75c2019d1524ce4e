"""``lcmmerge check``: what it says, and its exit code."""

import json
import shutil

import pytest
from running import exact


@pytest.fixture(scope="module")
def untouched(files, tmp_path_factory):
    return exact(tmp_path_factory, files("sd1"))


@pytest.mark.e2e
def test_a_good_export(untouched, cli):
    done = cli("check", untouched)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{untouched}: 6 graphs keep every rule.\n"
    report = json.loads(cli("check", untouched, "--json").out)
    assert (len(report["graphs"]), report["broken"], report["engines"]) == (6, [], [])


@pytest.mark.e2e
def test_a_broken_one(untouched, cli, tmp_path):
    folder = shutil.copytree(untouched, tmp_path / "export")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    done = cli("check", folder)
    assert (done.code, done.out) == (3, "")
    lines = done.err.splitlines()
    assert lines[0] == f"Error: {folder}: 2 rules are broken"
    assert lines[1].startswith("  unet/model.onnx: places: the data of ")
    assert lines[-1].startswith("Hint: ")
    done = cli("check", folder, "--json")
    assert done.code == 3
    assert [item["rule"] for item in json.loads(done.out)["broken"]] == ["places", "places"]


def test_no_export(cli, tmp_path):
    done = cli("check", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert "holds no ONNX graph" in done.err
