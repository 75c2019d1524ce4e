"""Cosines and norms from factors are those of the changes themselves."""

import pytest
from searching import CPU, adapter, planned

from lcmmerge.search.changes import Change
from lcmmerge.search.diagnostics import overlaps


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_against_the_changes(kind, files, tmp_path):
    plan = planned(files("sd1").base(), adapter(kind, tmp_path), files("sd1").lcm)
    found = {one.parameter: one for one in overlaps(plan)}
    pieces = {piece.operand.name: piece for file in plan.files for tensor in file.tensors for piece in tensor.pieces}
    assert found.keys() == {
        name for name, piece in pieces.items() if {item.term for item in piece.contributions} == {0, 1}
    } != set()  # fmt: skip
    for name, one in found.items():
        pristine = pieces[name].operand.read()
        style, lcm = (Change.of(pieces[name], term, CPU).dense(pristine).double() for term in (0, 1))
        assert (one.first, one.second) == ("style", "lcm")
        assert one.cosine == pytest.approx(float((style * lcm).sum() / style.norm() / lcm.norm()), abs=1e-6)
        assert one.ratio == pytest.approx(float(style.norm() / lcm.norm()), rel=1e-5)


def test_a_term_beside_itself(files):
    inputs = files("sd1")
    for one in overlaps(planned(inputs.base(), inputs.lcm, inputs.lcm)):
        assert one.cosine == pytest.approx(1)
        assert one.ratio == pytest.approx(1)
