"""θ_pre + Σ λᵢτᵢ against a float64 reference; what is copied, what is refused, and that bytes repeat."""

from __future__ import annotations

import pytest
import torch
from fusing import assert_same, canonical, edited, fuse, load, raw
from pico import pico
from safetensors.torch import load_file, save_file
from tiers import of_each

from lcmmerge.bake.outcome import Settings
from lcmmerge.errors import IncompatibleError, NoEffectError, NumericError, OptionError
from lcmmerge.tensors.encodings.plain import stochastic

LAMBDAS = (0.8, 1.0)
LATER = pytest.mark.e2e  # what differs from the others in a dtype's width alone
DTYPES = ["fp16", pytest.param("bf16", marks=LATER), "fp8_e4m3fn", pytest.param("fp8_e5m2", marks=LATER)]
TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
# A parameter that both adapters update, one that only the style does, and one that nothing does; SD 1's names.
BOTH = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
STYLE_ONLY = "cond_stage_model.transformer.text_model.encoder.layers.3.self_attn.k_proj.weight"
FLOAT32 = torch.finfo(torch.float32).eps
UNTOUCHED = "first_stage_model.decoder.conv_in.weight"


def reference(weights, terms):
    """Canonical name → float64 θ′ of an SD 1 or 2 model; ``terms``: (kohya LoRA file, λ)."""
    exact = {name: tensor.double() for name, tensor in weights.items()}
    for path, strength in terms:
        tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
        for name in exact:
            component, _, module = name.removesuffix(".weight").partition(".")
            prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}.get(component, "?")
            key = prefix + module.replace(".", "_")
            if name.endswith(".weight") and f"{key}.alpha" in tensors:
                up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
                scale = strength * tensors[f"{key}.alpha"] / len(down)
                exact[name] = exact[name] + scale * (up.flatten(1) @ down.flatten(1)).reshape(exact[name].shape)
    return exact


def neighbours(tensor):
    """The next number of the dtype towards and away from zero, in float64; zero's inner one is the other sign's."""
    integer = torch.int16 if tensor.dtype.itemsize == 2 else torch.uint8
    bits, zero = tensor.view(integer), tensor.double() == 0
    outer = (bits + 1).view(tensor.dtype).double()
    inner = torch.where(zero, -outer, (bits - (~zero).to(integer)).view(tensor.dtype).double())
    return inner, torch.where(outer.isnan(), torch.copysign(torch.tensor(torch.inf), tensor.double()), outer)


def check_rounding(found, exact, scale=0.1):
    """Each element is the nearest number or its neighbour; returns how many are not the nearest.

    Where terms cancel, the small result carries the large terms' float32 error, which may be more than a unit of it.
    """
    inner, outer = neighbours(found)
    error = (found.double() - exact).abs()
    nearest = (error <= (inner - exact).abs()) & (error <= (outer - exact).abs())
    gap = torch.maximum((inner - found.double()).abs(), (outer - found.double()).abs())
    assert (error <= gap + FLOAT32 * scale).all()
    return int((~nearest).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_is_rounded_correctly_or_to_the_neighbour(dtype, files, tmp_path):
    inputs = files("sd1")
    base = save_as(inputs.base("fp32"), tmp_path / "base.safetensors", TORCH[dtype])
    fuse(base, tmp_path / "fused.safetensors", inputs.style, inputs.lcm, LAMBDAS)
    before, found = canonical(base), canonical(tmp_path / "fused.safetensors")
    exact = reference(before, [(inputs.style, LAMBDAS[0]), (inputs.lcm, LAMBDAS[1])])
    touched = [name for name in exact if not torch.equal(exact[name], before[name].double())]
    assert len(touched) == 350
    wrong = sum(check_rounding(found[name], exact[name]) for name in touched)
    assert wrong <= 0.001 * sum(exact[name].numel() for name in touched)
    assert all(torch.equal(raw(found[name]), raw(before[name])) for name in exact if name not in touched)


def save_as(path, target, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, target)
    return target


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_rounds_the_sum_once(dtype, files, tmp_path):
    """From a float32 base: rounding the base first would leave more than one element in a thousand wrong."""
    inputs = files("sd1")
    fuse(inputs.base("fp32"), tmp_path / "fused.safetensors", inputs.style, inputs.lcm, LAMBDAS, dtype=dtype)
    found = canonical(tmp_path / "fused.safetensors")
    exact = reference(canonical(inputs.base("fp32")), [(inputs.style, LAMBDAS[0]), (inputs.lcm, LAMBDAS[1])])
    assert {tensor.dtype for tensor in found.values()} == {TORCH[dtype]}
    wrong = sum(check_rounding(found[name], exact[name]) for name in exact)
    assert wrong <= 0.001 * sum(tensor.numel() for tensor in exact.values())


def test_float64_base(files, tmp_path):
    inputs = files("sd1")
    base = save_as(inputs.base("fp32"), tmp_path / "base.safetensors", torch.float64)
    fuse(base, tmp_path / "fused.safetensors", inputs.style, inputs.lcm, LAMBDAS)
    found, exact = (
        canonical(tmp_path / "fused.safetensors"),
        reference(canonical(base), [(inputs.style, 0.8), (inputs.lcm, 1)]),
    )
    for name, tensor in found.items():
        assert tensor.dtype == torch.float64
        assert (tensor - exact[name]).norm() <= 1e-14 * exact[name].norm()  # formed in float64, too


def test_a_small_update_of_a_float64_base_is_rounded_once(files, tmp_path):
    inputs = files("sd1")
    base = save_as(inputs.base("fp32"), tmp_path / "base.safetensors", torch.float64)
    fuse(base, tmp_path / "fused.safetensors", inputs.style, strengths=(1e-6, 0.0))
    exact = reference(canonical(base), [(inputs.style, 1e-6)])
    for name, tensor in canonical(tmp_path / "fused.safetensors").items():
        assert (tensor != exact[name]).double().mean() <= 0.01  # where the update's own last place decides


@pytest.mark.parametrize("name", of_each(["sd1", "sd2", "sdxl", "ssd1b"]))
def test_lambda_zero_gives_the_bases_bytes(name, files, tmp_path):
    inputs = files(name)
    base = pico(name).single_file(tmp_path / "base.safetensors", extras=True)
    fuse(base, tmp_path / "fused.safetensors", inputs.style, inputs.lcm, (0, 0))
    assert_same(load(tmp_path / "fused.safetensors"), load(base))


def test_what_no_term_touches_is_copied_whatever_it_is(files, tmp_path):
    odd = {
        "zero_length": torch.zeros(0, 4, dtype=torch.float16),
        "scalar": torch.tensor(0.5),
        "odd": torch.arange(7, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "steps": torch.arange(5),
        "fp8": torch.linspace(-3, 3, 11).to(torch.float8_e4m3fn),
        "unsigned": torch.arange(3).to(torch.uint16),
    }
    base = edited(files("sd1").base("bf16"), tmp_path / "base.safetensors", **odd)
    fuse(base, tmp_path / "fused.safetensors", lcm=files("sd1").lcm, dtype="fp16")
    found = load(tmp_path / "fused.safetensors")
    assert found.keys() == load(base).keys()
    assert_same({name: found[name] for name in odd}, odd)


def test_a_parameter_of_many_blocks_and_units(files, tmp_path):
    """4.5 M elements, 1501 a row: nine blocks, two writes of 8 MiB, and no later tensor on a page boundary."""
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(3001, 1501, generator=generator).half()
    up, down = torch.randn(3001, 5, generator=generator), torch.randn(5, 1501, generator=generator)
    unet = {name: tensor.half() for name, tensor in pico("sd1").pipeline.unet.state_dict().items()}
    save_file(unet | {f"{name}.weight": large}, tmp_path / "base.safetensors")
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    fuse(
        tmp_path / "base.safetensors", tmp_path / "fused.safetensors", tmp_path / "lora.safetensors",
        strengths=(0.3, 0), settings=Settings(threads=2),
    )  # fmt: skip
    found = load(tmp_path / "fused.safetensors")
    wrong = check_rounding(found.pop(f"{name}.weight"), large.double() + 0.3 * up.double() @ down.double(), 9)
    assert wrong <= 0.001 * large.numel()
    unet.pop(f"{name}.weight")
    assert_same(found, unet)


def test_stored_values_at_odd_addresses(files, tmp_path):
    """Other writers do not align: here every half-precision number begins at an odd byte of the file."""
    inputs = files("sd1")
    data = inputs.base().read_bytes()
    length = int.from_bytes(data[:8], "little")
    odd = length + 1 + length % 2
    shifted = tmp_path / "shifted.safetensors"
    shifted.write_bytes(odd.to_bytes(8, "little") + data[8 : 8 + length] + b" " * (odd - length) + data[8 + length :])
    assert odd % 2 == 1
    fuse(inputs.base(), tmp_path / "expected.safetensors", inputs.style, inputs.lcm)
    fuse(shifted, tmp_path / "found.safetensors", inputs.style, inputs.lcm)
    assert_same(load(tmp_path / "found.safetensors"), load(tmp_path / "expected.safetensors"))


@pytest.mark.parametrize("seed", [None, 0])
def test_the_same_bytes_whatever_the_threads(seed, files, tmp_path):
    inputs = files("sd1")
    for threads in (1, 2, 3):
        target = tmp_path / f"{threads}.safetensors"
        fuse(inputs.base(), target, inputs.style, inputs.lcm, settings=Settings(threads), rounding_seed=seed)
    written = [path.read_bytes() for path in tmp_path.iterdir()]
    assert written[0] == written[1] == written[2]


@pytest.mark.e2e
def test_the_same_bytes_whatever_the_hash_seed(files, process, tmp_path):
    inputs = files("sd1")
    for seed in ("0", "1"):
        done = process(
            "fuse", inputs.base(), inputs.style, "--lcm", inputs.lcm, "-o", tmp_path / seed, PYTHONHASHSEED=seed
        )
        assert done.code == 0, done.err
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


# Stochastic rounding


@pytest.mark.parametrize("dtype", TORCH.values())
def test_stochastic_rounding_takes_one_of_the_two_neighbours(dtype):
    limit = torch.finfo(dtype).max
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([
        torch.randn(20_000, generator=generator),
        torch.randn(20_000, generator=generator) * torch.finfo(dtype).tiny,
        (torch.rand(1_000, generator=generator) * 2 - 1) * limit,
        torch.tensor([0.0, -0.0, limit, -limit, torch.finfo(dtype).smallest_normal]),
    ])  # fmt: skip
    found = stochastic(values, dtype, generator)
    assert found.dtype == dtype
    inner, outer = neighbours(found)
    exact = values.double()
    same = found.double() == exact
    low, high = torch.minimum(inner, outer), torch.maximum(inner, outer)
    assert (same | ((low < exact) & (exact < high))).all()
    assert same[-5:].all()
    assert not same[:20_000].all()


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", TORCH.values())
def test_stochastic_rounding_is_unbiased(dtype, fraction):
    """A value at ``fraction`` of the way between two numbers, on both sides of zero and among the subnormals."""
    generator = torch.Generator().manual_seed(1)
    tiny = torch.finfo(dtype).smallest_normal
    for value, gap in (
        (1.0, torch.finfo(dtype).eps),
        (-1.0, -torch.finfo(dtype).eps),
        (0.0, tiny * torch.finfo(dtype).eps),
    ):
        values = torch.full((40_000,), value + fraction * gap)
        error = (stochastic(values, dtype, generator).double() - values.double()).mean() / abs(gap)
        assert error.abs() < 0.02


OTHERS = [pytest.param(name, marks=pytest.mark.e2e) for name in TORCH if name != "fp16"]


@pytest.mark.parametrize("dtype", ["fp16", *OTHERS])
def test_stochastic_fuse_repeats_with_its_seed_and_loses_less(dtype, files, tmp_path):
    inputs = files("sd1")
    base = save_as(inputs.base("fp32"), tmp_path / "base.safetensors", TORCH[dtype])
    found = {}
    for name, seed in (("nearest", None), ("zero", 0), ("again", 0), ("one", 1)):
        target, lossy = tmp_path / f"{name}.safetensors", {"accept_loss": seed is None}
        fuse(base, target, lcm=inputs.lcm, strengths=(0, 0.01), rounding_seed=seed, **lossy)
        found[name] = canonical(tmp_path / f"{name}.safetensors")
    assert_same(found["zero"], found["again"])
    before = canonical(base)
    exact = reference(before, [(inputs.lcm, 0.01)])
    touched = [name for name in exact if not torch.equal(exact[name], before[name].double())]
    assert any(not torch.equal(raw(found["zero"][name]), raw(found["one"][name])) for name in touched)
    for name in touched:
        check_rounding(found["zero"][name], exact[name])
    kept = {kind: along(found[kind], before, exact, touched) for kind in ("nearest", "zero")}
    assert abs(kept["zero"] - 1) < 0.1
    assert abs(kept["zero"] - 1) < abs(kept["nearest"] - 1) or dtype == "fp16"


def along(found, before, exact, names):
    """How much of τ arrived: ⟨θ′ − θ, τ⟩ / ⟨τ, τ⟩."""
    change = torch.cat([(found[name].double() - before[name].double()).flatten() for name in names])
    wanted = torch.cat([(exact[name] - before[name].double()).flatten() for name in names])
    return float(change @ wanted / (wanted @ wanted))


# Refusals


def refused(error, base, folder, *loras, **options):
    """The error of a fuse that leaves nothing behind."""
    target = folder / "out"
    target.mkdir(exist_ok=True)
    with pytest.raises(error) as caught:
        fuse(base, target / "fused.safetensors", *loras, **options)
    assert list(target.iterdir()) == []
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [(BOTH, float("nan")), (STYLE_ONLY, float("inf")), (UNTOUCHED, float("-inf")), (UNTOUCHED, float("nan"))],
)
def test_nan_or_inf_in_the_base_is_named(name, value, files, tmp_path):
    inputs = files("sd1")
    damaged = load_file(inputs.base())[name]
    damaged.view(-1)[-1] = value
    base = edited(inputs.base(), tmp_path / "base.safetensors", **{name: damaged})
    error = refused(NumericError, base, tmp_path, inputs.style, inputs.lcm)
    assert "base.safetensors" in error.message
    module = {
        BOTH: "attn1.to_q.weight",
        STYLE_ONLY: "layers.3.self_attn.k_proj.weight",
        UNTOUCHED: "decoder.conv_in.weight",
    }
    assert module[name] in error.message
    assert "NaN or Inf" in error.message


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_that_are_no_floats_are_not_added_to(dtype, files, tmp_path):
    inputs = files("sd1")
    base = edited(inputs.base(), tmp_path / "base.safetensors", **{BOTH: load_file(inputs.base())[BOTH].to(dtype)})
    error = refused(IncompatibleError, base, tmp_path, inputs.style, inputs.lcm)
    assert "attn1.to_q.weight is in" in error.message
    assert "before it was quantised" in error.hint


@pytest.mark.parametrize("strength", [3.5e38, 1e300, -1e39, float("inf"), float("nan")])
def test_a_lambda_beyond_float32(strength, files, tmp_path):
    inputs = files("sd1")
    assert refused(OptionError, inputs.base(), tmp_path, inputs.style, inputs.lcm, (strength, 1.0)).exit_code == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["lora_up.weight", "lora_down.weight", "alpha"])
def test_nan_or_inf_in_an_adapter_is_named(role, value, files, tmp_path):
    inputs = files("sd1")
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    damaged = load_file(inputs.style)[f"{module}.{role}"]
    damaged.view(-1)[0] = value
    style = edited(inputs.style, tmp_path / "style.safetensors", **{f"{module}.{role}": damaged})
    error = refused(NumericError, inputs.base(), tmp_path, style, inputs.lcm)
    assert "style.safetensors" in error.message
    assert module in error.message


@pytest.mark.parametrize(
    ("dtype", "excess", "seed"),
    [("fp16", 1.001, None), ("fp16", 1.001, 0), ("fp8_e4m3fn", 1.001, 0), ("fp8_e4m3fn", 1e3, None),
     ("fp8_e5m2", 1.001, None), ("fp8_e5m2", 1e3, 0)],
)  # fmt: skip
def test_overflow_is_named(dtype, excess, seed, files, tmp_path):
    """Also just above the largest number, which stochastic rounding could make infinite."""
    inputs = files("sd1")
    large = load_file(inputs.base("fp32"))[UNTOUCHED]
    large.view(-1)[5] = -excess * torch.finfo(TORCH[dtype]).max
    base = edited(inputs.base("fp32"), tmp_path / "base.safetensors", **{UNTOUCHED: large})
    error = refused(
        NumericError, base, tmp_path, inputs.style, inputs.lcm, dtype=dtype, settings=Settings(1), rounding_seed=seed
    )
    assert "vae.decoder.conv_in.weight" in error.message
    assert "overflows" in error.message
    assert "--dtype" in error.hint


def test_an_untrained_lora_has_no_effect(files, tmp_path):
    zeros = {name: torch.zeros_like(up) for name, up in load_file(files("sd1").style).items() if "lora_up" in name}
    style = edited(files("sd1").style, tmp_path / "style.safetensors", **zeros)
    error = refused(NoEffectError, files("sd1").base(), tmp_path, style, files("sd1").lcm)
    assert "style.safetensors" in error.message
