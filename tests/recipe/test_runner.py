"""Runs: nothing is done twice, nothing is left half done, and the same recipe gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from fusing import Files, edited, fuse, metadata
from recipefile import contents, due, recipe, run
from safetensors.torch import load_file, save_file

from lcmmerge.bake import fuse as merge
from lcmmerge.bake.verify import verify
from lcmmerge.errors import (
    AlreadyFusedError,
    FormatError,
    IncompatibleError,
    LockError,
    OptionError,
    OutputError,
    QualityError,
    RecipeError,
)
from lcmmerge.recipe import runner
from lcmmerge.recipe.loader import load
from lcmmerge.recipe.lock import lock_text, read_lock
from lcmmerge.recipe.runner import lock_of
from lcmmerge.tensors import open_source
from lcmmerge.tensors.digest import sha256_of
from lcmmerge.tensors.encodings import nvfp4
from lcmmerge.tensors.encodings.base import matrices
from lcmmerge.tensors.staging import write_text


@pytest.fixture
def sd1(files: Callable[[str], Files]) -> Files:
    return files("sd1")


def test_everything_is_there(sd1: Files, tmp_path: Path) -> None:
    manifest = run(recipe(tmp_path, sd1), tmp_path / "out")
    found = contents(tmp_path / "out")
    assert found.keys() == {".lcmmerge.lock", "pico.yaml.lock", "run.json", "pico/pico.safetensors", "pico/README.md"}
    assert json.loads(found["run.json"]) == json.loads(json.dumps(manifest.as_dict()))
    assert str(tmp_path).encode() not in b"".join(found.values())
    fused = manifest.steps["fuse pico"]
    assert fused.figures["coverage"] == {"style": 1.0, "lcm": 1.0}
    assert fused.figures["bytes"] == len(found["pico/pico.safetensors"])
    recorded = json.loads(metadata(tmp_path / "out" / "pico" / "pico.safetensors")["sd_merge_recipe"])
    assert recorded["recipe_sha256"] == fused.key
    assert [(term["term"], term["lambda"]) for term in recorded["terms"]] == [("style", 0.8), ("lcm", 1.0)]


def test_the_weights_are_those_of_a_fuse(sd1: Files, tmp_path: Path) -> None:
    manifest = run(recipe(tmp_path, sd1), tmp_path / "out")
    report = fuse(sd1.base(), tmp_path / "direct.safetensors", sd1.style, sd1.lcm)
    assert manifest.steps["fuse pico"].figures["tensors_sha256"] == {
        "pico.safetensors": next(iter(report.sha256.values()))
    }


def test_a_method(sd1: Files, tmp_path: Path) -> None:
    """Another output, by a step of its own; the card says it."""
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    keys = {text: run(path, out, f"fuse.method={text}").steps["fuse pico"].key for text in ("add", "ties:density=0.3")}
    assert keys["add"] == run(path, tmp_path / "plain").steps["fuse pico"].key
    assert len(set(keys.values())) == 2
    report = fuse(sd1.base(), tmp_path / "direct.safetensors", sd1.style, sd1.lcm, method="ties:density=0.3")
    recorded = metadata(out / "pico" / "pico.safetensors")
    assert recorded["modelspec.hash_sha256"] == f"0x{next(iter(report.sha256.values()))}"
    assert "θ′ = θ + ties:density=0.3(0.8·τ(style), 1·τ(lcm))" in (out / "pico" / "README.md").read_text("utf-8")
    with pytest.raises(RecipeError) as error:
        due(path, out, "fuse.method=ties:density=2")
    assert "fuse.method: " in error.value.details[0] and "density is 2" in error.value.details[0]


def test_sources_are_hashed_once(sd1: Files, tmp_path: Path) -> None:
    """What the pin hashed is known to the merge, which records it as it is told."""
    prepared = runner.prepare(load(recipe(tmp_path, sd1, base=sd1.folder())), runner.RunRequest(tmp_path / "out"))
    plan = prepared.builds[0].plan
    assert all(set(source.files) == source.sha256.keys() & set(source.files) for source in plan.sources.values())
    told = replace(plan.base.source, sha256=dict.fromkeys(plan.base.source.files, "ab" * 32))
    (tmp_path / "out").mkdir()
    merge.fuse(replace(plan, base=replace(plan.base, source=told)))
    recorded = json.loads(metadata(tmp_path / "out/pico/vae/diffusion_pytorch_model.safetensors")["sd_merge_recipe"])
    assert recorded["base"]["sha256"] == sha256_of(told.files, known=told.sha256)
    assert recorded["terms"][0]["sha256"] == sha256_of([tmp_path / "style.safetensors"])


def test_what_is_done_is_not_done_again(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    assert due(path, out) == {"fuse pico": "not done yet", "card pico": "follows fuse pico"}
    assert not out.exists()
    run(path, out)
    before, stamp = contents(out), (out / "pico" / "pico.safetensors").stat()
    assert due(path, out) == {"fuse pico": None, "card pico": None}
    run(path, out)
    assert contents(out) == before
    after = (out / "pico" / "pico.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)


def test_comments_and_checks_change_no_step(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    run(path, out)
    path.write_text(path.read_text() + "# a comment\ncheck: {signal: {min: 1}}\n")
    assert set(due(path, out).values()) == {None}


def test_a_term_without_a_strength_has_its_accelerator_s(sd1: Files, tmp_path: Path) -> None:
    """And what its licence asks stands in the card."""
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    said = path.read_text().replace("accelerator: lcm", "accelerator: krea2-turbo").replace("lcm: 1.0", "lcm: {}")
    path.write_text(said)
    run(path, out)
    recorded = json.loads(metadata(out / "pico" / "pico.safetensors")["sd_merge_recipe"])
    assert [(term["term"], term["lambda"]) for term in recorded["terms"]] == [("style", 0.8), ("lcm", 0.8)]
    card = (out / "pico" / "README.md").read_text()
    assert "**krea2-turbo is under krea-2-community-license: what is made of it must be named “Krea …”" in card
    assert "- guidance: 0\n" in card
    assert set(due(path, out).values()) == {None}


def test_a_description_changes_the_card_alone(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    run(path, out)
    path.write_text(path.read_text() + "description: A fox.\n")
    assert due(path, out) == {"fuse pico": None, "card pico": "its inputs or parameters changed"}
    run(path, out)
    assert "A fox." in (out / "pico" / "README.md").read_text()


def test_what_rounding_kept_is_in_the_card_and_has_bounds(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1, more="check: {kept: {min: 1.5}}\n"), tmp_path / "out"
    with pytest.raises(QualityError) as caught:
        run(path, out, "fuse.dtype=fp8_e4m3fn")
    assert any("pico lcm unet: kept is " in line for line in caught.value.details)
    assert "## Rounding\n\nRounding kept " in (out / "pico" / "README.md").read_text()
    plain, other = recipe(tmp_path, sd1, name="plain.yaml"), tmp_path / "plain"
    run(plain, other, "fuse.dtype=fp32")
    assert "Rounding" not in (other / "plain" / "README.md").read_text()


@pytest.mark.e2e
def test_another_strength_redoes_fuse_and_what_follows(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1, more="matrix: {lambda.style: [0.5, 1.0]}\n"), tmp_path / "out"
    run(path, out)
    before = contents(out)
    path.write_text(path.read_text().replace("0.5", "0.6"))
    assert due(path, out) == {
        "fuse pico-style0.6": "not done yet",
        "card pico-style0.6": "follows fuse pico-style0.6",
        "fuse pico-style1": None,
        "card pico-style1": None,
    }
    single, alone = recipe(tmp_path, sd1, name="single.yaml"), tmp_path / "single"
    run(single, alone)
    assert due(single, alone, "lambda.style=0.7")["fuse single"] == "its inputs or parameters changed"
    run(single, alone, "lambda.style=0.7")
    run(single, tmp_path / "fresh", "lambda.style=0.7")
    assert contents(alone) == contents(tmp_path / "fresh")
    run(path, out)
    assert {name for name, data in contents(out).items() if before.get(name) == data} >= {
        name for name in before if name.startswith("pico-style")
    }


@pytest.mark.parametrize(
    "layouts",
    [
        ("single-file", "diffusers"),
        pytest.param(("diffusers", "single-file"), marks=pytest.mark.e2e),
        pytest.param(("diffusers", "diffusers"), marks=pytest.mark.e2e),
    ],
)
def test_layouts_follow_each_other(sd1: Files, tmp_path: Path, layouts: tuple[str, str]) -> None:
    path = recipe(tmp_path, sd1)
    path.write_text(path.read_text().replace("sources:", f"sources:\n  configs: {sd1.folder()}"))
    sets = [
        (f"fuse.layout={layout}", "fuse.config_from=configs", f"lambda.lcm={index}")
        for index, layout in enumerate(layouts)
    ]
    run(path, tmp_path / "out", *sets[0])
    run(path, tmp_path / "out", *sets[1])
    run(path, tmp_path / "fresh", *sets[1])
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert set(due(path, tmp_path / "out", *sets[1]).values()) == {None}


def test_a_diffusers_output_loads_with_its_scheduler(sd1: Files, tmp_path: Path) -> None:
    path = recipe(tmp_path, sd1, base=sd1.folder())
    run(path, tmp_path / "out")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out" / "pico")
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    assert (tmp_path / "out" / "pico" / "README.md").exists()


def test_diffusers_of_a_single_file_needs_configs(sd1: Files, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="config_from is missing"):
        run(recipe(tmp_path, sd1), tmp_path / "out", "fuse.layout=diffusers")


def test_outputs_that_were_touched_are_made_again_when_that_is_asked_for(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    run(path, out)
    whole = contents(out)
    weights = out / "pico" / "pico.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    touched = contents(out)
    with pytest.raises(OutputError, match="did not make, or what was changed since: 1") as refused:
        run(path, out)
    assert refused.value.details == (str(weights),)
    assert contents(out) == touched
    run(path, out, force=True)
    assert contents(out) == whole
    weights.unlink()
    assert due(path, out)["fuse pico"] == "its output is gone or was changed"
    run(path, out)
    assert contents(out) == whole
    (out / "pico" / "README.md").unlink()
    assert due(path, out) == {"fuse pico": None, "card pico": "its output is gone or was changed"}
    run(path, out)
    assert contents(out) == whole


def test_what_others_wrote_is_not_replaced(sd1: Files, tmp_path: Path) -> None:
    path, folder = recipe(tmp_path, sd1), tmp_path / "out" / "pico"
    folder.mkdir(parents=True)
    (folder / "pico.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="would replace what lcmmerge did not make"):
        run(path, tmp_path / "out")
    assert contents(tmp_path / "out") == {"pico/pico.safetensors": b"mine"}
    run(path, tmp_path / "out", force=True)
    run(path, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_an_adapter_is_not_fused_twice(sd1: Files, tmp_path: Path) -> None:
    fuse(sd1.base(), tmp_path / "once.safetensors", lcm=sd1.lcm)
    path = recipe(tmp_path, sd1, base=tmp_path / "once.safetensors")
    with pytest.raises(AlreadyFusedError):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(path, tmp_path / "out", force=True)


def test_a_run_that_cannot_work_leaves_nothing(sd1: Files, files: Callable[[str], Files], tmp_path: Path) -> None:
    path = recipe(tmp_path, sd1)
    (tmp_path / "style.safetensors").unlink()
    (tmp_path / "style.safetensors").symlink_to(files("sdxl").style)
    with pytest.raises(IncompatibleError):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_records(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    out.mkdir()
    for text in ("{", "[]", '{"version": 9}', '{"version": 1, "steps": 1}'):
        (out / "run.json").write_text(text)
        with pytest.raises(FormatError):
            run(path, out)


def locked(path: Path) -> None:
    write_text(load(path).lock, lock_text(lock_of(load(path))))


def test_locked(sd1: Files, tmp_path: Path) -> None:
    path = recipe(tmp_path, sd1)
    with pytest.raises(LockError, match="cannot be read"):
        run(path, tmp_path / "out", locked=True)
    locked(path)
    run(path, tmp_path / "out", locked=True)
    assert read_lock(tmp_path / "out" / "pico.yaml.lock") == read_lock(load(path).lock) == lock_of(load(path))


def test_drift(sd1: Files, tmp_path: Path) -> None:
    path = recipe(tmp_path, sd1)
    locked(path)
    (tmp_path / "style.safetensors").unlink()
    (tmp_path / "style.safetensors").write_bytes(sd1.lcm.read_bytes())
    (tmp_path / "other.safetensors").symlink_to(sd1.lcm)
    path.write_text(path.read_text().replace("lcm.safetensors", "other.safetensors"))
    with pytest.raises(LockError) as caught:
        run(path, tmp_path / "out", locked=True)
    assert caught.value.exit_code == 5
    assert caught.value.details[0] == "lcm: was lcm.safetensors, is other.safetensors"
    assert caught.value.details[1].startswith("style: style.safetensors changed: sha256 ")
    assert not (tmp_path / "out").exists()
    run(path, tmp_path / "out")  # without --locked, what is there now


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 9, "sources": {}}', '{"version": 1, "sources": {"base": {}}}']
)
def test_damaged_locks(sd1: Files, tmp_path: Path, text: str) -> None:
    path = recipe(tmp_path, sd1)
    load(path).lock.write_text(text)
    with pytest.raises(LockError):
        run(path, tmp_path / "out", locked=True)


def test_checks(sd1: Files, tmp_path: Path) -> None:
    more = "check: {coverage: {min: 1}, relative: {max: 0.01}, signal: {min: 1e9}, bytes: {min: 1, max: 2}}\n"
    path, out = recipe(tmp_path, sd1, more=more), tmp_path / "out"
    with pytest.raises(QualityError) as caught:
        run(path, out)
    assert caught.value.exit_code == 4
    assert [line.partition(" is ")[0] for line in caught.value.details] == [
        "pico style unet: relative", "pico style text_encoder: relative", "pico lcm unet: relative",
        "pico style unet: signal", "pico style text_encoder: signal", "pico lcm unet: signal", "pico: bytes",
    ]  # fmt: skip
    assert "must be at most 0.01" in caught.value.details[0]
    assert "must be at least 1e+09" in caught.value.details[3]
    recorded = json.loads((out / "run.json").read_text())["check"]
    assert sum(item["kept"] for item in recorded) == 2
    assert set(due(path, out).values()) == {None}  # the outputs are whole: only their quality is not
    with pytest.raises(QualityError):
        run(path, out)
    path.write_text(path.read_text().replace("0.01", "10").replace("1e9", "1").replace("max: 2}", "max: 1e9}"))
    assert all(item["kept"] for item in run(path, out).check)


def test_coverage_counts_what_has_no_home(sd1: Files, tmp_path: Path) -> None:
    stored = load_file(sd1.lcm)
    module = next(iter(stored)).partition(".")[0]
    stray = {
        f"lora_unet_nowhere{name.removeprefix(module)}": stored[name]
        for name in stored
        if name.startswith(f"{module}.")
    }
    path = recipe(tmp_path, sd1)
    (tmp_path / "lcm.safetensors").unlink()
    edited(sd1.lcm, tmp_path / "lcm.safetensors", **stray)
    manifest = run(path, tmp_path / "out", "fuse.allow_unmatched=true")
    figures = manifest.steps["fuse pico"].figures
    reached = sum(row["parameters"] for row in figures["rows"] if row["term"] == "lcm")
    assert figures["coverage"]["lcm"] == reached / (reached + 1)
    with pytest.raises(QualityError):
        run(path, tmp_path / "out", "fuse.allow_unmatched=true", "check.coverage.min=1")


def test_block_weights_and_shards_and_rounding(sd1: Files, tmp_path: Path) -> None:
    more = "  rounding: stochastic\n  seed: 7\n  dtype: bf16\n  max_shard_size: 500kB\n"
    path = recipe(tmp_path, sd1, more=more)
    path.write_text(
        path.read_text().replace("style: 0.8", "style: {lambda: 0.8, block_weights: {IN00-IN05: 0.5, M00: 0}}")
    )
    manifest = run(path, tmp_path / "out")
    fuse(
        sd1.base(), tmp_path / "pico.safetensors", sd1.style, sd1.lcm, dtype="bf16", shard=500_000,
        block_weights={"style": "IN00-IN05=0.5,M00=0"}, rounding_seed=7,
    )  # fmt: skip
    names = {Path(name).name for name in manifest.steps["fuse pico"].outputs}
    assert len(names) > 3
    for name in names - {"pico.safetensors.index.json"}:
        one, other = load_file(tmp_path / "out" / "pico" / name), load_file(tmp_path / name)
        assert one.keys() == other.keys()
        assert all(one[key].equal(other[key]) for key in one)


def test_error_aware_rounding(sd1: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the tiny model's matrices."""
    known = {"nvfp4": replace(nvfp4.ENCODING, takes=matrices)}
    monkeypatch.setattr("lcmmerge.tensors.encodings.entries", lambda package, variable: known)
    path = recipe(tmp_path, sd1, more="  rounding: error-aware\n  encoding: nvfp4\n")
    run(path, tmp_path / "out")
    made = tmp_path / "out" / "pico" / "pico.safetensors"
    fuse(sd1.base(), tmp_path / "again.safetensors", sd1.style, sd1.lcm, dtype="nvfp4", error_aware=True)
    fuse(sd1.base(), tmp_path / "nearest.safetensors", sd1.style, sd1.lcm, dtype="nvfp4")
    files = (made, tmp_path / "again.safetensors", tmp_path / "nearest.safetensors")
    found, again, nearest = map(load_file, files)
    assert all(found[key].equal(again[key]) for key in again)
    assert not all(found[key].equal(nearest[key]) for key in nearest)
    assert json.loads(metadata(made)["sd_merge_recipe"])["rounding"] == "error-aware"
    with pytest.raises(OptionError, match="scales to choose"):
        run(path, tmp_path / "out", "fuse.encoding=bf16")


def test_parts_that_the_base_lacks(sd1: Files, tmp_path: Path) -> None:
    """They are a source like the others: in the lock, in the metadata, and verified."""
    stored = load_file(sd1.base())
    pruned = {name: tensor for name, tensor in stored.items() if not name.startswith("first_stage_model.")}
    save_file(pruned, tmp_path / "pruned.safetensors")
    path = recipe(tmp_path, sd1, base=tmp_path / "pruned.safetensors", more="  parts_from: whole\n")
    path.write_text(path.read_text().replace("sources:\n", f"sources:\n  whole: {sd1.base()}\n"))
    run(path, tmp_path / "out")
    made = tmp_path / "out/pico/pico.safetensors"
    assert load_file(made).keys() == stored.keys()
    found = verify(open_source(made), [str(tmp_path), str(sd1.root)])
    assert (found.different, found.stale) == ((), ())
