"""The ``export`` section: graphs over an output's weights, made once, and a bound on their parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran
from exporting import cache_home, exported
from fusing import Files
from recipefile import contents, due, recipe, run, tell_alpha

from lcmmerge.errors import OutputError, QualityError, RecipeError, VerificationError
from lcmmerge.export.manifest import read_manifest
from lcmmerge.recipe.manifest import read_manifest as read_run
from lcmmerge.recipe.verify import verify_run

pytestmark = pytest.mark.e2e

EXPORT = """\
export:
  to: tensorrt
  static: [128x64]
  fused: false
"""


@pytest.fixture
def sd1(files: Callable[[str], Files]) -> Files:
    return files("sd1")


@pytest.fixture(autouse=True)
def cached(sd1: Files, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home(tmp_path_factory)))
    return exported(tmp_path_factory, sd1)


def test_an_export_is_of_the_output_and_is_made_once(
    sd1: Files, cached: Path, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    strict = EXPORT + "check: {parity: {max: 1.0e-9}}\n"
    path, out = recipe(tmp_path, sd1, base=sd1.folder(), more=strict), tmp_path / "out"
    with pytest.raises(QualityError) as missed:
        run(path, out)
    assert len(missed.value.details) == 4
    assert missed.value.details[0].startswith("pico text_encoder plain: parity is 0.000")
    folder, record = out / "export/pico", read_run(out).steps["export pico"]
    assert record.outputs.keys() == {f"export/pico/{name}" for name in contents(folder)}
    same = [name for name in contents(cached) if name.endswith((".onnx", ".safetensors", ".txt"))]
    assert all((folder / name).read_bytes() == (cached / name).read_bytes() for name in same)
    assert [term["term"] for term in read_manifest(folder).recipe["terms"]] == ["style", "lcm"]
    assert set(due(path, out).values()) == {None}
    assert due(path, out, "export.dtype=fp32")["export pico"] == "its inputs or parameters changed"
    assert due(path, out, "lambda.style=0.7")["export pico"] == "follows fuse pico"
    verify_run(out)
    assert cli("relambda", folder, "--lambda", 0.5, 1, "--source", tmp_path).code == 0
    with pytest.raises(VerificationError, match="outputs are gone or were changed"):
        verify_run(out)
    with pytest.raises(OutputError, match="was changed since"):
        due(path, out)


def test_an_alpha_that_is_told(sd1: Files, cached: Path, tmp_path: Path) -> None:
    """As one in the file, 2."""
    path, out = recipe(tmp_path, sd1, base=sd1.folder(), more=EXPORT + "  parity: false\n"), tmp_path / "out"
    run(tell_alpha(path), out)
    (term, _) = read_manifest(out / "export/pico").recipe["terms"]
    assert term["alpha"] == 2
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert (out / "export/pico" / name).read_bytes() == (cached / name).read_bytes()


def test_a_size_that_no_model_has(sd1: Files, tmp_path: Path) -> None:
    path = recipe(tmp_path, sd1, base=sd1.folder(), more=EXPORT.replace("128x64", "100x64"))
    with pytest.raises(RecipeError, match=r"export\.static"):
        run(path, tmp_path / "out")
