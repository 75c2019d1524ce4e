"""What every registered objective must keep to."""

import pytest
import torch

from lcmmerge.search.objectives import Samples, objectives
from lcmmerge.search.statistics import once, resamples

COUNT = 6


def samples(seed, count=COUNT, size=8):
    latents = torch.randn((count, 4, size, size), generator=torch.Generator().manual_seed(seed))
    return Samples(latents, tuple(f"prompt {number}" for number in range(count)))


def figures(name, cell, teacher, weights):
    return {key: statistic(weights) for key, statistic in objectives()[name].measure(cell, teacher).items()}


def test_the_default_and_the_style_are_registered():
    assert objectives().keys() >= {"teacher", "style"}


@pytest.mark.parametrize("name", objectives())
def test_says_what_it_is_what_it_costs_and_where_it_is_from(name):
    objective = objectives()[name]
    assert objective.title
    assert objective.cost
    assert objective.source.startswith("https://")
    assert isinstance(objective.maximise, bool)
    assert objective.paired <= figures(name, samples(0), samples(1), once(COUNT)).keys()


@pytest.mark.parametrize("name", objectives())
def test_figures_are_finite_and_deterministic(name):
    weights = torch.cat([once(COUNT), resamples(COUNT)])
    found = figures(name, samples(0), samples(1), weights)
    assert found
    for key, values in found.items():
        assert values.shape == (401,)
        assert values.dtype == torch.float64
        assert bool(values.isfinite().all())
        assert torch.equal(values, figures(name, samples(0), samples(1), weights)[key])


@pytest.mark.parametrize("name", objectives())
def test_smallest_studies_and_flat_pictures_are_measured_too(name):
    flat = Samples(torch.zeros(2, 4, 8, 8), ("a", "b"))
    for values in figures(name, flat, samples(0, 2), torch.cat([once(2), resamples(2)])).values():
        assert bool(values.isfinite().all())


@pytest.mark.parametrize("name", objectives())
def test_its_direction(name):
    """The teacher itself is better than noise of another kind, and than a little of it."""
    objective, teacher = objectives()[name], samples(0)
    noise = Samples(teacher.latents * 1.5 + 1, teacher.prompts)
    little = Samples(teacher.latents * 1.05 + 0.1, teacher.prompts)
    itself, near, far = (figures(name, cell, teacher, once(COUNT)) for cell in (teacher, little, noise))
    for key in itself:
        ranked = [float(itself[key]), float(near[key]), float(far[key])]
        assert ranked == sorted(ranked, reverse=objective.maximise)
        assert len(set(ranked)) == 3


@pytest.mark.parametrize("name", objectives())
def test_samples_are_left_as_they_are(name):
    cell, teacher = samples(0), samples(1)
    before = cell.latents.clone(), teacher.latents.clone()
    figures(name, cell, teacher, once(COUNT))
    assert torch.equal(cell.latents, before[0])
    assert torch.equal(teacher.latents, before[1])
