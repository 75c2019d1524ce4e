"""A recipe of three styles and an accelerator is searched over all of its terms."""

import json
import shlex

import pytest
from fusing import canonical
from recipefile import run
from searching import adapter

pytestmark = pytest.mark.e2e

RECIPE = """\
version: 1
sources:
  base: {base}
  ink: {ink}
  fog: {fog}
  dust: {dust}
  lcm: {{reference: {lcm}, accelerator: lcm}}
fuse:
  base: base
  terms:
    ink: 0.8
    fog: {{lambda: 0.5, block_weights: {{M00: 0.5}}}}
    dust: 0.3
    lcm: 1.0
search:
  prompts: [a fox, a hat]
  count: 1
  steps: 1
  size: 64x64
  guidance: 1
  grid: {{ink: [0.4], fog: [1.0], lcm: [0.5]}}
  blocks: {{dust: {{M: [0.5]}}}}
"""
TERMS = ("ink", "fog", "dust", "lcm")


@pytest.fixture(scope="module")
def made(files, tmp_path_factory):
    """The manifest of its run, and the folder."""
    folder, inputs = tmp_path_factory.mktemp("terms"), files("sd1")
    fog, dust = (adapter(kind, folder) for kind in ("loha", "full"))
    text = RECIPE.format(base=inputs.folder("fp32"), ink=inputs.style, fog=fog, dust=dust, lcm=inputs.lcm)
    (folder / "fire.yaml").write_text(text)
    return run(folder / "fire.yaml", folder / "out"), folder


@pytest.fixture(scope="module")
def study(made):
    (path,) = (made[1] / "out").rglob("study.json")
    return json.loads(path.read_text())


def test_every_term_is_named(study):
    assert study["terms"] == [*TERMS, "dust@M"]
    assert {"ink", "fog", "dust", "lcm", "base"} <= study["inputs"].keys()


def test_the_axes_of_all_terms_are_crossed_and_controls_are_without_the_accelerator(study):
    cells = [row["lambda"] for row in study["rows"] if row["kind"] == "cell"]
    axes = [(0.4, 0.8), (0.5, 1.0), (0.3,), (0.0, 0.5, 1.0), (0.5, 1.0)]
    assert [sorted({cell[number] for cell in cells}) for number in range(5)] == [list(axis) for axis in axes]
    assert len(cells) == len({*map(tuple, cells)}) == 2 * 2 * 3 * 2
    assert all(row["control"] == (not row["lambda"][3]) for row in study["rows"] if row["kind"] == "cell")
    assert [row["lambda"] for row in study["rows"] if row["kind"] != "cell"] == 4 * [[1, 1, 1, 0, 1]]


def test_figures_differ_where_any_number_does(study):
    scores = {row["score"][0] for row in study["rows"] if row["kind"] == "cell" and not row["control"]}
    assert len(scores) == 2 * 2 * 2 * 2


def test_the_winners_command_bakes_all_terms(made, study, cli, tmp_path):
    words = shlex.split(study["command"])
    assert cli(*words[1:], "-o", tmp_path / "baked").code == 0
    best, (fused,) = canonical(tmp_path / "baked"), (made[1] / "out").rglob("model_index.json")
    assert any(not tensor.equal(best[name]) for name, tensor in canonical(fused.parent).items())  # at other λs


def test_the_pages_name_all_terms(made):
    (page,) = (made[1] / "out").rglob("report.html")
    (table,) = (made[1] / "out").rglob("trials.csv")
    assert table.read_text().startswith("kind,lambda ink,lambda fog,lambda dust,lambda lcm,lambda dust@M,")
    assert all(f'"{name}"' in page.read_text() for name in TERMS)


def test_the_manifest_holds_the_best_by_name(made, study):
    names = [*TERMS, "dust@M"]
    found = made[0].steps["search fire"].figures
    assert found["best"] == dict(zip(names, study["best"], strict=True))
    assert found["search_regret"] >= 0
