"""What a run may remove or replace: what a record in its folder says, by sha256, that a run made. Nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fusing import Files
from recipefile import contents, due, recipe, run

from lcmmerge.errors import FormatError, LockError, NumericError, OutputError
from lcmmerge.output import Output
from lcmmerge.recipe import runner
from lcmmerge.recipe.loader import load
from lcmmerge.recipe.lock import lock_text
from lcmmerge.recipe.manifest import read_manifest
from lcmmerge.recipe.steps.fuse import Fuse
from lcmmerge.recipe.verify import verify_run
from lcmmerge.tensors import staging

GENERATE = "generate: {prompts: [the thing], steps: 1}\n"
SEARCH = "search: {prompts: [the thing, in], count: 2, steps: 1, grid: {lcm: [1.0]}, batch: 4}\n"
EXPORT = "export: {fused: false, parity: false}\n"


@pytest.fixture
def sd1(files: Callable[[str], Files]) -> Files:
    return files("sd1")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    return folder


@pytest.mark.parametrize(("kind", "more"), [("images", GENERATE), ("search", SEARCH), ("export", EXPORT)])
def test_folders_that_no_run_made(sd1: Files, tmp_path: Path, kind: str, more: str) -> None:
    path, out = recipe(tmp_path, sd1, base=sd1.folder(), more=more), tmp_path / "out"
    mine = out / kind / "pico" / "photo-of-my-cat.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (mine.parent / "model_index.json").write_text("{}")
    before = contents(out)
    with pytest.raises(OutputError, match="did not make") as refused:
        run(path, out)
    assert refused.value.details == (str(mine.parent / "model_index.json"), str(mine))
    assert contents(out) == before
    prepared = runner.prepare(load(path), runner.RunRequest(out, force=True))
    assert f"{mine} is replaced, which no run made" in prepared.doubts


def test_a_file_beside_the_model_is_told_before_anything_is_done(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1, base=sd1.folder()), tmp_path / "out"
    run(path, out)
    (out / "pico" / ".DS_Store").write_text("of a file manager, and nobody's")
    (out / "pico" / "unet" / "notes.txt").write_text("mine")
    before = contents(out)
    with pytest.raises(OutputError) as refused:
        run(path, out, "lambda.style=0.7")
    assert refused.value.details == (str(out / "pico" / "unet" / "notes.txt"),)
    assert contents(out) == before
    run(path, out)  # nothing is to be done, so nothing is in the way
    (out / "pico" / "unet" / "notes.txt").unlink()
    run(path, out, "lambda.style=0.7")


def test_what_comes_while_a_step_is_done(sd1: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = recipe(tmp_path, sd1, base=sd1.folder()), tmp_path / "out"
    run(path, out)
    make = Fuse.make

    def slow(*arguments: Any) -> dict[str, Any]:
        (out / "pico" / "notes.txt").write_text("mine")
        return make(*arguments)

    monkeypatch.setattr(Fuse, "make", slow)
    before = contents(out / "pico")
    with pytest.raises(OutputError, match="did not make"):
        run(path, out, "lambda.style=0.7")
    assert contents(out / "pico") == {**before, "notes.txt": b"mine"}


@pytest.mark.parametrize("layout", [pytest.param("single-file", marks=pytest.mark.e2e), "diffusers"])
def test_a_run_that_fails_leaves_the_model_of_before_and_the_next_may_replace_it(
    sd1: Files, tmp_path: Path, layout: str
) -> None:
    base = sd1.base() if layout == "single-file" else sd1.folder()
    path, out = recipe(tmp_path, sd1, base=base), tmp_path / "out"
    run(path, out)
    before = contents(out / "pico")
    for _ in range(2):
        with pytest.raises(NumericError):
            run(path, out, "lambda.style=1.0e+30")
        assert contents(out / "pico") == before
    assert read_manifest(out).steps == {}
    run(path, out, "lambda.style=0.7")
    run(path, tmp_path / "fresh", "lambda.style=0.7")
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    "more",
    [GENERATE, pytest.param(SEARCH, marks=pytest.mark.e2e), pytest.param(EXPORT, marks=pytest.mark.e2e)],
    ids=["images", "search", "export"],
)
def test_a_step_that_fails_leaves_its_product_of_before(
    sd1: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    path, out = recipe(tmp_path, sd1, base=sd1.folder(), more=more), tmp_path / "out"
    run(path, out)
    (kind,) = {"images", "search", "export"} & {folder.name for folder in out.iterdir()}
    before = contents(out / kind / "pico")
    commit = staging.Staging.commit_folder

    def interrupted(self: staging.Staging) -> None:
        if self.target == out / kind / "pico":
            raise KeyboardInterrupt
        commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(staging.Staging, "commit_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(path, out, "lambda.style=0.7")
    assert contents(out / kind / "pico") == before
    run(path, out, "lambda.style=0.7")
    assert set(due(path, out, "lambda.style=0.7").values()) == {None}
    assert not list((out / kind).glob(".*"))


# Records


@pytest.fixture(scope="module")
def record(files: Callable[[str], Files], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A recipe, and the record of its run."""
    folder = tmp_path_factory.mktemp("recorded")
    path = recipe(folder, files("sd1"))
    run(path, folder / "out")
    return path, (folder / "out" / "run.json").read_text()


@pytest.mark.parametrize(
    "name", ["../../victim/thesis.txt", "/etc/passwd", "pico/../../victim/thesis.txt", "", ".", "a//b", "a\0b"]
)
@pytest.mark.parametrize("where", ["outputs", "earlier"])
def test_a_record_of_what_is_not_in_the_folder_is_damaged(
    record: tuple[Path, str], tmp_path: Path, victim: Path, name: str, where: str
) -> None:
    path, out, forged = record[0], tmp_path / "out", json.loads(record[1])
    out.mkdir()
    if where == "outputs":
        forged["steps"]["fuse pico"]["outputs"] = {name: {"bytes": 4, "sha256": "0" * 64}}
    else:
        forged["earlier"] = {name: ["0" * 64]}
    (out / "run.json").write_text(json.dumps(forged))
    for act in (lambda: run(path, out, "lambda.style=0.7"), lambda: verify_run(out), lambda: read_manifest(out)):
        with pytest.raises(FormatError, match="is not a record of a run, or damaged"):
            act()
    assert contents(victim) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(outputs=["../victim"]),
        lambda content: content.update(outputs=[1]),
        lambda content: content.update(recipe=[]),
        lambda content: content.update(sources="x"),
        lambda content: content.update(earlier={"a": "b"}),
        lambda content: content["steps"]["fuse pico"].update(outputs={"a": {"bytes": "4", "sha256": "0"}}),
        lambda content: content["steps"]["fuse pico"].update(outputs={"a": {"bytes": 4, "sha256": 0}}),
        lambda content: content["steps"]["fuse pico"].update(outputs=[]),
        lambda content: content["steps"]["fuse pico"].update(figures=None),
        lambda content: content["steps"].update({"fuse pico": 5}),
        lambda content: content.update(steps=[]),
    ],
)
def test_a_record_of_odd_types_is_damaged(
    record: tuple[Path, str], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path, out, forged = record[0], tmp_path / "out", json.loads(record[1])
    out.mkdir()
    change(forged)
    (out / "run.json").write_text(json.dumps(forged))
    with pytest.raises(FormatError, match="damaged"):
        run(path, out)


def test_links_are_never_followed(sd1: Files, tmp_path: Path, victim: Path) -> None:
    path = recipe(tmp_path, sd1, base=sd1.folder(), more=GENERATE)
    for number, name in enumerate(["pico", "images", "images/pico", "run.json"]):
        out = tmp_path / str(number)
        (out / name).parent.mkdir(parents=True)
        (out / name).symlink_to(victim / "thesis.txt" if name == "run.json" else victim)
        with pytest.raises((FormatError, OutputError)):
            run(path, out)
        with pytest.raises((FormatError, OutputError)):
            run(path, out, force=True)
        assert (out / name).is_symlink()
    assert contents(victim) == {"thesis.txt": b"mine"}


def test_a_link_in_the_place_of_an_output_is_no_output(sd1: Files, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, sd1), tmp_path / "out"
    run(path, out)
    weights, elsewhere = out / "pico" / "pico.safetensors", tmp_path / "elsewhere.safetensors"
    weights.rename(elsewhere)
    weights.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="did not make"):
        run(path, out)
    run(path, out, force=True)
    assert not weights.is_symlink()
    assert elsewhere.exists()


# The lock


def test_a_run_never_writes_over_the_recipes_own_lock(sd1: Files, tmp_path: Path) -> None:
    path = recipe(tmp_path, sd1)
    lock = load(path).lock
    lock.write_text(lock_text(runner.lock_of(load(path))))
    before = lock.read_text()
    _changed(tmp_path / "style.safetensors")
    run(path, tmp_path, locked=False)
    assert lock.read_text() == before
    with pytest.raises(LockError):
        run(path, tmp_path, locked=True)
    verify_run(tmp_path)  # by the run's own record
    with pytest.raises(LockError):
        verify_run(tmp_path, lock)


def test_locked_reads_what_it_merges(sd1: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash that is remembered, or that a file's name tells, is not enough."""
    path = recipe(tmp_path, sd1)
    loaded = load(path)
    load(path).lock.write_text(lock_text(runner.lock_of(loaded)))
    damaged = _changed(tmp_path / "style.safetensors")
    found = {name: replace(item.found) for name, item in _inputs(loaded, tmp_path).items()}
    before = {name: item.locked.hashes for name, item in found.items()}
    assert before["terms.style"] != _locked_hashes(path)
    with pytest.raises(LockError):
        run(path, tmp_path / "out", locked=True)
    # What the pins say is what was locked, and the bytes are others.
    monkeypatch.setattr("lcmmerge.recipe.sources.sha256_of", _told(_locked_hashes(path), damaged))
    with pytest.raises(LockError, match="are not those of the lock"):
        run(path, tmp_path / "out", locked=True)
    assert not (tmp_path / "out" / "pico").exists()


def _changed(path: Path) -> Path:
    """In the place of a link a file with one bit of what it led to changed."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    return path


def _inputs(loaded: Any, folder: Path) -> dict[str, Any]:
    return dict(runner.prepare(loaded, runner.RunRequest(folder / "out")).builds[0].inputs)


def _locked_hashes(path: Path) -> dict[str, str]:
    files = json.loads(load(path).lock.read_text())["sources"]["style"]["files"]
    return {name: item["sha256"] for name, item in files.items()}


def _told(known: dict[str, str], damaged: Path) -> Callable[..., str]:
    from lcmmerge.tensors.digest import sha256_of

    def told(files: Any, *, reread: bool = False, **options: Any) -> str:
        remembered = list(files) == [damaged] and not reread
        return known[damaged.name] if remembered else sha256_of(files, reread=reread, **options)

    return told


def test_a_source_that_changes_between_its_hash_and_its_merge(
    sd1: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, sd1)
    style = tmp_path / "style.safetensors"
    content = style.read_bytes()
    style.unlink()
    style.write_bytes(content)
    prepare = runner.prepare

    def then(*arguments: Any, **options: Any) -> runner.PreparedRun:
        prepared = prepare(*arguments, **options)
        style.write_bytes(content)
        return prepared

    monkeypatch.setattr(runner, "prepare", then)
    with pytest.raises(FormatError, match="changed while it was read"):
        runner.run(load(path), runner.RunRequest(tmp_path / "out"), Output(quiet=True))
    assert not (tmp_path / "out" / "pico").exists()
