"""What a base lacks is taken from another checkpoint where that is asked for, and ``position_ids`` are mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import folder, state_of
from fusing import assert_same, canonical, fuse, load, metadata
from merging import merge_of
from safetensors.torch import load_file, save_file

from lcmmerge.archs import identify
from lcmmerge.archs.completed import completed
from lcmmerge.bake.verify import verify
from lcmmerge.errors import IncompatibleError, NotFoundError, ShapeMismatchError, VerificationError
from lcmmerge.history import RECIPE
from lcmmerge.inspection import inspect
from lcmmerge.merge.plan import plan
from lcmmerge.tensors import open_source

LAYER = "cond_stage_model.transformer.text_model.encoder.layers.11."
PROJECTION = "conditioner.embedders.1.model.text_projection"
LAYOUTS = pytest.mark.parametrize("layout", ["single-file", "diffusers"])


def pruned(path: Path, target: Path, *begins: str) -> Path:
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith(begins)}, target)
    return target


def assert_verified(target: Path, *places: Path) -> None:
    found = verify(open_source(target), [str(place) for place in places])
    assert (found.different, found.stale) == ((), ())


@LAYOUTS
@pytest.mark.parametrize(
    ("name", "begins", "lender"),
    [("sd1", "first_stage_model.", "folder"), ("sd1", LAYER, "file"), ("sdxl", PROJECTION, "folder")],
    ids=["VAE", "layer", "projection"],
)
def test_what_a_file_lacks_is_taken_as_if_it_had_been_there(name, begins, lender, layout, files, tmp_path):
    inputs = files(name)
    base = pruned(inputs.base(), tmp_path / "base.safetensors", begins)
    parts = inputs.base() if lender == "file" else inputs.folder()
    names = ("whole", "made") if layout == "diffusers" else ("whole.safetensors", "made.safetensors")
    whole, made = (tmp_path / each for each in names)
    options = {"layout": layout} | ({"config_from": inputs.folder()} if layout == "diffusers" else {})
    fuse(inputs.base(), whole, inputs.style, inputs.lcm, **options)
    report = fuse(base, made, inputs.style, inputs.lcm, parts_from=parts, **options)
    assert_same(load(made), load(whole))
    ((file, lent),) = report.lent.items()
    assert (file, sum(lent.values())) == (parts.name, len(canonical(inputs.base())) - len(canonical(base)))
    assert_verified(made, tmp_path, inputs.root)


@LAYOUTS
def test_a_unet_alone_becomes_a_whole_model(layout, files, tmp_path):
    """The adapters reach the text encoder that was lent; a folder's configs are the lender's where none are named."""
    inputs = files("sd1")
    made = tmp_path / ("made" if layout == "diffusers" else "made.safetensors")
    fuse(inputs.folder() / "unet", made, inputs.style, inputs.lcm, parts_from=inputs.folder(), layout=layout)
    fuse(inputs.folder(), tmp_path / "whole", inputs.style, inputs.lcm)
    assert_same(canonical(made), canonical(tmp_path / "whole"))
    assert_verified(made, inputs.folder(), inputs.root)
    if layout == "diffusers":
        StableDiffusionPipeline.from_pretrained(made, local_files_only=True)


def test_a_unet_alone_needs_no_layout(files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.folder() / "unet", tmp_path / "made.safetensors", lcm=inputs.lcm, parts_from=inputs.base())
    fuse(inputs.base(), tmp_path / "whole.safetensors", lcm=inputs.lcm)
    assert_same(load(tmp_path / "made.safetensors"), load(tmp_path / "whole.safetensors"))


@LAYOUTS
@pytest.mark.parametrize("listed", [True, False])
def test_a_folder_without_a_part(listed, layout, files, tmp_path):
    """Its index names the part, as of a download that is not whole, or does not."""
    inputs, base = files("sd1"), tmp_path / "base"
    shutil.copytree(inputs.folder(), base)
    index = json.loads((base / "model_index.json").read_text())
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.rmtree(base / part)
        index = index if listed else {name: value for name, value in index.items() if name != part}
    (base / "model_index.json").write_text(json.dumps(index))
    made = tmp_path / ("made" if layout == "diffusers" else "made.safetensors")
    fuse(base, made, inputs.style, inputs.lcm, parts_from=inputs.folder(), layout=layout)
    fuse(inputs.folder(), tmp_path / "whole", inputs.style, inputs.lcm)
    assert_same(canonical(made), canonical(tmp_path / "whole"))
    if layout == "diffusers":
        pipeline = StableDiffusionPipeline.from_pretrained(made, local_files_only=True)
        assert pipeline.tokenizer("a fox").input_ids


@pytest.mark.parametrize(("name", "optional"), [("wan", "transformer_2"), ("cosmos2", "text_conditioner")])
def test_a_component_that_only_some_models_have_is_not_asked_for(name, optional, tmp_path):
    base, lender = (folder(tmp_path / part, name, state_of(name)) for part in ("base", "lender"))
    index = json.loads((lender / "model_index.json").read_text())
    for part in ("text_encoder", "vae"):
        index[part] = ["diffusers", "Model"]
        (lender / part).mkdir()
        save_file({"layer.weight": torch.ones(2, 2)}, lender / part / "model.safetensors")
    (lender / "model_index.json").write_text(json.dumps(index))
    whole = completed(identify(open_source(base)), identify(open_source(lender)))
    assert whole.components == ("transformer", "text_encoder", "vae") and optional in whole.arch.components


def test_nothing_is_taken_unasked(files, tmp_path):
    """--config-from often names a folder with weights."""
    inputs = files("sd1")
    base = pruned(inputs.base(), tmp_path / "base.safetensors", "first_stage_model.")
    options = {"lcm": inputs.lcm, "layout": "diffusers", "config_from": inputs.folder()}
    with pytest.raises(IncompatibleError, match="has no vae, and") as caught:
        fuse(base, tmp_path / "made", **options)
    assert "--parts-from" in caught.value.hint


@pytest.mark.parametrize(
    ("begins", "lender", "error", "said"),
    [
        ("first_stage_model.", "sd2", IncompatibleError, "is Stable Diffusion 2, whose parts are not those of"),
        ("first_stage_model.", "pruned", IncompatibleError, "has no vae either, which"),
        (LAYER, "pruned", IncompatibleError, r"has no text_encoder\.text_model\.encoder\.layers\.11\..* and 15 more"),
        ("first_stage_model.", "wide", ShapeMismatchError, "is for text of width 8, and the base for 16"),
        (LAYER, "other", ShapeMismatchError, r"position_embedding\.weight is \[76, 16\], and the base's \[77, 16\]"),
    ],
)
def test_what_does_not_fit_is_refused(begins, lender, error, said, files, tmp_path):
    inputs = files("sd1")
    base = pruned(inputs.base(), tmp_path / "base.safetensors", begins)
    stored = load_file(inputs.base())
    if lender == "pruned":
        parts = base
    elif lender == "sd2":
        parts = files("sd2").base()
    else:
        parts = tmp_path / "parts.safetensors"
        end = "attn2.to_k.weight" if lender == "wide" else "position_embedding.weight"
        stored |= {
            key: (tensor[:, :8] if lender == "wide" else tensor[:76]).contiguous()
            for key, tensor in stored.items()
            if key.endswith(end)
        }
        save_file(stored, parts)
    with pytest.raises(error, match=said) as caught:
        fuse(base, tmp_path / "made.safetensors", lcm=inputs.lcm, parts_from=parts)
    assert "--parts-from" in caught.value.hint
    assert not (tmp_path / "made.safetensors").exists()


def test_plan_metadata_and_verify_say_where_parts_came_from(files, tmp_path):
    inputs = files("sd1")
    base = pruned(inputs.base(), tmp_path / "base.safetensors", "first_stage_model.")
    parts = shutil.copy(inputs.base(), tmp_path / "parts.safetensors")
    made = tmp_path / "made.safetensors"
    planned = plan(merge_of(base, made, strengths=(1, 1), lcm=inputs.lcm, parts_from=parts))
    assert planned.as_dict()["parts_from"] == {"file": "parts.safetensors", "parameters": {"vae": 248}}
    fuse(base, made, lcm=inputs.lcm, parts_from=parts)
    recorded = json.loads(metadata(made)[RECIPE])
    assert recorded["parts_from"]["name"] == "parts.safetensors"
    assert len(recorded["parts_from"]["sha256"]) == 64
    parts.unlink()
    with pytest.raises(NotFoundError, match=r"parts\.safetensors"):
        verify(open_source(made), [str(tmp_path), str(inputs.lcm)])
    save_file(load_file(inputs.base()) | {"more": torch.zeros(1)}, parts)
    with pytest.raises(VerificationError, match=r"parts\.safetensors"):
        verify(open_source(made), [str(tmp_path), str(inputs.lcm)])


def test_a_whole_base_takes_nothing(files, tmp_path):
    inputs = files("sd1")
    planned = plan(merge_of(inputs.base(), tmp_path / "made", lcm=inputs.lcm, parts_from=inputs.folder()))
    assert any("nothing is taken from" in doubt for doubt in planned.doubts)


IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
RIGHT = torch.arange(77)[None]


def with_ids(files, tmp_path: Path, ids: torch.Tensor) -> Path:
    path = tmp_path / "base.safetensors"
    save_file(load_file(files("sd1").base()) | {IDS: ids}, path)
    return path


@pytest.mark.parametrize(
    ("ids", "broken"),
    [
        (RIGHT, False),
        (RIGHT.half(), False),
        (RIGHT.float() - 0.01, True),
        (RIGHT + 1, True),
        (RIGHT.to(torch.float8_e4m3fn), True),
    ],
    ids=["right", "fp16", "averaged", "shifted", "fp8"],
)
def test_broken_position_ids_are_named_and_mended_when_asked(ids, broken, files, tmp_path):
    inputs, base, made = files("sd1"), with_ids(files, tmp_path, ids), tmp_path / "made.safetensors"
    assert inspect(open_source(base)).content.broken == ((IDS,) if broken else ())
    doubts = plan(merge_of(base, made, lcm=inputs.lcm)).doubts
    assert any("--mend-position-ids" in doubt for doubt in doubts) == broken
    assert not plan(merge_of(base, made, lcm=inputs.lcm, mend_position_ids=True)).doubts
    fuse(base, made, lcm=inputs.lcm, mend_position_ids=True)
    fuse(base, tmp_path / "as-it-was.safetensors", lcm=inputs.lcm)
    assert_same(load(made), load(tmp_path / "as-it-was.safetensors") | {IDS: RIGHT})
    assert_verified(made, tmp_path, inputs.root)
    found = load(tmp_path / "as-it-was.safetensors")[IDS]
    assert found.dtype == ids.dtype


def test_position_ids_of_a_folder(files, tmp_path):
    """As transformers wrote them until 4.31."""
    inputs, base = files("sd1"), tmp_path / "base"
    shutil.copytree(inputs.folder(), base)
    file = base / "text_encoder/model.safetensors"
    save_file(load_file(file) | {"text_model.embeddings.position_ids": RIGHT + 1}, file)
    fuse(base, tmp_path / "made", lcm=inputs.lcm, mend_position_ids=True)
    found = load(tmp_path / "made")["text_encoder.text_model.embeddings.position_ids"]
    assert torch.equal(found, RIGHT)
    assert found.dtype == torch.int64
    assert_verified(tmp_path / "made", base, inputs.root)


def test_the_command_says_it_all(files, tmp_path, cli):
    inputs = files("sd1")
    base = pruned(with_ids(files, tmp_path, RIGHT + 1), tmp_path / "pruned.safetensors", "first_stage_model.")
    words = ["fuse", base, "--lcm", inputs.lcm, "--parts-from", inputs.base(), "-o", tmp_path / "made.safetensors"]
    done = cli(*words, "--dry-run")
    assert f"248 parameters of the vae are those of {inputs.base().name}." in done.out
    assert f"{IDS} is not 0, 1, 2 …" in done.err
    done = cli(*words, "--mend-position-ids")
    assert done.code == 0
    assert f"248 parameters of the vae are those of {inputs.base().name}." in done.out
    assert "position_ids" not in done.err
    command = merge_of(base, lcm=inputs.lcm, parts_from="p", mend_position_ids=True).command()
    assert "--parts-from p" in command
    assert command.endswith("--mend-position-ids")
    assert f"{IDS} is not 0, 1, 2 …" in cli("inspect", base).err
    assert cli("verify", tmp_path / "made.safetensors", "--source", tmp_path, "--source", inputs.root).code == 0

