"""All faults at once, each with its place, its line and what was meant; --set; the matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcmmerge.errors import RecipeError
from lcmmerge.recipe.loader import Loaded, load

GOOD = """\
version: 1
sources: {base: b.safetensors, style: s.safetensors, lcm: l.safetensors}
fuse:
  base: base
  terms: {style: 0.8, lcm: {lambda: 1}}
"""
WRONG = """\
version: 2
sources:
  base: b.safetensors
  style: {refrence: s.safetensors, variant: on}
  lcm: {}
fuse:
  base: bsae
  terms:
    style: {lambda: .nan, tuned_from: tuned}
    lcm: {lamda: 1, source: lmc}
    other: yes
  dtype: f16
  drop_ema: yes
  max_shard_size: huge
  seed: 1.5
matrx: {}
export: {to: coreml}
on: 1
check: {coverage: {mn: 1, min: x}}
publish: owner/repo
"""


def loaded(folder: Path, text: str, *sets: str) -> Loaded:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load(path, sets)


def faults(folder: Path, text: str, *sets: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        loaded(folder, text, *sets)
    assert caught.value.exit_code == 2
    return caught.value.details


def test_all_faults_at_once(tmp_path: Path) -> None:
    assert faults(tmp_path, WRONG) == (
        "line 1: version: is 2, and must be 1",
        "line 4: sources.style.reference: is missing",
        "line 4: sources.style.refrence: unknown key; did you mean 'reference'?",
        "line 5: sources.lcm.reference: is missing",
        "line 7: fuse.base: no source is called 'bsae'; did you mean 'base'?",
        "line 9: fuse.terms.style.lambda: wants a finite number, not nan",
        "line 9: fuse.terms.style.tuned_from: no source is called 'tuned'",
        "line 10: fuse.terms.lcm.lamda: unknown key; did you mean 'lambda'?",
        "line 10: fuse.terms.lcm.source: no source is called 'lmc'; did you mean 'lcm'?",
        "line 11: fuse.terms.other: wants a mapping, not 'yes'",
        "line 12: fuse.dtype: is 'f16', and must be 'fp32', 'fp16', 'bf16', 'fp8_e4m3fn' or 'fp8_e5m2'; "
        "did you mean 'fp16'?",
        "line 13: fuse.drop_ema: wants true or false (YAML has no other words for them), not 'yes'",
        "line 14: fuse.max_shard_size: 'huge' is not a size: write 5GB, 500MB or 2GiB",
        "line 15: fuse.seed: wants a whole number, not 1.5",
        "line 16: matrx: unknown key; did you mean 'matrix'?",
        "line 17: export.to: is 'coreml', and must be 'onnx' or 'tensorrt'",
        "line 18: on: unknown key; the keys are version, description, sources, fuse, matrix, search, "
        "generate, export, check, publish",
        "line 19: check.coverage.min: wants a number, not 'x'",
        "line 19: check.coverage.mn: unknown key; did you mean 'min'?",
        r"line 20: publish: 'owner/repo' is not of the form ^hf://[\w.-]+/[\w.-]+$",
    )


@pytest.mark.parametrize("text", ["", "a", "[]", "version: 1", "version: 1\nsources: []\nfuse: 1", "fuse: {terms: {}}"])
def test_what_is_no_recipe_at_all(tmp_path: Path, text: str) -> None:
    assert faults(tmp_path, text)


def test_a_number_is_a_number(tmp_path: Path) -> None:
    terms = loaded(tmp_path, GOOD.replace("0.8", "8e-1")).cells[0].fuse.terms
    assert terms["style"].strength == 0.8
    assert terms["lcm"].strength == 1
    assert "not '0.8'" in faults(tmp_path, GOOD.replace("0.8", "'0.8'"))[0]


def test_set(tmp_path: Path) -> None:
    sets = (
        "lambda.style=7e-1",
        "lambda.lcm=0.5",
        "fuse.dtype=bf16",
        "sources.style.variant=fp16",
        "check.signal.min=3",
    )
    found = loaded(tmp_path, GOOD, *sets)
    (cell,) = found.cells
    assert cell.name == "recipe"
    assert {name: term.strength for name, term in cell.fuse.terms.items()} == {"style": 0.7, "lcm": 0.5}
    assert cell.fuse.dtype == "bf16"
    style = found.recipe.sources["style"]
    assert (style.reference, style.variant) == ("s.safetensors", "fp16")
    assert found.recipe.check is not None
    assert found.recipe.check.signal is not None
    assert found.recipe.check.signal.min == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lambda.stlye=1", "did you mean 'style'?"),
        ("fuse.terms.other.lambda=1", "no such term"),
        ("fuse.dtyp=fp16", "did you mean 'dtype'?"),
        ("lambda.style", "PATH=VALUE"),
        ("=1", "PATH=VALUE"),
        ("lambda.style=high", "wants a number"),
        ("lambda.style=!!python/name:os.system x", "is not allowed"),
    ],
)
def test_set_to_nonsense(tmp_path: Path, text: str, message: str) -> None:
    assert message in faults(tmp_path, GOOD, text)[0]


PAIR = GOOD.replace("lcm: l.safetensors", "high: h.safetensors, low: l.safetensors").replace(
    "{lambda: 1}", "{transformer: high, transformer_2: {source: low, alpha: 2}, lambda: 0.5}"
)


def test_a_source_for_each_expert(tmp_path: Path) -> None:
    """It is two terms, and may be spoken of as one or as two."""

    def strengths(*sets: str) -> list[float | None]:
        return [term.strength for term in loaded(tmp_path, PAIR, *sets).cells[0].fuse.terms.values()]

    found = loaded(tmp_path, PAIR)
    assert {name: (term.source, term.expert, term.alpha) for name, term in found.cells[0].fuse.terms.items()} == {
        "style": (None, None, None),
        "lcm-transformer": ("high", "transformer", None),
        "lcm-transformer_2": ("low", "transformer_2", 2),
    }
    assert not found.unused
    assert strengths() == [0.8, 0.5, 0.5]
    assert strengths("lambda.lcm=0.7") == [0.8, 0.7, 0.7]
    one_each = PAIR.replace(", lambda: 0.5", "") + "matrix: {lambda.lcm-transformer: [0.2, 0.4]}\n"
    cells = loaded(tmp_path, one_each, "lambda.lcm-transformer_2=0.9").cells
    assert [[term.strength for term in cell.fuse.terms.values()][1:] for cell in cells] == [[0.2, 0.9], [0.4, 0.9]]
    assert [cell.fuse.terms["lcm-transformer"].source for cell in cells] == ["high", "high"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("high, transformer_2", "hihg, transformer_2", "fuse.terms.lcm.transformer.source: no source is called 'hihg'"),
        ("source: low", "source: lwo", "fuse.terms.lcm.transformer_2.source: no source is called 'lwo'; did you"),
        ("alpha: 2", "alhpa: 2", "fuse.terms.lcm.transformer_2.alhpa: unknown key; did you mean 'alpha'?"),
        ("alpha: 2", "alpha: much", "fuse.terms.lcm.transformer_2.alpha: wants a number, not 'much'"),
        ("alpha: 2", "lambda: 2", "fuse.terms: lcm: lambda is given for every expert, and for transformer_2: give it"),
        ("style: 0.8", "lcm-transformer: {source: style}", "fuse.terms: two terms are called 'lcm-transformer'"),
        ("lambda: 0.5", "expert: transformer", "fuse.terms.lcm.transformer: unknown key"),
        ("alpha: 2", "expert: transformer", "fuse.terms.lcm.transformer: unknown key"),
    ],
)
def test_what_is_wrong_with_an_expert_s_source(tmp_path: Path, before: str, after: str, message: str) -> None:
    text = PAIR.replace(before, after)
    assert text != PAIR
    assert faults(tmp_path, text)[0].startswith(f"line 5: {message}")


def test_matrix(tmp_path: Path) -> None:
    sources = GOOD.replace("style: s", "papercut: p.safetensors, render: s")
    axes = "matrix:\n  fuse.terms.style.source: [papercut, render]\n  lambda.style: [0.5, 1.0]\n"
    found = loaded(tmp_path, sources + axes, "fuse.output=sdxl")
    assert [cell.name for cell in found.cells] == [
        "sdxl-papercut-style0.5",
        "sdxl-papercut-style1",
        "sdxl-render-style0.5",
        "sdxl-render-style1",
    ]
    assert [(cell.fuse.terms["style"].source, cell.fuse.terms["style"].strength) for cell in found.cells] == [
        ("papercut", 0.5), ("papercut", 1.0), ("render", 0.5), ("render", 1.0)
    ]  # fmt: skip
    assert not found.unused


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("lambda.stlye: [1]", "did you mean 'style'?"),
        ("sources.style: [a]", "begins with fuse."),
        ("lambda.style: [1, 1.0]", "two outputs would be called 'style1'"),
        ("lambda.style: [1, high]", "wants a number"),
        ("lambda.style: []", "is empty"),
        ("lambda.style: 1", "wants a list"),
        ("fuse.base: [base, bsae]", "did you mean 'base'?"),
        (f"lambda.style: {list(range(20))}\n  lambda.lcm: {list(range(20))}", "spans 400 outputs"),
    ],
)
def test_matrix_of_nonsense(tmp_path: Path, matrix: str, message: str) -> None:
    assert message in faults(tmp_path, f"{GOOD}matrix:\n  {matrix}\n")[0]


def test_names_that_a_run_needs(tmp_path: Path) -> None:
    for name in ("run.json", "recipe.yaml.lock", "images"):
        assert "a name that every run needs" in faults(tmp_path, GOOD, f"fuse.output={name}")[0]
    for name in ("../x", ".hidden", "a/b", "''"):
        assert "form" in faults(tmp_path, GOOD, f"fuse.output={name}")[0]


def test_a_recipe_files_name_that_cannot_be_a_folders(tmp_path: Path) -> None:
    path = tmp_path / r"C:\models\a.yaml"
    path.write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert "cannot name a folder on every system" in caught.value.details[0]
    assert load(path, ["fuse.output=a"]).cells[0].name == "a"


def test_unused_sources(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD.replace("style: 0.8, ", "")).unused == ("style",)
