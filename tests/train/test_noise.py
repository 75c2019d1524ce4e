"""The noise of a model, as its scheduler's config says it."""

import pytest

from lcmmerge.errors import IncompatibleError
from lcmmerge.train.noise import Noise


@pytest.mark.parametrize("setting", [
    {"beta_schedule": "of mine"}, {"beta_start": "x"}, {"num_train_timesteps": -1}, {"prediction_type": "sample"},
])  # fmt: skip
def test_a_config_of_no_noise(setting):
    with pytest.raises(IncompatibleError) as caught:
        Noise.of({"beta_schedule": "linear"} | setting)
    assert caught.value.hint
