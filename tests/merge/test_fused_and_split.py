"""Every algorithm's adapter, by a fused tensor's names on a base that keeps its parts apart, and the other way round.

Oracle: W + λΔW in float64 over the tensor that the adapter was made for, each algorithm written anew from its paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import families, folder, single_file, sized, state_of, stored
from fusing import load
from safetensors.torch import save_file
from torch import Tensor

Cli = Callable[..., object]
State = dict[str, Tensor]
RANK, ALPHA, STRENGTH = 2, 1.5, 0.8
SCALE = ALPHA / RANK
PEFT_OFT = {"peft_type": "OFT", "coft": False, "eps": 1e-4, "use_cayley_neumann": False, "num_cayley_neumann_terms": 5}


class Made:
    """An adapter of one matrix or vector: its tensors, and ΔW."""

    def __init__(self, weight: Tensor, seed: int) -> None:
        self.weight = weight.double()
        self.out, self.width = weight.shape if weight.dim() == 2 else (weight.shape[0], 0)
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: State = {}

    def random(self, name: str, *shape: int, shift: float = 0.0) -> Tensor:
        self.tensors[name] = shift + 0.3 * torch.randn(*shape, generator=self.generator)
        return self.tensors[name].double()

    def alpha(self) -> None:
        self.tensors["alpha"] = torch.tensor(ALPHA)

    def product(self) -> Tensor:
        self.alpha()
        up, down = self.random("lora_up.weight", self.out, RANK), self.random("lora_down.weight", RANK, self.width)
        return SCALE * up @ down


def lora(made: Made) -> Tensor:
    return made.product()


def pointwise(made: Made) -> Tensor:
    """A LoCon of 1×1 kernels."""
    delta = made.product()
    for name in ("lora_up.weight", "lora_down.weight"):
        made.tensors[name] = made.tensors[name][:, :, None, None].contiguous()
    return delta


def loha(made: Made) -> Tensor:
    made.alpha()
    first, second = (
        made.random(f"hada_w{i}_a", made.out, RANK) @ made.random(f"hada_w{i}_b", RANK, made.width) for i in (1, 2)
    )
    return SCALE * first * second


def lokr(made: Made) -> Tensor:
    made.alpha()
    left = made.random("lokr_w1", 2, 2)
    a, b = made.random("lokr_w2_a", made.out // 2, RANK), made.random("lokr_w2_b", RANK, made.width // 2)
    return SCALE * torch.kron(left, a @ b)


def lokr_whole(made: Made) -> Tensor:
    """ai-toolkit writes a number as alpha that means nothing, where both halves are whole."""
    made.tensors["alpha"] = torch.tensor(1e10)
    return torch.kron(made.random("lokr_w1", 2, 2), made.random("lokr_w2", made.out // 2, made.width // 2))


def dora(name: str, axis: int) -> Callable[[Made], Tensor]:
    def delta(made: Made) -> Tensor:
        v = made.weight + made.product()
        shape = {"lora_magnitude_vector": (made.out,)}.get(name, (made.out, 1) if axis else (1, made.width))
        m = made.random(name, *shape, shift=1.5)
        m = m[:, None] if m.dim() == 1 else m
        return m * v / v.pow(2).sum(axis, keepdim=True).sqrt() - made.weight

    return delta


def rotations(skew: Tensor) -> Tensor:
    one = torch.eye(skew.shape[-1], dtype=torch.float64)
    return (one + skew) @ torch.linalg.inv(one - skew)


def oft(made: Made) -> Tensor:
    x = made.random("oft_blocks", made.out // 2, 2, 2)
    r = rotations(x - x.mT)
    return torch.block_diag(*r).T @ made.weight - made.weight


def peft_oft(made: Made) -> Tensor:
    triangle = made.random("oft_R.weight", made.width // 2, 1)[:, 0]
    skew = torch.stack([torch.tensor([[0.0, q], [-q, 0.0]], dtype=torch.float64) for q in triangle.tolist()])
    return made.weight @ torch.block_diag(*rotations(-skew)).T - made.weight


def glora(made: Made) -> Tensor:
    made.alpha()
    a = made.random("a1.weight", made.width, RANK) @ made.random("a2.weight", RANK, made.width)
    b = made.random("b1.weight", made.out, RANK) @ made.random("b2.weight", RANK, made.width)
    return SCALE * (made.weight @ a + b)


def difference(made: Made) -> Tensor:
    return made.random("diff", made.out, made.width)


def ia3(axis: int) -> Callable[[Made], Tensor]:
    def delta(made: Made) -> Tensor:
        made.tensors["on_input"] = torch.tensor([axis == 0])
        vector = made.random("weight", made.width if axis == 0 else made.out)
        return made.weight * (vector if axis == 0 else vector[:, None])

    return delta


ALGORITHMS = {
    "lora": lora, "locon": pointwise, "loha": loha, "lokr": lokr, "lokr whole": lokr_whole,
    "dora by outputs": dora("dora_scale", 1), "dora by inputs": dora("dora_scale", 0),
    "peft's dora": dora("lora_magnitude_vector", 1),
    "oft": oft, "peft's oft": peft_oft, "glora": glora, "diff": difference,
    "ia3 by outputs": ia3(1), "ia3 by inputs": ia3(0),
}  # fmt: skip


def made_for(state: State, algorithm: str) -> tuple[State, State]:
    """An adapter's file of every matrix, and ΔW by the names in ``state``."""
    file: State = {}
    deltas: State = {}
    for seed, (name, weight) in enumerate(state.items()):
        if weight.dim() != 2 or not name.endswith(".weight") or weight.shape[0] % 2 or weight.shape[1] % 2:
            continue
        made = Made(weight, seed)
        deltas[name] = ALGORITHMS[algorithm](made)
        file |= {f"{name.removesuffix('.weight')}.{role}": tensor for role, tensor in made.tensors.items()}
    return file, deltas


def without(state: State, begin: str) -> State:
    return {name.removeprefix(begin): tensor for name, tensor in state.items()}


def split(family: str, single: State) -> State:
    """A single file's tensors as canonical ones."""
    arch = sized(families()[family], state_of(family))
    slots = arch.keymap("single-file").slots
    at = {name: slots[name].stored.removeprefix(arch.denoiser.stored) for name in state_of(family)}
    return {
        name: slots[name].view.fitting(tuple(single[stored].shape)).take(single[stored]) for name, stored in at.items()
    }


def merged(family: str, on: str, style: Path, tmp_path: Path, cli: Cli) -> State:
    """Canonical names, whatever the base's are."""
    weights = state_of(family)
    if on == "split":
        base, target = folder(tmp_path / "base", family, weights), tmp_path / "out"
    else:
        base, target = single_file(tmp_path / "base.safetensors", family, weights, ""), tmp_path / "out.safetensors"
    done = cli("fuse", base, style, "--lambda", STRENGTH, "0", "-o", target)
    assert done.code == 0, done.err
    return load(target) if on == "split" else split(family, load(target))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("made", "on"), [("fused", "split"), ("split", "fused")])
@pytest.mark.parametrize("family", ["flux1", "z_image"])
def test_an_adapter_of_the_other_name_space(
    family: str, made: str, on: str, algorithm: str, tmp_path: Path, cli: Cli
) -> None:
    weights = state_of(family)
    state = stored(family, weights) if made == "fused" else without(weights, "transformer.")
    file, deltas = made_for(state, algorithm)
    begin = "diffusion_model." if made == "fused" else "transformer."
    save_file({begin + name: tensor for name, tensor in file.items()}, tmp_path / "style.safetensors")
    if algorithm == "peft's oft":
        (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT_OFT))
    found = merged(family, on, tmp_path / "style.safetensors", tmp_path, cli)
    wanted = {name: w.double() + STRENGTH * deltas.get(name, torch.zeros(())) for name, w in state.items()}
    wanted = split(family, wanted) if made == "fused" else {f"transformer.{k}": w for k, w in wanted.items()}
    assert found.keys() == wanted.keys()
    assert len(deltas) > 20
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name].double(), weight, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("made", "on"), [("fused", "split"), ("split", "fused")])
@pytest.mark.parametrize("family", ["flux1", "z_image", "sd3"])
def test_biases_of_the_other_name_space(family: str, made: str, on: str, tmp_path: Path, cli: Cli) -> None:
    """PEFT's ``lora_B.bias``, whose alpha is in a configuration."""
    weights = state_of(family)
    state = stored(family, weights) if made == "fused" else without(weights, "transformer.")
    file: State = {}
    wanted = {name: weight.double() for name, weight in state.items()}
    for seed, name in enumerate(state):
        module = name.removesuffix(".bias")
        weight = state.get(f"{module}.weight")
        if module == name or weight is None or weight.dim() != 2:
            continue
        generator, scale = torch.Generator().manual_seed(seed), STRENGTH * SCALE
        out, width = weight.shape
        shapes = {"lora_A.weight": (RANK, width), "lora_B.weight": (out, RANK), "lora_B.bias": (out,)}
        a, b, of_b = (0.3 * torch.randn(*shape, generator=generator) for shape in shapes.values())
        file |= {f"base_model.model.{module}.{role}": each for role, each in zip(shapes, (a, b, of_b), strict=True)}
        wanted[f"{module}.weight"] += scale * b.double() @ a.double()
        wanted[name] += scale * of_b.double()
    save_file(file, tmp_path / "style.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_bias": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = merged(family, on, tmp_path / "style.safetensors", tmp_path, cli)
    wanted = split(family, wanted) if made == "fused" else {f"transformer.{name}": w for name, w in wanted.items()}
    assert found.keys() == wanted.keys() and file
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name].double(), weight, rtol=1e-5, atol=1e-5, msg=name)
