"""``lcmmerge.json``: what it says is so, and what is no manifest is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from fusing import Files

from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.export.manifest import NAME, ExportManifest, is_export, read_manifest
from lcmmerge.refs.reference import hub_reference


def test_every_file_is_told_with_its_hash(folder: Path, manifest: ExportManifest) -> None:
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del there[NAME]
    assert manifest.files == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in there.items()
    }


def test_components_are_as_their_graphs(folder: Path, manifest: ExportManifest) -> None:
    assert manifest.components.keys() == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    for said in manifest.components.values():
        assert said["weights"] in manifest.files
        for graph in said["graphs"].values():
            model = onnx.load(folder / graph["path"], load_external_data=False)
            assert [graph["opset"]] == [item.version for item in model.opset_import if not item.domain]
            for ports, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
                assert said[ports] == {value.name: _dims(value) for value in values}


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_merge_is_told_as_a_merged_file_tells_it(files: Callable[[str], Files], manifest: ExportManifest) -> None:
    recipe, sd1 = manifest.merge, files("sd1")
    assert [(term.name, term.strength) for term in recipe.terms] == [("style", 0.8), ("lcm", 1.0)]
    named = [recipe.base, *(term.source for term in recipe.terms)]
    for source, path in zip(named, (sd1.base(), sd1.style, sd1.lcm), strict=True):
        assert (source.reference, source.sha256) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    assert (manifest.sampling["scheduler"], manifest.sampling["steps"]) == ("LCMScheduler", 4)
    assert manifest.versions["torch"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 2}', '{"version": 1, "lcmmerge": "0"}'])
def test_what_is_no_manifest(damage: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(damage)
    with pytest.raises(FormatError, match="is not a manifest of this version, or damaged"):
        read_manifest(tmp_path)


def test_what_is_no_export(files: Callable[[str], Files], folder: Path) -> None:
    assert is_export(folder)
    assert not is_export(files("sd1").folder())
    with pytest.raises(NotFoundError, match="is not an export"):
        read_manifest(files("sd1").folder())


def test_a_damaged_recipe(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(folder / NAME, tmp_path / NAME)
    content = json.loads((tmp_path / NAME).read_text())
    del content["recipe"]["terms"]
    (tmp_path / NAME).write_text(json.dumps(content))
    with pytest.raises(FormatError, match="its merge recipe is damaged"):
        _ = read_manifest(tmp_path).merge


def test_a_source_in_the_hub_s_cache_is_told_by_its_reference() -> None:
    snapshot = Path("hub/models--owner--re--po/snapshots/0123abcd")
    assert hub_reference(snapshot / "sub/file.safetensors") == "hf://owner/re--po@0123abcd/sub/file.safetensors"
    assert hub_reference(snapshot) == "hf://owner/re--po@0123abcd"
    assert hub_reference(Path("models/file.safetensors")) is None
