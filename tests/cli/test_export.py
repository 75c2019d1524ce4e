"""``lcmmerge export`` and ``lcmmerge relambda`` as a person and a program meet them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from exporting import exported, graphs
from fusing import without_alpha
from recipefile import contents

from lcmmerge.export.manifest import read_manifest

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
FULL = """
mount -t tmpfs -o size=6m none "$1"
cp -r "$2" "$1/export"
cat /dev/zero > "$1/filler" 2> filled
"$3" -m lcmmerge relambda "$1/export" --lambda 0.1 0.2 --source "$4" --source "$5" --source "$6" > said 2> full; echo $?
diff -r "$2" "$1/export" && ls -A "$1"
"""


@pytest.fixture
def inputs(files):
    return files("sd1")


@pytest.fixture
def folder(inputs, tmp_path_factory):
    return exported(tmp_path_factory, inputs)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def merge(inputs):
    """The merge of the shared export, as arguments."""
    return (
        inputs.base(), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm", "--lambda", 0.8, 1.0,
        "--config-from", inputs.folder(),
    )  # fmt: skip


def test_a_merge_made_on_the_way(inputs, folder, out, cli, tmp_path_factory):
    more = ("--to", "tensorrt", "--static", "128x64", "--no-fused", "--cache", graphs(tmp_path_factory))
    done = cli("export", *merge(inputs), *more, "-o", out)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith(f"{out}  ")
    assert "unet/model.onnx" in done.out
    there, found = contents(folder), contents(out)
    assert {name for name in there if there[name] != found[name]} == {"lcmmerge.json"}  # which has a parity
    again = cli("export", *merge(inputs), "-o", out)
    assert (again.code, again.out) == (1, "")
    assert "exists already" in again.err


LOADED = """
import sys
from lcmmerge.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
print(sorted({"diffusers", "transformers"} & sys.modules.keys()))
"""


def test_what_is_in_the_cache_loads_no_library_that_made_it(inputs, folder, out, tmp_path_factory):
    words = ["export", *merge(inputs), "--no-fused", "--quiet", "--cache", graphs(tmp_path_factory), "-o", out]
    line = [sys.executable, "-c", LOADED, *map(str, words)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
    assert contents(out / "tokenizer") == contents(folder / "tokenizer")


def test_json_is_one_document_on_stdout(inputs, folder, out, cli, tmp_path_factory):
    more = ("--no-fused", "--cache", graphs(tmp_path_factory), "--json")
    done = cli("export", inputs.folder(), "-o", out, *more)
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert (report["output"], report["target"], report["architecture"]) == (str(out), "onnx", "sd1")
    assert report["recipe"]["terms"] == []
    assert report["sampling"]["scheduler"] == "DDIMScheduler"
    assert not (out / "tensorrt").exists()


def test_relambda(inputs, folder, cli, tmp_path):
    mine = shutil.copytree(folder, tmp_path / "mine")
    sources = [word for path in (inputs.base(), inputs.style, inputs.lcm) for word in ("--source", path)]
    done = cli("relambda", mine, "--lambda", 0.5, 1.0, *sources, "--json")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert [(term["term"], term["lambda"]) for term in report["terms"]] == [("style", 0.5), ("lcm", 1.0)]
    assert list(report["files"]) == ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    done = cli("relambda", mine, "--term", "lcm", 0.9, *sources)
    assert done.out.splitlines()[-1] == f"{mine}: style λ 0.5, lcm λ 0.9"


def test_an_alpha_that_is_told(inputs, folder, out, cli, tmp_path, tmp_path_factory):
    """As one in the file, 2; it is recorded, and another λ does not lose it."""
    style = without_alpha(inputs.style, tmp_path / "style.safetensors")
    base, _, *options = merge(inputs)
    more = ("--alpha", "style", 2, "--no-fused", "--cache", graphs(tmp_path_factory), "-o", out)
    done = cli("export", base, style, *options, *more)
    assert done.code == 0, done.err
    sources = [word for path in (inputs.base(), style, inputs.lcm) for word in ("--source", path)]
    for _ in range(2):
        for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
            assert (out / name).read_bytes() == (folder / name).read_bytes()
        assert read_manifest(out).recipe["terms"][0]["alpha"] == 2
        assert cli("relambda", out, "--lambda", 0.8, 1.0, *sources).code == 0


USAGE = {
    "alpha alone": (("export", "{folder}", "-o", "{out}", "--alpha", "style", 2), "nothing is merged: omit it"),
    "lambda alone": (("export", "{folder}", "-o", "{out}", "--lambda", 1, 1), "--lambda is of a merge"),
    "no folder": (("export", "{folder}"), "--output"),
    "dtype": (("export", "{folder}", "-o", "{out}", "--dtype", "int8"), "--dtype"),
    "static": (("export", "{folder}", "-o", "{out}", "--static", "100x64"), "multiples of 8"),
    "relambda": (("relambda", "{folder}"), "Give --lambda, or --term."),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(case, inputs, out, cli):
    arguments, words = USAGE[case]
    places = {"{folder}": inputs.folder(), "{out}": out}
    done = cli(*(places.get(word, word) for word in arguments))
    assert done.code == 2
    assert words in done.err
    assert not out.exists()


FAULTS = {
    "target": (("--to", "coreml"), 1, "'coreml': no such target"),
    "accelerator": (("--accelerator", "nitro"), 1, "nor the name of an accelerator"),
    "style": (("--adapter", "nowhere", 1), 1, "no such file or folder"),
    "configs": (("--config-from", "nowhere"), 1, "no such file or folder"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_one_line_and_its_cure(case, inputs, out, cli):
    arguments, code, words = FAULTS[case]
    cli("export", inputs.folder(), "-o", out, *arguments).assert_fault(code, words)
    assert not out.exists()


def test_what_cannot_draw_is_incompatible(files, out, cli):
    done = cli("export", files("sd1-inpainting").folder(), "-o", out)
    assert done.code == 3
    assert "draws from an image, not from a text alone" in done.err
    assert not out.exists()


@pytest.mark.e2e
def test_a_full_disk(inputs, folder, tmp_path):
    """The old weights stay, and nothing else does."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [*NAMESPACE, "mount", "-t", "tmpfs", "none", disk]
    if not shutil.which("unshare") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a file system")
    words = ("sh", "-c", FULL, "sh", disk, folder, sys.executable, inputs.base(), inputs.style, inputs.lcm)
    ended = subprocess.run([*NAMESPACE, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.split() == ["1", "export", "filler"], ended.stderr + (tmp_path / "full").read_text()
    error, hint = (tmp_path / "full").read_text().splitlines()
    assert error.startswith("Error: ") and "disk" in error.lower() + hint.lower()
