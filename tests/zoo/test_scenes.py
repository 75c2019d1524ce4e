"""Rendering of the embedded model's pictures; scikit-learn is there only where the model is rebuilt."""

import pytest
import torch

pytest.importorskip("sklearn")

from embedded.scenes import EVERYTHING, LUMA, SIZE, STYLES, WORDS, caption, draw, strokes


def test_the_same_seed_draws_the_same_pictures() -> None:
    first, again, other = draw(EVERYTHING, 8, seed=1), draw(EVERYTHING, 8, seed=1), draw(EVERYTHING, 8, seed=2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("look", [EVERYTHING, *STYLES.values()], ids=["everything", *STYLES])
def test_pictures_are_in_range_and_show_something(look) -> None:
    pictures, digits = draw(look, 64, seed=3)
    assert pictures.shape == (64, 3, SIZE, SIZE)
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    assert set(digits.tolist()) <= set(range(10))
    luma = torch.einsum("nchw,c->nhw", pictures, torch.tensor(LUMA))
    assert (luma.flatten(1).std(1) > 0.02).all()


def test_styles_differ_as_they_should() -> None:
    ground = {name: draw(look, 64, seed=4)[0][:, :, :2].mean() for name, look in STYLES.items()}
    assert ground["neon"] < ground["chalk"] < 0 < ground["paper"]


def test_one_caption_has_many_pictures() -> None:
    pictures, digits = draw(EVERYTHING, 400, seed=5)
    sevens = pictures[digits == 7]
    assert (sevens - sevens.mean(0)).std() > 0.4


def test_held_out_digits_are_never_trained_on() -> None:
    trained, kept = ({tuple(grey.flatten().tolist()) for grey in strokes(held_out)[0]} for held_out in (False, True))
    assert len(trained) + len(kept) > 1700
    assert not trained & kept


def test_a_caption_names_the_digit_alone() -> None:
    assert [caption(digit) for digit in range(10)] == [f"a {word}" for word in WORDS]
