"""All or nothing."""

import errno
import fcntl
import os
import signal
import stat
from contextlib import suppress
from multiprocessing import get_context
from unittest.mock import Mock

import pytest

from lcmmerge.errors import OutputError
from lcmmerge.tensors import renaming, staging
from lcmmerge.tensors.staging import Staging, replace_with, write_text
from lcmmerge.tensors.targets import check_target


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(target, work, **options):
    """A process that stages the target, does the ``work``, which kills it, and is gone."""

    def run():
        with Staging(target, **options) as staging:
            work(staging)

    child = get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """How a name is taken from another: in one step, or as on a file system that has no such step."""
    if request.param == "two renames":
        monkeypatch.setattr(renaming, "_function", lambda: None)


def model(folder, text):
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "weights").write_text(text)
    return folder


def held(folder):
    return (folder / "unet" / "weights").read_text()


def test_files_take_their_names_at_the_end(tmp_path):
    with Staging(tmp_path / "out.safetensors") as staging:
        (staging.folder / "out-1.safetensors").write_text("1")
        (staging.folder / "out.safetensors.index.json").write_text("index")
        assert names(tmp_path) == [".out.safetensors.lcmmerge.partial"]
        staging.commit_files()
    assert names(tmp_path) == ["out-1.safetensors", "out.safetensors.index.json"]


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with Staging(target) as staging:
        (staging.folder / "out").mkdir()
        (staging.folder / "out" / "new").write_text("new")
        assert names(target) == ["old"]
        staging.commit_folder()
    assert names(tmp_path) == ["out"]
    assert names(target) == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_without_a_commit_nothing_is_left(error, tmp_path):
    (tmp_path / "out").write_text("old")
    with pytest.raises(error), Staging(tmp_path / "out") as staging:
        (staging.folder / "out").write_text("new")
        raise error
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_what_the_disk_refuses_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="Is a directory") as caught, Staging(tmp_path / "out") as staging:
        (staging.folder / "out").mkdir()
        (staging.folder / "out").write_text("no")
    assert str(tmp_path / "out") in caught.value.message
    assert names(tmp_path) == []


def test_what_is_in_memory_replaces_a_file_or_leaves_it(tmp_path):
    (tmp_path / "out").write_text("old")
    replace_with(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_text() == "new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        replace_with(tmp_path / "folder", b"new")
    with pytest.raises(OutputError, match="No such file or directory"):
        replace_with(tmp_path / "nowhere" / "out", b"new")
    assert names(tmp_path) == ["folder", "out"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    def work(staging):
        (staging.folder / "out" / "unet").mkdir(parents=True)
        (staging.folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    killed(tmp_path / "out", work)
    assert names(tmp_path) == [".out.lcmmerge.partial"]
    with Staging(tmp_path / "out") as staging:
        assert names(staging.folder) == []
        (staging.folder / "out").write_text("whole")
        staging.commit_files()
    assert names(tmp_path) == ["out"]


def test_one_run_at_a_time(tmp_path):
    with Staging(tmp_path / "out") as staging:
        (staging.folder / "out").write_text("mine")
        with pytest.raises(OutputError, match="another run"), Staging(tmp_path / "out"):
            pass
        with Staging(tmp_path / "other"):
            staging.commit_files()
    assert names(tmp_path) == ["out"]


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "precious")
    with Staging(tmp_path / "out") as staging:
        (staging.folder / "out").write_text("new")
        staging.commit_files()
    assert (tmp_path / "out").read_text() == "new"
    assert (tmp_path / "precious").read_text() == "precious"


def test_more_than_the_disk_has(tmp_path):
    with pytest.raises(OutputError, match="and the disk has") as caught:
        check_target(tmp_path / "out", force=False, needed=1 << 60)
    assert "free some space" in caught.value.hint


# What was there before


@pytest.mark.parametrize("kind", ["folder", "file", "link", "dangling", "writable", "unmarked"])
def test_what_is_not_ours_is_left_as_it_is(kind, tmp_path):
    place, precious = tmp_path / ".out.lcmmerge.partial", tmp_path / "precious"
    model(precious, "mine")
    match kind:
        case "folder":
            model(place, "a download")
        case "file":
            place.write_text("mine")
        case "link":
            place.symlink_to("precious")
        case "dangling":
            place.symlink_to("nowhere")
        case "writable":  # by others, who could have planted what is in it
            model(place, "theirs")
            (place / "lcmmerge").write_text(str(place.stat().st_ino))
            place.chmod(0o777)
        case "unmarked":  # such as a repository can hold: nobody knows what inode its folder will have
            model(place, "theirs")
            (place / "lcmmerge").write_text(str(place.stat().st_ino + 1))
    before = sorted((path, path.lstat().st_ino) for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="in the way"), Staging(tmp_path / "out"):
        pass
    assert sorted((path, path.lstat().st_ino) for path in tmp_path.rglob("*")) == before
    assert held(precious) == "mine"


def test_links_within_what_a_killed_run_left_are_not_followed(tmp_path):
    precious = model(tmp_path / "precious", "mine")

    def work(staging):
        (staging.folder / "out").symlink_to(precious)
        os.kill(os.getpid(), signal.SIGKILL)

    killed(tmp_path / "out", work)
    with Staging(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["precious"]
    assert held(precious) == "mine"


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_was_killed_before_it_marked_its_folder(begun, tmp_path, monkeypatch):
    (tmp_path / ".out.lcmmerge.partial").mkdir(mode=0o700)
    if begun:
        (tmp_path / ".out.lcmmerge.partial" / "lcmmerge").touch()
    monkeypatch.setattr(staging, "BIRTH", 0.05)
    write_text(tmp_path / "out", "whole")
    assert names(tmp_path) == ["out"]


def test_a_lock_on_a_folder_that_was_removed_is_none(tmp_path, monkeypatch):
    """B has opened A's folder; A ends; C makes one; B gets the lock of the one that is gone."""
    a, c = Staging(tmp_path / "out"), Staging(tmp_path / "out")
    a.__enter__()
    flock, turns = fcntl.flock, []

    def slow(descriptor, how):
        if not turns:
            turns.append("A ends, C begins")
            a.__exit__(None, None, None)
            c.__enter__()
        return flock(descriptor, how)

    monkeypatch.setattr(staging.fcntl, "flock", slow)
    with pytest.raises(OutputError, match="another run"), Staging(tmp_path / "out"):
        pass
    (c.folder / "out").write_text("C")
    c.commit_files()
    c.__exit__(None, None, None)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "C"


def test_a_disk_that_is_too_full_for_a_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "write", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OutputError, match="No space left"), Staging(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


# Between two renames


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_commit_that_fails_gives_everything_back(number, error, tmp_path, monkeypatch):
    for name in ("a", "c"):
        (tmp_path / name).write_text("old")
    take, taken = Staging._take_name, []

    def failing(self, name, new):
        taken.append(name)
        if len(taken) == number + 1:
            raise error("in the middle")
        take(self, name, new)

    monkeypatch.setattr(Staging, "_take_name", failing)
    with pytest.raises((error, OutputError)), Staging(tmp_path / "a") as staging:
        for name in ("a", "b", "c"):
            (staging.folder / name).write_text("new")
        staging.commit_files()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "c": "old"}


@pytest.mark.parametrize("fault", ["Ctrl-C", "taken", "kill"])
def test_between_the_two_renames_of_a_folder(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(renaming, "_function", lambda: None)
    target = model(tmp_path / "out", "old")
    rename = os.rename

    def then(name, other, *, src_dir_fd, dst_dir_fd):
        rename(name, other, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        monkeypatch.setattr(os, "rename", rename)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "taken":
            target.write_text("taken meanwhile")
        else:
            raise KeyboardInterrupt

    def work(staging):
        model(staging.folder / "out", "new")
        monkeypatch.setattr(os, "rename", then)
        staging.commit_folder()

    if fault == "kill":
        killed(target, work)
        assert names(tmp_path) == [".out.lcmmerge.partial"]
        with pytest.raises(ValueError), Staging(target):
            raise ValueError  # the next run fails for another cause
    else:
        with pytest.raises((KeyboardInterrupt, OutputError)) as caught, Staging(target) as staging:
            work(staging)
    if fault == "taken":
        assert target.read_text() == "taken meanwhile"
        spare = caught.value.hint.split()[-2]
        assert names(tmp_path) == ["out", spare]
        assert held(tmp_path / spare) == "old"
    else:
        assert names(tmp_path) == ["out"]
        assert held(target) == "old"


@pytest.mark.usefixtures("way")
def test_killed_between_two_files(tmp_path):
    for name in ("a", "c"):
        (tmp_path / name).write_text("old")

    def work(staging):
        for name in ("a", "b", "c"):
            (staging.folder / name).write_text("new")
        take = staging._take_name

        def last(name, new):
            if name == "c":
                os.kill(os.getpid(), signal.SIGKILL)
            take(name, new)

        staging._take_name = last
        staging.commit_files()

    killed(tmp_path / "a", work)
    assert {name: (tmp_path / name).read_text() for name in "abc"} == {"a": "new", "b": "new", "c": "old"}
    with Staging(tmp_path / "a"):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "c": "old"}


@pytest.mark.usefixtures("way")
def test_killed_after_the_last_name_was_taken(tmp_path):
    (tmp_path / "out").write_text("old")

    def work(staging):
        (staging.folder / "out").write_text("new")
        staging.commit_files()
        os.kill(os.getpid(), signal.SIGKILL)

    killed(tmp_path / "out", work)
    with Staging(tmp_path / "out"):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "new"}


@pytest.mark.usefixtures("way")
def test_a_name_that_was_free_is_not_taken_from_somebody(tmp_path):
    with pytest.raises(OutputError, match="exists already"), Staging(tmp_path / "a", force=False) as staging:
        for name in ("a", "b"):
            (staging.folder / name).write_text("new")
        (tmp_path / "b").write_text("came meanwhile")
        staging.commit_files()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"b": "came meanwhile"}


# Modes, links and special files


@pytest.mark.usefixtures("way")
def test_what_takes_a_name_has_the_mode_of_what_had_it(tmp_path):
    private = model(tmp_path / "out", "old")
    (private / "unet" / "weights").chmod(0o600)
    private.chmod(0o700)
    with Staging(private) as staging:
        model(staging.folder / "out", "new")
        (staging.folder / "out" / "more").write_text("new")
        staging.commit_folder()
    modes = [stat.S_IMODE((private / name).stat().st_mode) for name in ("", "unet/weights")]
    assert (held(private), modes) == ("new", [0o700, 0o600])
    for write in (write_text, lambda path, text: replace_with(path, text.encode())):
        (tmp_path / "file").write_text("old")
        (tmp_path / "file").chmod(0o640)
        write(tmp_path / "file", "new")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
        assert (tmp_path / "file").read_text() == "new"


def test_another_hard_link_keeps_its_content(tmp_path):
    (tmp_path / "out").write_text("old")
    os.link(tmp_path / "out", tmp_path / "other")
    write_text(tmp_path / "out", "new")
    assert (tmp_path / "other").read_text() == "old"


@pytest.mark.parametrize("force", [True, False])
def test_links_to_nowhere_and_special_files_are_no_targets(force, tmp_path):
    (tmp_path / "link").symlink_to("not-mounted/model.safetensors")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("link", "leads nowhere"), ("pipe", "a device, a pipe")):
        with pytest.raises(OutputError, match=words):
            check_target(tmp_path / name, force=force, needed=0)
        with pytest.raises(OutputError, match=words):
            replace_with(tmp_path / name, b"")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


# Work that goes on


@pytest.mark.parametrize("end", [KeyboardInterrupt, "kill"])
def test_the_same_work_goes_on_and_other_work_begins_anew(end, tmp_path):
    def work(staging):
        model(staging.folder / "out", "half")
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise end

    (tmp_path / "out").write_text("old")
    for again, left in (("the same", ["out"]), ("another", [])):
        if end == "kill":
            killed(tmp_path / "out", work, resumes="the same")
        else:
            with pytest.raises(end), Staging(tmp_path / "out", resumes="the same") as staging:
                work(staging)
        assert (tmp_path / "out").read_text() == "old"
        with Staging(tmp_path / "out", resumes=again) as staging:
            assert names(staging.folder) == left
        assert names(tmp_path) == ["out"]


def test_work_that_goes_on_after_its_commit_failed(tmp_path, monkeypatch):
    (tmp_path / "out").write_text("old")
    for error in (KeyboardInterrupt, None):
        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            if error:
                patch.setattr(Staging, "_take_name", Mock(side_effect=error))
            with Staging(tmp_path / "out", resumes="the same") as staging:
                (staging.folder / "out").write_text("new")
                staging.commit_files()
        assert (tmp_path / "out").read_text() == ("old" if error else "new")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("moment", ["_claimed", "_take_names", "_remove"])
def test_ctrl_c_waits_for_short_work(moment, tmp_path, monkeypatch):
    """Nothing is left half made, moved or removed."""
    act = getattr(Staging, moment)

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return act(*arguments)

    monkeypatch.setattr(Staging, moment, interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out") as staging:
            (staging.folder / "out").write_text("new")
            staging.commit_files()
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(tmp_path) == ([] if moment == "_claimed" else ["out"])
