"""Another λ for an export: new weights, the same graphs; and what is refused before anything is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import onnxruntime
import pytest
from exporting import exported, rewrite_copy
from forked import killed_at_each_rename
from fusing import Files, canonical, edited, fuse, load, raw
from recipefile import contents

from lcmmerge.errors import (
    FormatError,
    IncompatibleError,
    LcmMergeError,
    NotFoundError,
    VerificationError,
)
from lcmmerge.export.manifest import read_manifest
from lcmmerge.export.relambda import Rewritten, relambda
from lcmmerge.output import Output

NEW = {"style": 0.3, "lcm": 0.9}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def sd1(files: Callable[[str], Files]) -> Files:
    return files("sd1")


@pytest.fixture
def folder(sd1: Files, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export to be changed."""
    return shutil.copytree(exported(tmp_path_factory, sd1), tmp_path / "export")


def change(folder: Path, *places: Path, **strengths: float) -> Rewritten:
    return relambda(folder, strengths or NEW, [str(place) for place in places], Output(quiet=True))


def sources(files: Files) -> tuple[Path, ...]:
    return files.base(), files.style, files.lcm


def opened(graph: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def states(session: onnxruntime.InferenceSession) -> np.ndarray:
    return session.run(["last_hidden_state"], {"input_ids": np.arange(77)[None]})[0]


def test_weights_are_a_fresh_bake_s_and_graphs_stay(sd1: Files, folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    rewritten = change(folder, *sources(sd1))
    after = contents(folder)
    assert rewritten.files == ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
    told = {"lcmmerge.json", *(name for name in before if name.startswith("tensorrt/ort/"))}
    assert {name for name in before if before[name] != after[name]} == {*rewritten.files, *told}
    baked = tmp_path / "baked.safetensors"
    fuse(sd1.base(), baked, sd1.style, sd1.lcm, (NEW["style"], NEW["lcm"]))
    found, expected = canonical(folder), canonical(baked)
    assert all(raw(found[name]).equal(raw(tensor)) for name, tensor in expected.items())
    assert before.keys() == after.keys()
    manifest = read_manifest(folder)
    assert {term["term"]: term["lambda"] for term in manifest.recipe["terms"]} == NEW
    assert manifest.parity == {}  # was of other weights


def test_there_and_back_is_where_it_was(sd1: Files, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    change(folder, *sources(sd1))
    change(folder, *sources(sd1), style=0.8, lcm=1.0)
    before = contents(exported(tmp_path_factory, sd1))
    found = contents(folder)
    assert {name for name in before if before[name] != found[name]} == {"lcmmerge.json"}  # which lacks the parity


def test_a_session_keeps_the_weights_that_it_opened(sd1: Files, folder: Path) -> None:
    session = opened(folder / "text_encoder/model.onnx")
    mapped = np.memmap(folder / "text_encoder/model.safetensors", mode="r")
    stored, before = bytes(mapped), states(session)
    change(folder, *sources(sd1))
    assert bytes(mapped) == stored
    assert np.array_equal(states(session), before)
    assert not np.array_equal(states(opened(folder / "text_encoder/model.onnx")), before)


def test_sources_are_found_beside_it(sd1: Files, folder: Path) -> None:
    for source in sources(sd1):
        (folder.parent / source.name).symlink_to(source)
    change(folder)
    assert canonical(folder)  # and nothing was raised


def test_engines_of_the_old_weights_are_removed(sd1: Files, folder: Path) -> None:
    (folder / "tensorrt/engines").mkdir()
    (folder / "tensorrt/engines/unet-dynamic.plan").write_bytes(b"old")
    assert change(folder, *sources(sd1)).removed == ("tensorrt/engines",)
    assert not (folder / "tensorrt/engines").exists()


def test_a_source_that_is_another_is_refused(sd1: Files, folder: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "elsewhere" / sd1.style.name
    stranger.parent.mkdir()
    name, tensor = next(iter(load(sd1.style).items()))
    edited(sd1.style, stranger, **{name: tensor + 1})
    before = contents(folder)
    with pytest.raises(VerificationError, match="its sha256 differs"):
        change(folder, sd1.base(), stranger, sd1.lcm)
    with pytest.raises(NotFoundError, match="is not here"):
        change(folder, sd1.base(), sd1.lcm)
    assert contents(folder) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_base_that_nobody_hashed_is_told_by_its_weights(sd1: Files, folder: Path, tmp_path: Path) -> None:
    """`lcmmerge fuse` records the base's hash only when asked."""
    manifest = folder / "lcmmerge.json"
    recorded = f'"sha256": "{read_manifest(folder).recipe["base"]["sha256"]}"'
    manifest.write_text(manifest.read_text().replace(recorded, '"sha256": null'))
    stranger = tmp_path / "elsewhere" / sd1.base().name
    stranger.parent.mkdir()
    weights = {name: tensor * 2 for name, tensor in load(sd1.base()).items()}
    edited(sd1.base(), stranger, **weights)
    before = contents(folder)
    with pytest.raises(VerificationError, match="is not the base that was merged"):
        change(folder, stranger, sd1.style, sd1.lcm)
    assert contents(folder) == before
    change(folder, *sources(sd1))
    assert read_manifest(folder).recipe["base"]["sha256"]  # from now on


@pytest.mark.e2e
def test_killed_at_any_rename_and_run_again(sd1: Files, folder: Path, tmp_path: Path) -> None:
    """Two λs side by side are never taken for an export."""
    killed = tmp_path / "killed"
    calls = [(folder, killed / str(number) / "export", NEW, sources(sd1)) for number in range(100)]
    assert forked.run(killed_at_each_rename, rewrite_copy, calls).returncode == 0
    before = contents(folder)
    change(folder, *sources(sd1))
    after = contents(folder)
    states = [place / "export" for place in sorted(killed.iterdir())]
    assert len(states) == 5  # a manifest, two weight files, a manifest; and the last is whole
    assert contents(states[0]) == before
    assert contents(states[-1]) == after
    for half in states[1:-1]:
        with pytest.raises(FormatError, match="a change of λ was cut off"):
            read_manifest(half)
        relambda(half, {}, [str(source) for source in sources(sd1)], Output(quiet=True))
        assert contents(half) == after


def _gone(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _of_the_vae(path: Path) -> None:
    shutil.copyfile(path.parent.parent / "vae/diffusion_pytorch_model.safetensors", path)


DAMAGE = {"gone": (_gone, NotFoundError), "cut": (_cut, FormatError), "another": (_of_the_vae, IncompatibleError)}


@pytest.mark.parametrize("case", DAMAGE)
def test_an_export_whose_links_are_broken(case: str, sd1: Files, folder: Path) -> None:
    damage, kind = DAMAGE[case]
    damage(folder / UNET)
    before = contents(folder)
    with pytest.raises(kind, match="unet"):
        change(folder, *sources(sd1))
    assert contents(folder) == before


def test_what_has_no_such_lambda(sd1: Files, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LcmMergeError, match="no term of it is called 'papercut'") as error:
        change(folder, papercut=1.0)
    assert error.value.hint == "its terms are style, lcm"
    with pytest.raises(LcmMergeError, match="λ of style: not a finite number"):
        change(folder, style=float("nan"))
    with pytest.raises(NotFoundError, match=r"has no lcmmerge\.json"):
        change(sd1.folder())
    manifest = folder / "lcmmerge.json"
    recipe = read_manifest(folder).recipe
    content = manifest.read_text()
    assert recipe["terms"]
    start = content.index('"terms": [')
    manifest.write_text(content[:start] + '"terms": []' + content[content.index("\n    ]", start) + 6 :])
    with pytest.raises(IncompatibleError, match="records no merge"):
        change(folder)
