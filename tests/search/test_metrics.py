"""Figures that look at images with a network, against independent implementations."""

from dataclasses import replace
from pathlib import Path

import looking
import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from planting import ASK, GRID
from safetensors.torch import load_file
from sklearn.metrics.pairwise import polynomial_kernel
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from lcmmerge.search.drawing import Drawing, Gallery, Sampled
from lcmmerge.search.objectives import Objective, Samples, objective, objectives
from lcmmerge.search.order import Cell
from lcmmerge.search.score import score
from lcmmerge.search.statistics import frechet_distance, kernel_distance, mean, once, resamples
from lcmmerge.search.study import CELL, FLOOR, TEACHER

COUNT = 7
STYLED = (1.0, 0.0)
PROMPTS = ("a fox", "hat", "a a", "fox", "a hat", "fox hat", "a")


def images(seed, shade=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 200, (COUNT, 3, 24, 32), generator=generator) + shade).to(torch.uint8)


def samples(pixels):
    """Their latents are the pixels."""
    return Samples(pixels.float(), PROMPTS, lambda latents: latents.to(torch.uint8))


def figure(text, ours, theirs):
    (statistic,) = objective(text).measure(samples(ours), samples(theirs)).values()
    return float(statistic(once(COUNT)))


def features(seed, width=5):
    return torch.randn((COUNT, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [5, 40])
def test_the_frechet_distance_is_torchmetrics(width):
    """Of features that are wider than many too."""
    ours, theirs = features(0, width), features(1, width) * 2 + 1
    network = torch.nn.Flatten()
    network.num_features = width
    oracle = FrechetInceptionDistance(feature=network)
    for found, real in ((ours, False), (theirs, True)):
        oracle.update(found[..., None], real=real)
    assert float(frechet_distance(ours, theirs)(once(COUNT))) == pytest.approx(float(oracle.compute()), rel=1e-4)


def test_a_resample_is_measured_as_if_it_were_drawn():
    ours, theirs = features(0), features(1)
    for weights in resamples(COUNT, number=3):
        rows = [number for number, times in enumerate(weights.int().tolist()) for _ in range(times)]
        expected = frechet_distance(ours[rows], theirs[rows])(once(COUNT))
        assert torch.allclose(frechet_distance(ours, theirs)(weights[None]), expected)


def test_the_kernel_distance_is_scikit_learns():
    """Over pairs of different samples."""
    ours, theirs = features(0).numpy(), features(1).numpy() + 0.5
    within, without, cross = (polynomial_kernel(a, b, degree=3, coef0=1)
                              for a, b in ((ours, ours), (theirs, theirs), (ours, theirs)))  # fmt: skip
    apart = ~np.eye(COUNT, dtype=bool)
    expected = within[apart].mean() + without[apart].mean() - 2 * cross[apart].mean()
    found = kernel_distance(torch.from_numpy(ours), torch.from_numpy(theirs))(once(COUNT))
    assert float(found) == pytest.approx(expected)


def test_the_clip_score_is_of_the_model_s_own_logits(tmp_path):
    """Whatever the teacher draws. torchmetrics 1.9 cannot read what transformers 5 gives."""
    folder, pixels = looking.clip(tmp_path / "clip"), images(0)
    model, prepare = CLIPModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    texts = AutoTokenizer.from_pretrained(folder)(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**prepare(list(pixels), return_tensors="pt"), **texts).logits_per_image
        expected = 100 * (logits / model.logit_scale.exp()).diagonal().clamp(min=0).mean()
    assert figure(f"clip={folder}", pixels, images(1)) == pytest.approx(float(expected), rel=1e-4)
    assert figure(f"clip={folder}", pixels, images(2)) == figure(f"clip={folder}", pixels, images(1))
    assert len({tuple(ids) for ids in texts["input_ids"].tolist()}) == len(PROMPTS)


def test_dino_s_similarity_is_of_the_class_tokens(tmp_path):
    folder, ours, theirs = looking.dino(tmp_path / "dino"), images(0), images(1, shade=50)
    network, prepare = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        found = [network(**prepare(list(pixels), return_tensors="pt")) for pixels in (ours, theirs)]
        tokens = [one.last_hidden_state[:, 0] for one in found]
    expected = torch.nn.CosineSimilarity()(*tokens).mean()
    assert figure(f"dino={folder}", ours, theirs) == pytest.approx(float(expected), rel=1e-5)


def test_fid_and_kid_are_of_a_torchscript_s_features(tmp_path):
    path, ours, theirs = looking.script(tmp_path / "network.pt"), images(0), images(1, shade=50)
    network = torch.jit.load(path)
    with torch.no_grad():
        found = [network(pixels, return_features=True) for pixels in (ours, theirs)]
    assert figure(f"fid={path}", ours, theirs) == pytest.approx(float(frechet_distance(*found)(once(COUNT))), rel=1e-5)
    assert figure(f"kid={path}", ours, theirs) == pytest.approx(float(kernel_distance(*found)(once(COUNT))), rel=1e-5)


def test_lpips_is_its_formula(tmp_path):
    """With hooks on torch's own modules; torchmetrics' class wants torchvision."""
    path, one, other = looking.vgg(tmp_path / "vgg.safetensors"), images(0)[:2], images(1, shade=50)[:2]
    layers, channels = [], 3
    for width in looking.VGG:
        whole = [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()] if width else [torch.nn.MaxPool2d(2)]
        layers, channels = [*layers, *whole], width or channels
    network = torch.nn.Sequential(*layers)
    network.load_state_dict({name.removeprefix("features."): tensor for name, tensor in load_file(path).items()})
    heads = torch.load(Path(reference.__file__).parent / "lpips_models" / "vgg.pth", map_location="cpu")
    expected = torch.zeros(2)
    with torch.no_grad():
        ours, others = (reference.ScalingLayer()(pixels / 127.5 - 1) for pixels in (one, other))
        for number, layer in enumerate(network):
            ours, others = layer(ours), layer(others)
            if number in (3, 8, 15, 22, 29):
                units = [found / found.norm(dim=1, keepdim=True) for found in (ours, others)]
                head = heads[f"lin{(3, 8, 15, 22, 29).index(number)}.model.1.weight"]
                expected += torch.nn.functional.conv2d((units[0] - units[1]) ** 2, head).mean((1, 2, 3))
    pair = [samples(pixels).of([0, 1]) for pixels in (images(0), images(1, shade=50))]
    (statistic,) = objective(f"lpips={path}").measure(*pair).values()
    assert float(statistic(once(2))) == pytest.approx(float(expected.mean()), rel=1e-4)


def brightness(cell, teacher):
    means = cell.seen("brightness", lambda batches: (one.float().mean((1, 2, 3)) for one in batches))
    return {"brightness": mean(means)}


@pytest.mark.parametrize(("maximise", "best", "worse"), [(True, 90, True), (True, 150, False), (False, 50, False)])
def test_the_verdict_knows_what_is_better(maximise, best, worse):
    """The other draw of the teacher has a brightness of 100."""
    jobs = ASK.jobs[:COUNT]
    shades = [(TEACHER, STYLED, 100), (FLOOR, STYLED, 100), (CELL, GRID[0], best), (CELL, GRID[1], 70)]
    drawn = [
        Sampled(Drawing(kind, Cell(strengths), ASK.preset, jobs), torch.full((COUNT, 3, 8, 8), float(shade)))
        for kind, strengths, shade in shades
    ]
    chosen = Objective("brightness", brightness, "nothing", "https://example.com", maximise)
    gallery = Gallery(lambda cell, latents: latents.to(torch.uint8))
    ask = replace(ASK, jobs=jobs, halving=0)
    found = score(drawn, [4] * 4, chosen, objectives()["style"], ask, Cell(GRID[0]), gallery)
    assert found.best.cell.lambdas == GRID[0]
    said = "by brightness the best cell is worse than another draw"
    assert any(said in sentence for sentence in found.verdict) == worse
