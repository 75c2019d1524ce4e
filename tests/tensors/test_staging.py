"""All or nothing."""

import pytest

from lcmmerge.errors import OutputError
from lcmmerge.tensors.staging import Staging, check_target, replace_with


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_take_their_names_at_the_end(tmp_path):
    with Staging(tmp_path / "out.safetensors") as staging:
        (staging.folder / "out-1.safetensors").write_text("1")
        (staging.folder / "out.safetensors.index.json").write_text("index")
        assert names(tmp_path) == [".out.safetensors.partial"]
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
    leftover = tmp_path / ".out.partial"
    (leftover / "out" / "unet").mkdir(parents=True)
    (leftover / "half").write_text("half")
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
