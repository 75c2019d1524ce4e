"""``lcmmerge search`` as a person and a program meet it."""

import json
import shlex

import pytest
import yaml
from fusing import canonical, fuse, without_alpha
from PIL import Image
from searching import searches, style_of
from torch.testing import assert_close

FAST = ("--size", "64x64", "--steps", 1, "--count", 1, "--guidance", 1)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a fox\nthe [red]thing\n")
    return path


@pytest.fixture
def inputs(files):
    return files("sd1")


@pytest.fixture
def asked(inputs, prompts):
    return (inputs.folder(), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm", "--prompts", prompts, *FAST)


@pytest.mark.e2e
def test_what_a_person_sees_and_what_is_left(asked, inputs, cli, tmp_path):
    """And the winner, baked, as the printed command bakes it, and as the recipe does."""
    work, baked, recipe = tmp_path / "study", tmp_path / "baked", tmp_path / "best.yaml"
    command = ("search", *asked, "--grid", "style=0.6:1:0.4", "lcm=0.5,1.0", "-o", work)
    done = cli(*command, "--bake", baked, "--write-recipe", recipe)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "DPM-Solver++ at as many evaluations" in lines[0]
    assert "no accelerator (λ = 0)" in lines[1]
    assert "BEST" in done.out
    fused = next(line for line in lines if line.startswith("lcmmerge fuse "))
    words = shlex.split(fused)[1:]
    assert cli(*words, "-o", tmp_path / "by_command").code == 0
    assert cli("run", recipe, "-o", tmp_path / "run").code == 0
    (made,) = (path.parent for path in (tmp_path / "run").rglob("model_index.json"))
    expected = canonical(baked)
    for other in (tmp_path / "by_command", made):
        assert all(tensor.equal(expected[name]) for name, tensor in canonical(other).items())
    with Image.open(work / "sheet.png") as sheet:
        assert sheet.width > 2 * 128
    again = cli(*command, "--json")
    assert (again.code, again.err) == (0, "")
    report = json.loads(again.out)
    assert report == json.loads((work / "study.json").read_text())
    assert report["command"] == fused
    assert report["terms"] == ["style", "lcm"]
    assert sorted(row["lambda"] for row in report["rows"] if row["kind"] == "cell") == [
        [style, lcm] for style in (0.6, 1.0) for lcm in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    assert yaml.safe_load(recipe.read_text())["sources"]["lcm"]["accelerator"] == "lcm"
    other = cli(*command, "--seed", 5)
    assert other.code == 1
    assert "another seed" in other.err


def test_an_alpha_that_is_told(asked, inputs, cli, tmp_path, monkeypatch):
    """As one in the file, 2; a study that was begun without is another."""
    style = without_alpha(inputs.style, tmp_path / "style.safetensors")
    searched = searches(monkeypatch)
    for words in ([inputs.style], [style, "--alpha", "style", 2], [style]):
        options = (*words, *asked[2:], "--grid", "lcm=1", "-o", tmp_path / "study")
        cli("search", asked[0], *options).assert_fault(1, "not searched")
    own, told, none = searched
    assert_close(style_of(told), style_of(own), rtol=0, atol=0)
    assert not all(tensor.equal(style_of(none)[name]) for name, tensor in style_of(told).items())
    assert {name for name in told.inputs if told.inputs[name] != none.inputs.get(name)} == {"alpha"}


USAGE = {
    "no grid": ((), 2, "nothing to search"),
    "range": (("--grid", "style=0.2:1.2"), 2, "write TERM=FIRST:LAST:STEP"),
    "step": (("--grid", "style=0.2:1.2:0"), 2, "write TERM=FIRST:LAST:STEP"),
    "empty": (("--grid", "style=1:0.5:0.1"), 2, "write TERM=FIRST:LAST:STEP"),
    "number": (("--grid", "style=much"), 2, "write TERM=FIRST:LAST:STEP"),
    "infinite": (("--grid", "style=inf"), 2, "write TERM=FIRST:LAST:STEP"),
    "twice": (("--grid", "lcm=1", "lcm=2"), 2, "--grid is given twice"),
    "term": (("--grid", "lcm=1", "stile=0.5,1"), 2, "no such term"),
    "objective": (("--grid", "lcm=1", "--objective", "beauty"), 2, "no such objective"),
    "steps": (("--grid", "lcm=1", "--steps", 60), 1, "takes at most 50"),
    "prompts": (("--grid", "lcm=1", "--prompts", "nowhere.txt"), 1, "cannot be read"),
    "storage": (("--grid", "lcm=1", "--storage", "postgresql://me:secret@nowhere.invalid/x"), 1, "database"),
}


@pytest.mark.parametrize("case", USAGE)
def test_faults_are_one_line_and_its_cure(case, asked, cli, tmp_path):
    arguments, code, words = USAGE[case]
    done = cli("search", *asked, *arguments, "-o", tmp_path / "study")
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert "Traceback" not in done.err
    assert "secret" not in done.err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_outputs_are_checked_before_anything_is_drawn(asked, inputs, cli, tmp_path):
    taken = tmp_path / "taken.yaml"
    taken.write_text("mine")
    done = cli("search", *asked, "--grid", "lcm=1", "-o", tmp_path / "study", "--write-recipe", taken)
    assert (done.code, taken.read_text()) == (1, "mine")
    assert "exists already" in done.err
    done = cli("search", *asked, "--grid", "lcm=1", "-o", tmp_path / "study", "--bake", inputs.folder())
    assert done.code == 1
    assert not (tmp_path / "study").exists()


def test_a_base_that_holds_the_adapter_is_refused(asked, inputs, cli, tmp_path):
    fuse(inputs.folder(), tmp_path / "baked", lcm=inputs.lcm)
    done = cli("search", tmp_path / "baked", *asked[1:], "--grid", "lcm=1", "-o", tmp_path / "study")
    assert done.code == 3
    assert "already holds it" in done.err
