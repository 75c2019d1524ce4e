"""What every registered objective must keep to."""

import os
import subprocess
import sys
from importlib.metadata import entry_points

import looking
import pytest
import torch

from lcmmerge.errors import LcmMergeError, NotFoundError
from lcmmerge.search.objectives import Samples, objective, objectives
from lcmmerge.search.statistics import once, resamples

COUNT = 6
PROMPTS = ("a fox", "a hat", "fox", "hat", "a", "a fox a fox a fox a fox a fox a fox")
NETWORKS = {"clip": looking.clip, "clip-image": looking.clip, "dino": looking.dino, "fid": looking.script,
            "kid": looking.dino, "lpips": looking.vgg}  # fmt: skip
BLIND = "clip"  # it does not look at the teacher


def decode(latents):
    """A VAE's stead: [n, 4, h, w] → [n, 3, 4h, 4w] uint8."""
    pixels = latents[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (pixels * 40 + 128).clamp(0, 255).to(torch.uint8)


def samples(seed, count=COUNT, size=8):
    latents = torch.randn((count, 4, size, size), generator=torch.Generator().manual_seed(seed))
    return Samples(latents, PROMPTS[:count], decode)


@pytest.fixture(scope="session")
def known(tmp_path_factory):
    """By name, each with a small network of its kind."""
    folder = tmp_path_factory.mktemp("networks")
    ends = {looking.vgg: ".safetensors", looking.script: ".pt"}
    made = {make: make(folder / f"{make.__name__}{ends.get(make, '')}") for make in set(NETWORKS.values())}
    return {name: objective(f"{name}={made[NETWORKS[name]]}" if name in NETWORKS else name) for name in objectives()}


@pytest.fixture
def figures(known):
    def found(name, cell, teacher, weights):
        return {key: statistic(weights) for key, statistic in known[name].measure(cell, teacher).items()}

    return found


def test_which_are_registered():
    assert objectives().keys() >= {"teacher", "style", *NETWORKS}
    assert {name for name, one in objectives().items() if one.weights} == NETWORKS.keys()


@pytest.mark.parametrize("name", objectives())
def test_says_what_it_is_what_it_costs_and_where_it_is_from(name, figures):
    one = objectives()[name]
    assert one.title
    assert one.cost
    assert one.source.startswith("https://")
    assert isinstance(one.maximise, bool)
    assert one.paired <= figures(name, samples(0), samples(1), once(COUNT)).keys()
    assert not one.weights or one.weights.startswith(("hf://", "https://"))


@pytest.mark.parametrize("name", objectives())
def test_figures_are_finite_and_deterministic(name, figures):
    weights = torch.cat([once(COUNT), resamples(COUNT)])
    found = figures(name, samples(0), samples(1), weights)
    assert found
    for key, values in found.items():
        assert values.shape == (401,)
        assert values.dtype == torch.float64
        assert bool(values.isfinite().all())
        assert torch.equal(values, figures(name, samples(0), samples(1), weights)[key])


@pytest.mark.parametrize("name", objectives())
def test_smallest_studies_and_flat_pictures_are_measured_too(name, figures):
    flat = Samples(torch.zeros(2, 4, 8, 8), ("a", "fox"), decode)
    for values in figures(name, flat, samples(0, 2), torch.cat([once(2), resamples(2)])).values():
        assert bool(values.isfinite().all())


@pytest.mark.parametrize("name", [name for name in objectives() if name != BLIND])
def test_its_direction(name, known, figures):
    """The teacher itself is better than noise of another kind, and than a little of it."""
    teacher = samples(0)
    noise = Samples(teacher.latents * 1.5 + 1, teacher.prompts, decode)
    little = Samples(teacher.latents * 1.05 + 0.1, teacher.prompts, decode)
    itself, near, far = (figures(name, cell, teacher, once(COUNT)) for cell in (teacher, little, noise))
    for key in itself:
        ranked = [float(itself[key]), float(near[key]), float(far[key])]
        assert ranked == sorted(ranked, reverse=known[name].maximise)
        assert len(set(ranked)) == 3


@pytest.mark.parametrize("name", objectives())
def test_samples_are_left_as_they_are(name, figures):
    cell, teacher = samples(0), samples(1)
    before = cell.latents.clone(), teacher.latents.clone()
    figures(name, cell, teacher, once(COUNT))
    assert torch.equal(cell.latents, before[0])
    assert torch.equal(teacher.latents, before[1])


@pytest.mark.parametrize("name", objectives())
def test_some_samples_are_measured_as_if_they_were_all(name, figures):
    """Whether or not their images were looked at before; images are decoded only where a network looks, and once."""
    numbers, decoded = [1, 3, 4], []

    def counted(latents):
        decoded.append(len(latents))
        return decode(latents)

    cell, teacher = (Samples(samples(seed).latents, PROMPTS, counted) for seed in (0, 1))
    prompts = tuple(PROMPTS[number] for number in numbers)
    alone = [Samples(one.latents[numbers], prompts, decode) for one in (cell, teacher)]
    expected = figures(name, *alone, once(3))
    figures(name, cell, teacher, once(COUNT))
    looked = sum(decoded)
    assert looked == {True: 2 * COUNT, False: 0}[name in NETWORKS] - (COUNT if name == BLIND else 0)
    figures(name, cell, teacher, once(COUNT))
    assert sum(decoded) == looked
    for key, value in figures(name, cell.of(numbers), teacher.of(numbers), once(3)).items():
        assert float(value) == pytest.approx(float(expected[key]), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("text", "error", "said"), [
    ("beauty", NotFoundError, "no such objective"),
    ("teacher=hf://owner/repo", LcmMergeError, "needs no weights"),
])  # fmt: skip
def test_what_is_none(text, error, said):
    with pytest.raises(error, match=said) as caught:
        objective(text)
    assert caught.value.hint


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_that_are_none(name, tmp_path):
    for weights in (tmp_path / "nowhere", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(LcmMergeError, match="network") as caught:
            objective(f"{name}={weights}").measure(samples(0), samples(1))
        assert caught.value.hint
        assert "\n" not in caught.value.message


PLUGIN = """
from lcmmerge.search.objectives import Objective
from lcmmerge.search.statistics import paired_error

def measure(cell, teacher):
    return {"error": paired_error(cell.latents, teacher.latents)}

OBJECTIVE = Objective("mine", measure, "nothing", "https://example.com")
"""


def test_third_parties_register_by_an_entry_point(tmp_path):
    """An installed distribution, as pip leaves it: its folder of metadata beside its module."""
    (tmp_path / "their_objective.py").write_text(PLUGIN)
    metadata = tmp_path / "their_objective-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-objective\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[lcmmerge.objectives]\ntheirs = their_objective:OBJECTIVE\n")
    asked = "from lcmmerge.search.objectives import objective; print(objective('theirs').title)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "mine\n"
    assert not entry_points(group="lcmmerge.objectives").select(name="theirs")  # not here
