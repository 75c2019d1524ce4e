"""Block factors as dimensions: θ(λ) is what ``fuse --block-weights`` bakes, and what is found says so."""

import json
import shlex

import pytest
import torch
import yaml
from fusing import canonical, fuse
from searching import KINDS, adapter, assert_baked, field_of, planned, requested, weights

from lcmmerge.archs.blocks import blocks
from lcmmerge.errors import LcmMergeError
from lcmmerge.search.blocks import Factors, block_axes
from lcmmerge.search.field import reached
from lcmmerge.search.order import Cell
from lcmmerge.search.request import prepare

RANGE = Factors(0.0, 1.5)
CELL = (0.8, -0.5, 0.3, 1.2, 0.0, 0.7)  # λ of style and LCM, then the factors of
AXES = {"style": {"IN": RANGE, "M": RANGE}, "lcm": {"OUT00-OUT05": RANGE, "OUT06-OUT11": RANGE}}
BAKED = {"style": "IN00-IN11=0.3,M00=1.2", "lcm": "OUT00-OUT05=0,OUT06-OUT11=0.7"}


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_weights_are_those_that_block_weights_bake(dtype, files, tmp_path):
    inputs = files("sd1")
    fuse(inputs.base(dtype), tmp_path / "baked.safetensors", inputs.style, inputs.lcm, CELL[:2], block_weights=BAKED)
    fuse(inputs.base(dtype), tmp_path / "plain.safetensors", inputs.style, inputs.lcm, CELL[:2])
    expected, plain = (canonical(tmp_path / f"{name}.safetensors") for name in ("baked", "plain"))
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in expected.items())
    field = field_of(inputs, dtype, blocks=AXES)
    for factors in ((*CELL[2:4], 0.5, 0.5), CELL[2:]):
        field.set(Cell(CELL[:2], factors))  # a factor alone that changes is written too
    assert_baked(weights(field), expected, dtype)
    field.set(Cell(CELL[:2], (1.0, 1.0, 1.0, 1.0)))
    assert_baked(weights(field), plain, dtype)


@pytest.mark.parametrize("kinds", KINDS)
def test_of_every_algorithm(kinds, files, tmp_path):
    inputs, (style, *more) = files("sd1"), [adapter(kind, tmp_path) for kind in kinds]
    names = ["style", *(path.stem for path in more)]
    fuse(inputs.base("fp32"), tmp_path / "baked.safetensors", style, inputs.lcm, (0.7, 0.4),
         adapters=tuple((path, 0.5) for path in more),
         block_weights=dict.fromkeys(names, "IN00-OUT11=0.6"))  # fmt: skip
    axes = {name: {"IN00-OUT11": Factors(0.0, 2.0)} for name in names}
    field = field_of(inputs, style=style, adapters=tuple((str(path), 1.0) for path in more), blocks=axes)
    field.set(Cell((0.7, 0.4, *(0.5 for _ in more)), (0.6,) * len(names)))
    assert_baked(weights(field), canonical(tmp_path / "baked.safetensors"), "fp32")


def test_a_factor_of_the_text_encoders_is_what_they_depend_on(files):
    field = field_of(files("sd1"), blocks={"style": {"BASE": RANGE, "IN": RANGE}})
    cells = [Cell((0.8, 1.0), factors) for factors in ((1.0, 1.0), (0.2, 1.4), (0.2, 0.0))]
    assert field.text_key(cells[1]) == field.text_key(cells[2]) != field.text_key(cells[0])


def test_a_factor_rewrites_its_blocks_alone(files):
    inputs = files("sd1")
    plan = planned(inputs.base(), inputs.style, inputs.lcm)
    found = reached(plan, block_axes(AXES, plan))
    plain = reached(plan)
    assert sum(found.values()) == sum(plain.values())
    assert {number for terms in found for number in terms} == set(range(6))
    assert not any({2, 3} <= terms or {4, 5} <= terms for terms in found)


@pytest.mark.parametrize(("asked", "weights", "said"), [
    ({"stile": {"IN": RANGE}}, {}, "no such term"),
    ({"style": {"IN99": RANGE}}, {}, "no block 'IN99'"),
    ({"style": {"M00-IN00": RANGE}}, {}, "M00 comes after IN00"),
    ({"style": {"IN": RANGE, "IN04": RANGE}}, {}, "IN04 has a factor already"),
    ({"style": {"M": RANGE}}, {"style": "M00=0.5"}, "M00 has a factor already"),
    ({"lcm": {"BASE": RANGE}}, {}, "lcm changes nothing there"),
    ({"style": {"IN": Factors(0.0, float("inf"))}}, {}, "no finite"),
])  # fmt: skip
def test_faults(asked, weights, said, files):
    inputs = files("sd1")
    plan = planned(inputs.base(), inputs.style, inputs.lcm, block_weights=weights)
    with pytest.raises(LcmMergeError, match=said) as caught:
        block_axes(asked, plan)
    assert caught.value.hint


@pytest.mark.e2e
def test_a_study_searches_them_and_its_winner_carries_them(files, cli, tmp_path):
    """Its command and its recipe bake what --bake does."""
    inputs, work = files("sd1"), tmp_path / "study"
    (tmp_path / "prompts.txt").write_text("a fox\na hat\n")
    asked = ("search", inputs.folder("fp32"), inputs.style, "--lcm", inputs.lcm, "--accelerator", "lcm")
    asked += ("--prompts", tmp_path / "prompts.txt", "--size", "64x64", "--steps", 1, "--count", 1, "--guidance", 1)
    asked += ("--grid", "style=0.8", "lcm=1", "--block", "style", "IN,OUT=0.5:1.5:1,M=0:1", "--block-weights", "lcm",
              "M00=0.5", "-o", work)  # fmt: skip
    asked += ("--optimize", 2, "--bake", tmp_path / "baked", "--write-recipe", tmp_path / "best.yaml")
    done = cli(*asked, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["terms"] == ["style", "lcm", "style@IN", "style@OUT", "style@M"]
    cells = [row["lambda"] for row in report["rows"] if row["kind"] == "cell"]
    assert len(cells) == 2 * 4 + 2  # the grid, as often without the accelerator, and two that Optuna chose
    assert any(0 < middle < 1 for *_, middle in cells)
    style, _, first, last, middle = report["best"]
    words = shlex.split(report["command"])
    factors = dict(words[at + 1 : at + 3] for at, word in enumerate(words) if word == "--block-weights")
    names = blocks(planned(inputs.base(), inputs.style, inputs.lcm).base)
    ends = [name for name in names if name.startswith("IN")][-1], [name for name in names if name.startswith("OUT")][-1]
    assert factors["style"] == f"IN00-{ends[0]}={first!r},OUT00-{ends[1]}={last!r},M00={middle!r}"
    assert factors["lcm"] == "M00=0.5"
    assert cli(*words[1:], "-o", tmp_path / "by_command").code == 0
    assert cli("run", tmp_path / "best.yaml", "-o", tmp_path / "run").code == 0
    (made,) = (path.parent for path in (tmp_path / "run").rglob("model_index.json"))
    expected = canonical(tmp_path / "baked")
    for other in (tmp_path / "by_command", made):
        assert all(tensor.equal(expected[name]) for name, tensor in canonical(other).items())
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["fuse"]["terms"]["style"]["lambda"] == style


def test_the_teacher_has_no_factors_and_controls_none_of_the_accelerator(files, tmp_path):
    spans = {"IN": Factors(0.0, 1.0, (0.5, 1.0))}
    asked = requested(files("sd1"), tmp_path, axes={"lcm": (0.5, 1.0)}, blocks={"lcm": spans, "style": spans})
    prepared = prepare(asked, pytest.fail)
    ask = prepared.ask(1)
    assert ask.styled == Cell((1.0, 0.0), (1.0, 1.0))
    controls = ask.with_controls(prepared.cells) - set(prepared.cells)
    assert controls == {Cell((1.0, 0.0), (1.0, factor)) for factor in (0.5, 1.0)}
    assert prepared.inputs["searched blocks"] == {"lcm": ["IN"], "style": ["IN"]}  # another study's are refused
