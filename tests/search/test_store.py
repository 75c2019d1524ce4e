"""Samples are kept by what they depend on, and fetched from the database where another machine drew them."""

import pytest
import torch
from safetensors.torch import load_file

from lcmmerge.draw.jobs import Job
from lcmmerge.draw.presets import BASELINES, of_sampling
from lcmmerge.errors import FormatError, OutputError
from lcmmerge.search.database import Database
from lcmmerge.search.drawing import Drawing
from lcmmerge.search.order import Cell
from lcmmerge.search.store import Store

LATENTS = torch.arange(8.0).reshape(2, 1, 2, 2)


def drawing(*strengths, prompt="a fox"):
    job = Job(prompt, "", 0, 64, 64)
    return Drawing("cell", Cell(strengths), of_sampling("ddim", BASELINES["ddim"]), (job,))


def test_what_it_depends_on_tells_samples_apart(tmp_path):
    store = Store(tmp_path, {"base": "1"})
    store.put(drawing(0.5), LATENTS)
    assert store.get(drawing(0.5)).equal(LATENTS)
    assert store.get(drawing(0.6)) is store.get(drawing(0.5, prompt="a hat")) is None
    assert Store(tmp_path, {"base": "2"}).get(drawing(0.5)) is None


def test_a_damaged_file_is_told_of(tmp_path):
    store = Store(tmp_path, {})
    store.path(drawing(0.5)).write_bytes(b"half")
    with pytest.raises(FormatError, match="is damaged"):
        store.get(drawing(0.5))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Store(tmp_path / "file" / "latents", {})


@pytest.mark.parametrize("shared", [True, False])
def test_another_folder_has_them_from_a_database_of_its_own(shared, tmp_path):
    folders = [tmp_path / name / "study" for name in ("one", "other")]
    stores = []
    for folder in folders:
        folder.mkdir(parents=True)
        database = Database(f"sqlite:///{tmp_path / 'studies.db'}", folder, shared=shared)
        stores.append(Store(folder / "latents", {}, database))
    one, other = stores
    one.put(drawing(0.5), LATENTS)
    one.put(drawing(0.5), LATENTS)
    found = other.get(drawing(0.5))
    if shared:
        assert found.equal(LATENTS)
        assert load_file(other.path(drawing(0.5)))["latents"].equal(LATENTS)
    else:
        assert found is None
