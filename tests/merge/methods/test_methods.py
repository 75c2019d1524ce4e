"""A merge method from the command line, Python and a recipe to the metadata, and back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fusing import Files, fuse, metadata
from merging import merge_of
from safetensors.torch import load_file, save_file

from lcmmerge.errors import FormatError, OptionError
from lcmmerge.merge.methods import parse
from lcmmerge.merge.plan import plan
from lcmmerge.merge.recorded import read_merge
from lcmmerge.merge.spec import Merge
from lcmmerge.search.request import SearchRequest, prepare
from lcmmerge.tensors import open_source

STYLE = {"style": ("style.safetensors", 0.8)}


def test_parameters_are_completed_written_and_read() -> None:
    merge = Merge("base.safetensors", STYLE, "ties")
    assert merge.parameters == {"density": 0.2}
    assert merge.command() == (
        "lcmmerge fuse base.safetensors style.safetensors --lambda 0.8 0.0 --method ties:density=0.2"
    )
    merge = Merge("base.safetensors", STYLE, "ties", parameters={"density": 0.3})
    read = Merge.from_dict(merge.to_dict())
    assert (read.method, read.parameters) == ("ties", {"density": 0.3})
    assert merge.at({"style": 0.5}).parameters == {"density": 0.3}


def test_the_first_parameter_needs_no_name() -> None:
    assert parse("ties:0.3") == parse("ties:density=0.3")
    assert parse("dare:0.3,elect=1") == ("dare", {"density": 0.3, "elect": 1.0, "seed": 0.0})


def test_slerp_is_of_two(files: Callable[[str], Files], tmp_path: Path, cli: Callable[..., Any]) -> None:
    inputs = files("sd1")
    target = tmp_path / "out.safetensors"
    words = ("fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm, "--method", "slerp", "-o", target)
    cli(*words, "--adapter", inputs.lcm, 0.3).assert_fault(2, "slerp: merges 2 terms, and 3 change one parameter")
    assert cli(*words, "--adapter", inputs.lcm, 0).code == 0


def test_a_sum_is_recorded_as_ever() -> None:
    """Its metadata have no parameters; and what lcmmerge 0.1 wrote names no method."""
    recorded = Merge("base.safetensors", STYLE).to_dict()
    assert "parameters" not in recorded
    del recorded["method"]
    assert Merge.from_dict(recorded).method == "add"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tie", "method 'tie': unknown"),
        ("ties:density", "'density' is not a parameter"),
        ("ties:", "'' is not a parameter"),
        ("ties:0.3,0.4", "'0.4' is not a parameter"),
        ("add:0.3", "method add: has no parameter ''"),
        ("ties:density=much", "'density=much' is not a parameter"),
        ("ties:density=1.5", "method ties: density is 1.5"),
        ("ties:density=nan", "method ties: density is nan"),
        ("ties:share=0.5", "method ties: has no parameter 'share'"),
        ("add:density=0.5", "method add: has no parameter 'density'"),
    ],
)
def test_what_is_no_method(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        parse(text)
    assert error.value.hint


def test_the_command_line(cli: Callable[..., object], files: Callable[[str], Files], tmp_path: Path) -> None:
    inputs = files("sd1")
    words = ("fuse", inputs.base(), inputs.style, "--lambda", 1, 0, "--method", "ties:density=0.5")
    shown = cli(*words, "--dry-run")
    assert "Merged by ties:density=0.5." in shown.out
    target = tmp_path / "out.safetensors"
    said = json.loads(cli(*words, "-o", target, "--json").out)
    assert said["method"] == "ties:density=0.5"
    recorded = json.loads(metadata(target)["sd_merge_recipe"])
    assert (recorded["method"], recorded["parameters"]) == ("ties", {"density": 0.5})
    cli(*words[:-1], "none").assert_fault(2, "method 'none': unknown")


def test_a_file_of_a_method_that_is_not_here(files: Callable[[str], Files], tmp_path: Path) -> None:
    inputs, file = files("sd1"), tmp_path / "out.safetensors"
    fuse(inputs.base(), file, inputs.style, method="ties")
    recorded = json.loads(metadata(file)["sd_merge_recipe"])
    for change, message in (({"method": "magmax"}, "by the method 'magmax', which is not known here"),
                            ({"parameters": {"density": 7}}, "its merge recipe is damaged"),
                            ({"parameters": [1]}, "its merge recipe is damaged"),
                            ({"method": ["ties"]}, "its merge recipe is damaged")):  # fmt: skip
        save_file(load_file(file), tmp_path / "changed.safetensors",
                  metadata(file) | {"sd_merge_recipe": json.dumps(recorded | change)})  # fmt: skip
        with pytest.raises(FormatError, match=message):
            read_merge(open_source(tmp_path / "changed.safetensors"))


def test_a_search_refuses_what_is_not_linear(files: Callable[[str], Files], tmp_path: Path) -> None:
    inputs = files("sd1")
    merge = merge_of(inputs.base(), None, inputs.style, lcm=inputs.lcm, accelerator="lcm", method="ties")
    request = SearchRequest(merge, tmp_path / "study", ("a fox",), {"style": (0.5, 1.0)})
    with pytest.raises(OptionError, match=r"ties:density=0\.2 is not linear in λ"):
        prepare(request, print)


def test_methods_load_nothing_heavy() -> None:
    code = "import sys; from lcmmerge.merge.methods import methods; methods(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_another_λ_is_planned_by_the_same_method(files: Callable[[str], Files], tmp_path: Path) -> None:
    inputs = files("sd1")
    merge = merge_of(inputs.base(), tmp_path / "out", inputs.style, lcm=inputs.lcm, method="ties:density=0.4")
    assert plan(merge.at({"style": 0.3})).as_dict()["method"] == "ties:density=0.4"
