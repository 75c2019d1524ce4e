"""What a model predicts is read wherever people write it, and said where it is not usual."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from named import named_source
from pico import pico

from lcmmerge.archs import identify
from lcmmerge.archs.prediction import ASKED, BY_SCHEDULER, EDM, EPSILON, FLOW, Prediction, V, prediction_of
from lcmmerge.errors import OptionError
from lcmmerge.tensors import TensorSource

SCHEDULERS = {
    "epsilon": (DDIMScheduler(), EPSILON, False),
    "v": (DDIMScheduler(prediction_type="v_prediction"), V, False),
    "v from noise": (EulerDiscreteScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), V, True),
}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {parameter: tuple(tensor.shape) for parameter, tensor in pico(name).state().items()}


def folder(path: Path, config: object) -> TensorSource:
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return TensorSource(path, "diffusers", {}, ())


@pytest.mark.parametrize(
    ("marks", "kind", "zero_snr"),
    [
        (["v_pred"], V, False),
        (["v_pred", "ztsnr"], V, True),
        (["ztsnr"], EPSILON, True),
        (["edm_mean", "edm_std"], EDM, False),
        (["edm_vpred.sigma_max", "v_pred"], EDM, False),
    ],
)
def test_marks(marks: list[str], kind: str, zero_snr: bool) -> None:
    found = identify(named_source(shapes("sdxl") | dict.fromkeys(marks, (0,)), "diffusers")).prediction
    assert (found.kind, found.zero_snr) == (kind, zero_snr)
    assert all(mark in str(found) for mark in marks)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_diffusers(name: str, tmp_path: Path) -> None:
    scheduler, kind, zero_snr = SCHEDULERS[name]
    scheduler.save_pretrained(tmp_path / "scheduler")
    source = TensorSource(tmp_path, "diffusers", {}, ())
    assert prediction_of(source, FLOW) == Prediction(kind, zero_snr, BY_SCHEDULER)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, EDM),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, FLOW),
        ({"_class_name": "DDIMScheduler", "prediction_type": "sample"}, "sample"),
        ({"_class_name": "DDIMScheduler", "prediction_type": None}, EPSILON),
        ([], EPSILON),
    ],
)
def test_other_schedulers(config: object, kind: str, tmp_path: Path) -> None:
    assert prediction_of(folder(tmp_path, config), EPSILON).kind == kind


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
@pytest.mark.parametrize(("said", "kind"), [("v", V), ("epsilon", EPSILON), ("V ", V), ("?", FLOW)])
def test_metadata(said: str, kind: str, key: str) -> None:
    source = TensorSource(Path("a"), "single-file", {}, (), {key: said})
    assert prediction_of(source, FLOW).kind == kind


def test_metadata_that_say_something_else_are_set_right() -> None:
    said = {"modelspec.prediction_type": "v", "modelspec.predict_key": "v", "modelspec.title": "x"}
    keys = ("modelspec.prediction_type", "modelspec.predict_key")
    assert Prediction.named("epsilon").metadata(EPSILON, said, mixed=False) == dict.fromkeys(keys, "epsilon")
    assert Prediction.named("v").metadata(EPSILON, {}, mixed=False) == {keys[0]: "v"}
    assert Prediction.named("epsilon").metadata(EPSILON, {}, mixed=False) == {}
    assert Prediction(EDM, False, "by edm_mean").metadata(EPSILON, said, mixed=False) == {}


def test_sd2_is_a_guess_until_somebody_says_it() -> None:
    model = identify(named_source(shapes("sd2"), "single-file"))
    assert (model.prediction.kind, model.prediction.told_by) == (V, "")
    assert "v_prediction is assumed" in model.doubt and "--prediction" in model.doubt
    said = model.predicting("epsilon")
    assert (said.prediction, said.doubt) == (Prediction(EPSILON, False, ASKED), "")
    assert identify(named_source(shapes("sdxl"), "single-file")).doubt == ""
    with pytest.raises(OptionError, match="'x': unknown"):
        model.predicting("x")


def test_a_scheduler_for_what_marks_say() -> None:
    marked, config = Prediction(V, True, "by v_pred, ztsnr"), json.loads(PNDMScheduler().to_json_string())
    changed = marked.scheduler(config)
    made = DDIMScheduler.from_config(changed)  # PNDM knows no zero terminal SNR
    assert changed["_class_name"] == "DDIMScheduler"
    assert made.config.prediction_type == V
    assert torch.isclose(made.alphas_cumprod[-1], torch.tensor(0.0), atol=1e-7)
    made.set_timesteps(4)
    assert int(made.timesteps[0]) == made.config.num_train_timesteps - 1
    assert marked.scheduler(changed) == changed
    assert Prediction(V, False, "by v_pred").scheduler(changed)["rescale_betas_zero_snr"] is False


@pytest.mark.parametrize("prediction", [Prediction(V), Prediction(V, True, BY_SCHEDULER), Prediction(FLOW, None, "x")])
def test_nothing_is_changed_that_nobody_told(prediction: Prediction) -> None:
    config = dict(DDIMScheduler().config)
    assert prediction.scheduler(config) == config
