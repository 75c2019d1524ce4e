"""Cells that share a forward pass are drawn as the field draws each of them."""

import pytest
import torch
from sampling import BOTH, preset, several
from searching import ADAPTERS, adapter, field_of

from lcmmerge.sample.draw import draw
from lcmmerge.sample.encode import Encoder
from lcmmerge.studies.batched import CellEncoder, CellJob, PerSample, obstacle

CELLS = [(0.5, 1.0), (-0.4, 0.0), (0.0, 0.7)]


def latents(pipe, jobs, chosen, batch, encoder):
    return torch.stack([drawn.latents for drawn in draw(pipe, jobs, chosen, batch, wanted=BOTH, encoder=encoder)])


@pytest.mark.parametrize(("name", "guidance", "cells"), [("sd1", 3.0, 3), ("sdxl", 1.0, 2)])
def test_each_sample_is_of_its_own_cell(name, guidance, cells, files):
    """The style reaches the text encoders too; guidance repeats the batch; the last batch is smaller."""
    field, inputs = field_of(files(name)), files(name)
    jobs = several("a fox", "the thing")
    chosen = preset(inputs.folder(), scheduler="lcm", guidance=guidance, steps=cells // 2)
    expected = {}
    for cell in CELLS[:cells]:
        field.set(cell)
        expected[cell] = latents(field.pipeline, jobs, chosen, 2, Encoder(field.pipeline))
    field.set((0.0, 0.0))
    before = latents(field.pipeline, jobs[:1], chosen, 1, Encoder(field.pipeline))
    hooks = PerSample(field)
    asked = [CellJob(job.prompt, "", job.seed, *job.size, cell) for job in jobs for cell in CELLS[:cells]]
    found = latents(field.pipeline, asked, chosen, 3, CellEncoder(field, hooks))
    for job, one in zip(asked, found, strict=True):
        right = expected[job.strengths][[other.prompt for other in jobs].index(job.prompt)]
        assert (one - right).norm() <= 1e-5 * right.norm()
    assert (expected[CELLS[0]] - expected[CELLS[1]]).norm() > 1e-2 * expected[CELLS[0]].norm()
    hooks.close()
    assert torch.equal(latents(field.pipeline, jobs[:1], chosen, 1, Encoder(field.pipeline)), before)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_what_is_no_lora_has_an_obstacle(kind, files, tmp_path):
    field = field_of(files("sd1"), style=adapter(kind, tmp_path))
    assert bool(obstacle(field)) == (kind != "lora")
