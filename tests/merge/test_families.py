"""Every family of diffusion transformers, merged by the commands. Oracle: the same sums in float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import flux
import pytest
import torch
from families import each_family, families, folder, single_file, sized, state_of, stored
from fusing import load
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcmmerge import Merge
from lcmmerge.tensors import open_source

FAMILIES = each_family()
RANK = 3
Cli = Callable[..., object]
State = dict[str, Tensor]


def deltas(state: Mapping[str, Tensor], seed: int) -> tuple[State, State]:
    """A LoRA of every matrix, and a difference of every vector: in a file, by whose names the tensors go, and as ΔW."""
    generator = torch.Generator().manual_seed(seed)
    file: State = {}
    found: State = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if kind in ("weight", "scale") and tensor.dim() == 2:
            up = 0.3 * torch.randn(tensor.shape[0], RANK, generator=generator)
            down = 0.3 * torch.randn(RANK, tensor.shape[1], generator=generator)
            file |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
            file[f"{module}.alpha"] = torch.tensor(1.5)
            found[name] = (1.5 / RANK) * (up.double() @ down.double())
        else:
            whole = 0.1 * torch.randn(tensor.shape, generator=generator)
            role = {"weight": "diff", "scale": "diff", "bias": "diff_b"}.get(kind)
            file[f"{module}.{role}" if role else f"{name}.diff"] = whole
            found[name] = whole.double()
    return file, found


def canonical(name: str, single: State) -> State:
    """A single file's tensors as the table reads them."""
    arch = sized(families()[name], state_of(name))
    slots = arch.keymap("single-file").slots
    return {
        key: slots[key].view.fitting(tuple(single[at].shape)).take(single[at])
        for key in state_of(name)
        if (at := slots[key].stored.removeprefix(arch.denoiser.stored)) in single
    }


def doubled(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def added(state: Mapping[str, Tensor], delta: Mapping[str, Tensor], strength: float) -> State:
    return {name: tensor.double() + strength * delta[name] for name, tensor in state.items()}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], within: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=within, atol=within, msg=name)


@pytest.mark.parametrize("name", FAMILIES)
def test_stored_names_on_a_folder(name: str, tmp_path: Path, cli: Cli) -> None:
    """A LoRA of fused tensors on a base that keeps them apart."""
    weights = state_of(name)
    base, target = folder(tmp_path / "base", name, weights), tmp_path / "out"
    single = stored(name, weights)
    file, delta = deltas(single, 1)
    save_file({f"diffusion_model.{key}": tensor for key, tensor in file.items()}, tmp_path / "style.safetensors")
    done = cli("fuse", base, tmp_path / "style.safetensors", "--lambda", "0.8", "0", "-o", target)
    assert done.code == 0, done.err
    assert_close(load(target), canonical(name, added(single, delta, 0.8)))


@pytest.mark.parametrize("name", FAMILIES)
def test_canonical_names_on_a_single_file(name: str, tmp_path: Path, cli: Cli) -> None:
    """A LoRA of parts on a base that has them fused."""
    weights = state_of(name)
    base, target = single_file(tmp_path / "base.safetensors", name, weights), tmp_path / "out.safetensors"
    file, delta = deltas({key.removeprefix("transformer."): tensor for key, tensor in weights.items()}, 2)
    save_file({f"transformer.{key}": tensor for key, tensor in file.items()}, tmp_path / "style.safetensors")
    done = cli("fuse", base, tmp_path / "style.safetensors", "--lambda", "0.8", "0", "-o", target)
    assert done.code == 0, done.err
    begin, found, before = "model.diffusion_model.", load_file(target), load_file(base)
    wanted = added(weights, {f"transformer.{key}": tensor for key, tensor in delta.items()}, 0.8)
    expected = {begin + key: tensor for key, tensor in stored(name, wanted).items()}
    beside = before.keys() - expected.keys()
    assert_close(found, expected | doubled({key: before[key] for key in beside}))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_command(name: str, tmp_path: Path, cli: Cli) -> None:
    weights = state_of(name)
    base = single_file(tmp_path / "base.safetensors", name, weights)
    assert json.loads(cli("inspect", base, "--json").out)["architecture"] == families()[name].name
    loras = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, path in enumerate(loras):
        file, _ = deltas({key: tensor for key, tensor in stored(name, weights).items() if tensor.dim() == 2}, seed)
        save_file({f"diffusion_model.{key}": t for key, t in file.items() if not key.endswith(".diff")}, path)
    both = ("--lcm", loras[1], "--lambda", "0.8", "0.6")
    planned = cli("fuse", base, loras[0], *both, "--dry-run")
    assert planned.code == 0, planned.err
    tuned = tmp_path / "tuned.safetensors"
    for step in (("fuse", base, loras[0], *both, "-o", tuned), ("verify", tuned)):
        done = cli(*step)
        assert done.code == 0, done.err
    lora, combined = tmp_path / "lora.safetensors", tmp_path / "combined.safetensors"
    steps = (
        ("extract", tuned, base, "--rank", 2 * RANK, "--dtype", "fp32", "-o", lora),
        ("combine", loras[0], "0.8", loras[1], "0.6", "--base", base, "--dtype", "fp32", "-o", combined),
    )
    for made, step in zip((lora, combined), steps, strict=True):
        done = cli(*step)
        assert done.code == 0, done.err
        again = tmp_path / f"again-{made.name}"
        done = cli("fuse", base, made, "--lambda", "1", "0", "-o", again)
        assert done.code == 0, done.err
        assert_close(load_file(again), doubled(load_file(tuned)), 1e-4)


@pytest.mark.parametrize("name", ["flux1", "wan", "z_image"])
def test_an_extraction_throws_nothing_away(name: str, tmp_path: Path, cli: Cli) -> None:
    """Norms, biases and bare tables of modulations are differences, of a transformer without being asked for."""
    weights = state_of(name)
    base = single_file(tmp_path / "base.safetensors", name, weights)
    generator = torch.Generator().manual_seed(3)
    noisy = {key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in weights.items()}
    tuned, lora = single_file(tmp_path / "tuned.safetensors", name, noisy), tmp_path / "lora.safetensors"
    done = cli("extract", tuned, base, "--rank", "512", "--dtype", "fp32", "-o", lora, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["left_out"] == []
    kinds = ("lora_up.weight", "lora_down.weight", "alpha", "diff", "diff_b")
    assert all(key.partition(".")[2] in kinds for key in load_file(lora))
    again = tmp_path / "again.safetensors"
    assert cli("fuse", base, lora, "--lambda", "1", "0", "-o", again).code == 0
    wanted = load_file(tuned)
    for key, tensor in load_file(again).items():
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-4, atol=1e-4)
    done = cli("extract", tuned, base, "--no-full", "-o", tmp_path / "plain.safetensors", "--json")
    assert json.loads(done.out)["left_out"] != []


@pytest.mark.parametrize("layout", ["single-file", "folder"])
def test_a_flux_lora_in_every_dialect_gives_the_same_bytes(layout: str, tmp_path: Path, cli: Cli) -> None:
    weights, made = state_of("flux1"), {}
    if layout == "folder":
        base = folder(tmp_path / "base", "flux1", weights)
    else:
        base = single_file(tmp_path / "base.safetensors", "flux1", weights)
    for dialect in flux.DIALECTS:
        style, target = flux.lora(tmp_path / dialect, dialect), tmp_path / f"out-{dialect}{base.suffix}"
        done = cli("fuse", base, style, "--lambda", "0.8", "0", "-o", target)
        assert done.code == 0, (dialect, done.err)
        made[dialect] = load(target)
    first, before = made.pop("kohya"), load(base)
    moved = {name for name in before if not torch.equal(first[name], before[name])}
    assert len(moved) == flux.BLOCKS * (4 + 2 if layout == "single-file" else 8 + 4)
    for dialect, found in made.items():
        assert found.keys() == first.keys()
        assert not [name for name, tensor in first.items() if not torch.equal(found[name], tensor)], dialect


@pytest.mark.parametrize("begin", ["lora_te3_", "lora_te2_", "text_encoder_2.", "text_encoders.t5xxl.transformer."])
def test_an_adapter_reaches_a_text_encoder_that_keeps_its_names(begin: str, tmp_path: Path, cli: Cli) -> None:
    base, module = folder(tmp_path / "base", "flux1", state_of("flux1")), "encoder.block.0.layer.0.SelfAttention.q"
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": ["transformers", "T5EncoderModel"]}))
    (base / "text_encoder_2").mkdir()
    weights = {f"{module}.weight": torch.randn(6, 4), "encoder.final_layer_norm.weight": torch.randn(4)}
    save_file(weights, base / "text_encoder_2" / "model.safetensors")
    key = begin + (module.replace(".", "_") if begin.startswith("lora") else module)
    up, down = torch.randn(6, RANK), torch.randn(RANK, 4)
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, tmp_path / "style.safetensors")
    done = cli("fuse", base, tmp_path / "style.safetensors", "--lambda", "0.5", "0", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    found = load(tmp_path / "out")
    wanted = weights[f"{module}.weight"].double() + 0.5 * (up.double() @ down.double())
    torch.testing.assert_close(found[f"text_encoder_2.{module}.weight"].double(), wanted, rtol=1e-6, atol=1e-6)


def test_an_alpha_that_nobody_tells_is_not_guessed(tmp_path: Path, cli: Cli) -> None:
    base = single_file(tmp_path / "base.safetensors", "flux1", state_of("flux1"))
    style = flux.lora(tmp_path / "named", "named")
    (style.parent / "adapter_config.json").unlink()
    done = cli("fuse", base, style, "--lambda", "0.8", "0", "-o", tmp_path / "out.safetensors")
    done.assert_fault(3, "has no alpha")
    assert "--alpha" in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_an_alpha_that_is_given(tmp_path: Path, cli: Cli) -> None:
    """As if its sidecar were there, in the merge, its record, its command, and a combination."""
    base = single_file(tmp_path / "base.safetensors", "flux1", state_of("flux1"))
    told, style = flux.lora(tmp_path / "told", "named"), flux.lora(tmp_path / "named", "named")
    (style.parent / "adapter_config.json").unlink()
    out, wanted = tmp_path / "out.safetensors", tmp_path / "wanted.safetensors"
    options = ("--lambda", "0.8", "0")
    done = cli("fuse", base, style, *options, "--alpha", "style", str(flux.ALPHA), "-o", out)
    assert done.code == 0, done.err
    assert cli("fuse", base, told, *options, "-o", wanted).code == 0
    found, expected = load(out), load(wanted)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert cli("verify", out, "--source", base, "--source", style).code == 0
    merge = Merge.from_dict(json.loads(open_source(out).metadata["sd_merge_recipe"]))
    assert [term.alpha for term in merge.terms] == [flux.ALPHA]
    assert merge.command().endswith(f"--alpha style {flux.ALPHA}")
    cli("combine", style, "0.8", "-o", tmp_path / "none.safetensors").assert_fault(3, "has no alpha")
    one = tmp_path / "one.safetensors"
    assert cli("combine", style, "0.8", "--alpha", "lora", str(flux.ALPHA), "-o", one).code == 0
    assert cli("fuse", base, one, "--lambda", "1", "0", "-o", tmp_path / "by-one.safetensors").code == 0
    for name, tensor in load(tmp_path / "by-one.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("dialect", "alpha", "code", "said"),
    [
        ("named", "4", 3, "has an alpha of its own, 2, and 4 is given"),  # of its sidecar
        ("kohya", "4", 3, "has an alpha of its own, 2, and 4 is given"),
        ("kohya", "0", 2, "not a finite number above 0"),
        ("kohya", "nan", 2, "not a finite number above 0"),
    ],
)
def test_an_alpha_that_is_told_already(
    dialect: str, alpha: str, code: int, said: str, tmp_path: Path, cli: Cli
) -> None:
    base = single_file(tmp_path / "base.safetensors", "flux1", state_of("flux1"))
    style = flux.lora(tmp_path / dialect, dialect)
    done = cli("fuse", base, style, "--lambda", "1", "0", "--alpha", "style", alpha, "-o", tmp_path / "out.safetensors")
    done.assert_fault(code, said)
    assert not (tmp_path / "out.safetensors").exists()


def test_an_alpha_of_what_has_none(tmp_path: Path, cli: Cli) -> None:
    base = single_file(tmp_path / "base.safetensors", "flux1", state_of("flux1"))
    options = ("--lambda", "1", "0", "--alpha", "style", "4", "-o", tmp_path / "out.safetensors")
    cli("fuse", base, base, *options).assert_fault(3, "nothing in it is scaled by an alpha")


FIRST = {"flux1": "x_embedder.weight", "wan": "patch_embedding.weight", "hunyuan_video": "x_embedder.proj.weight"}


@pytest.mark.parametrize("name", FIRST)
def test_an_inpainting_model_of_a_tuned_one(name: str, tmp_path: Path, cli: Cli) -> None:
    """FLUX.1 Fill, Wan's image to video: more input channels, behind those of the base."""
    weights, first = state_of(name), f"transformer.{FIRST[name]}"
    generator = torch.Generator().manual_seed(5)
    wide = (weights[first].shape[0], 5, *weights[first].shape[2:])

    def noisy() -> State:
        return {key: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in weights.items()}

    more, tuned_weights = noisy(), noisy()
    fill_weights = more | {first: torch.cat([more[first], torch.randn(wide, generator=generator)], 1)}
    states = {"base": weights, "fill": fill_weights, "tuned": tuned_weights}
    base, fill, tuned = (single_file(tmp_path / f"{key}.safetensors", name, state) for key, state in states.items())
    out = tmp_path / "out.safetensors"
    done = cli("fuse", fill, tuned, "--tuned-from", base, "--lambda", "0.5", "0", "-o", out)
    assert done.code == 0, done.err
    shared = weights[first].shape[1]
    assert f"made for {shared} input channels, the base has {shared + 5}: only the first {shared} change" in done.err
    assert cli("verify", out, *(f"--source={path}" for path in (fill, tuned, base))).code == 0
    delta = {key: 0.5 * (tuned_weights[key].double() - weights[key].double()) for key in weights}
    delta[first] = torch.cat([delta[first], torch.zeros(wide)], 1)
    wanted = stored(name, {key: fill_weights[key].double() + delta[key] for key in delta})
    for key, tensor in load_file(out).items():
        inner = key.removeprefix("model.diffusion_model.")
        torch.testing.assert_close(tensor.double(), wanted[inner], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "code"), [(4, 0), (12, 3)])
def test_a_lora_of_the_first_layer_with_other_channels(channels: int, code: int, tmp_path: Path, cli: Cli) -> None:
    """One of FLUX.1 dev on Fill; with more channels than the base it is a control LoRA, and no change of the base."""
    weights, first = state_of("flux1"), "transformer.x_embedder.weight"
    weights = weights | {first: torch.cat([weights[first], torch.ones(16, 4)], 1)}
    base = single_file(tmp_path / "base.safetensors", "flux1", weights)
    up, down = torch.randn(16, RANK), torch.randn(RANK, channels)
    lora = {"transformer.x_embedder.lora_A.weight": down, "transformer.x_embedder.lora_B.weight": up}
    save_file(lora, tmp_path / "lora.safetensors")
    done = cli("fuse", base, tmp_path / "lora.safetensors", "--lambda", "1", "0", "-o", tmp_path / "out.safetensors")
    assert done.code == code, done.err
    if not code:
        found = load_file(tmp_path / "out.safetensors")["model.diffusion_model.img_in.weight"]
        wanted = weights[first] + torch.cat([up @ down, torch.zeros(16, 4)], 1)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert "made for 4 input channels, the base has 8" in done.err


@pytest.mark.parametrize(
    ("name", "kind", "times"),
    [("krea2", "", 1), ("krea2", "krea2-turbo", 1), ("flux1", "", 1), ("flux1", "flux-turbo-alpha", 1), ("wan", "", 0)],
)
def test_what_the_licence_of_a_base_asks_is_warned_of_once(
    name: str, kind: str, times: int, tmp_path: Path, cli: Cli
) -> None:
    base = single_file(tmp_path / "base.safetensors", name, state_of(name))
    module = next(key for key, tensor in state_of(name).items() if "blocks" in key and tensor.dim() == 2)
    rows, width = state_of(name)[module].shape
    key = module.removesuffix(".weight")
    save_file({f"{key}.lora_A.weight": torch.ones(1, width), f"{key}.lora_B.weight": torch.ones(rows, 1)},
              tmp_path / "lora.safetensors")  # fmt: skip
    lora, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    given = ("--accelerator", lora, "--accelerator", kind) if kind else (lora, "--lambda", "1", "0")
    done = cli("fuse", base, *given, "-o", out)
    assert done.code == 0, done.err
    duty = families()[name].family.duty
    assert (done.err.count(duty) if duty else 0) == times
    assert (" is under " in done.err, "whose licence says" in done.err) == (bool(kind), bool(times and not kind))


def test_flux_schnell_may_be_used_by_all(tmp_path: Path, cli: Cli) -> None:
    weights = {key: tensor for key, tensor in state_of("flux1").items() if "guidance" not in key}
    base = single_file(tmp_path / "base.safetensors", "flux1", weights)
    done = cli("fuse", base, flux.lora(tmp_path / "lora", "kohya"), "--lambda", "1", "0", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "licence" not in done.err


@pytest.mark.parametrize("begin", ["diffusion_model.", "conditional_transformer."])
def test_an_ideogram_lora_by_its_own_names(begin: str, tmp_path: Path, cli: Cli) -> None:
    """Oracle: diffusers' converter of LoRAs."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ideogram4_lora_to_diffusers as convert

    weights, generator = state_of("ideogram4"), torch.Generator().manual_seed(4)
    sizes = {"attention.qkv": (48, 16), "attention.o": (16, 16), "feed_forward.w2": (16, 20)}
    lora: State = {}
    for module, (rows, width) in sizes.items():
        key = f"{begin}layers.1.{module}"
        lora |= {f"{key}.lora_up.weight": torch.randn(rows, RANK, generator=generator),
                 f"{key}.lora_down.weight": torch.randn(RANK, width, generator=generator),
                 f"{key}.alpha": torch.tensor(1.5)}  # fmt: skip
    save_file(lora, tmp_path / "lora.safetensors")
    base, out = folder(tmp_path / "base", "ideogram4", weights), tmp_path / "out"
    second = "unconditional_transformer"
    shutil.copytree(base / "transformer", base / second)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {second: index["transformer"]}))
    done = cli("fuse", base, tmp_path / "lora.safetensors", "--lambda", "0.5", "0", "-o", out)
    assert done.code == 0, done.err
    found, converted = load(out), convert(dict(lora))
    modules = {key.removesuffix(".lora_A.weight") for key in converted if key.endswith(".lora_A.weight")}
    for key, tensor in weights.items():
        module = key.removesuffix(".weight")
        change = converted[f"{module}.lora_B.weight"] @ converted[f"{module}.lora_A.weight"] if module in modules else 0
        torch.testing.assert_close(found[key], tensor + 0.5 * change, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[f"{second}.{key.removeprefix('transformer.')}"], tensor)
