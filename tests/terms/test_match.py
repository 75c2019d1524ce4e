"""What can be a term: adapters of every kind, whole checkpoints; and what is refused, with its likely cause."""

import pytest
import torch
from adapterfile import delta, write
from fusing import assert_same, canonical, edited, fuse, load
from merging import merge_of
from pico import pico
from safetensors.torch import load_file, save_file
from tiers import of_each

from lcmmerge.adapters import read_adapter
from lcmmerge.errors import (
    LcmMergeError,
    ShapeMismatchError,
    UnknownArchitectureError,
    UnmatchedKeysError,
)
from lcmmerge.merge.plan import plan

QUERY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # 8×8
OUT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"  # 32×32, with a bias
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"  # 32×64×3×3
NORM = "lora_unet_mid_block_attentions_0_norm"
TEXT = "lora_te_text_model_encoder_layers_2_mlp_fc1"  # 32×16
PARAMETERS = {
    QUERY: "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    OUT: "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    CONV: "unet.up_blocks.1.resnets.0.conv1",
    NORM: "unet.mid_block.attentions.0.norm",
    TEXT: "text_encoder.text_model.encoder.layers.2.mlp.fc1",
}


def drawn(*shape):
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


ADAPTERS = {
    "lora": {
        f"{QUERY}.lora_up.weight": drawn(8, 3), f"{QUERY}.lora_down.weight": drawn(3, 8),
        f"{QUERY}.alpha": torch.tensor(2.0),
        f"{CONV}.lora_up.weight": drawn(32, 3, 1, 1), f"{CONV}.lora_down.weight": drawn(3, 64, 3, 3),
        f"{TEXT}.lora_up.weight": drawn(32, 2), f"{TEXT}.lora_down.weight": drawn(2, 16),
    },
    "tucker": {
        f"{CONV}.lora_up.weight": drawn(32, 3, 1, 1), f"{CONV}.lora_mid.weight": drawn(3, 3, 3, 3),
        f"{CONV}.lora_down.weight": drawn(3, 64, 1, 1), f"{CONV}.alpha": torch.tensor(1.5),
    },
    "loha": {
        f"{OUT}.hada_w1_a": drawn(32, 4), f"{OUT}.hada_w1_b": drawn(4, 32),
        f"{OUT}.hada_w2_a": drawn(32, 4), f"{OUT}.hada_w2_b": drawn(4, 32), f"{OUT}.alpha": torch.tensor(2.0),
    },
    "lokr": {f"{OUT}.lokr_w1": drawn(4, 4), f"{OUT}.lokr_w2_a": drawn(8, 2), f"{OUT}.lokr_w2_b": drawn(2, 8)},
    "full": {f"{QUERY}.diff": drawn(8, 8), f"{OUT}.diff": drawn(32, 32), f"{OUT}.diff_b": drawn(32)},
    "norm": {f"{NORM}.w_norm": drawn(32), f"{NORM}.b_norm": drawn(32)},
    "dora": {
        f"{QUERY}.lora_up.weight": drawn(8, 3), f"{QUERY}.lora_down.weight": drawn(3, 8),
        f"{QUERY}.dora_scale": 1 + drawn(1, 8),
        f"{CONV}.lora_up.weight": drawn(32, 3, 1, 1), f"{CONV}.lora_down.weight": drawn(3, 64, 3, 3),
        f"{CONV}.dora_scale": 1 + drawn(32, 1, 1, 1),
    },
    "oft": {f"{OUT}.oft_blocks": drawn(8, 4, 4), f"{TEXT}.oft_blocks": drawn(8, 4, 4)},
    "boft": {f"{OUT}.oft_blocks": drawn(2, 8, 4, 4)},
    "ia3": {f"{OUT}.weight": drawn(32), f"{OUT}.on_input": torch.tensor(False)},
    "glora": {
        f"{OUT}.a1.weight": drawn(32, 3), f"{OUT}.a2.weight": drawn(3, 32),
        f"{OUT}.b1.weight": drawn(32, 3), f"{OUT}.b2.weight": drawn(3, 32),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_kind_of_adapter_adds_lambda_times_its_update(kind, files, tmp_path):
    """Factored, dense and dependent updates; in each layout, whose 1×1 convolutions and names differ."""
    source = write(tmp_path / "style.safetensors", ADAPTERS[kind])
    patches = {f"{PARAMETERS[patch.key]}.{patch.parameter}": patch for patch in read_adapter(source).patches}
    before = canonical(files("sd1").base("fp32"))
    fuse(files("sd1").base("fp32"), tmp_path / "fused.safetensors", source.path, strengths=(0.7, 0))
    fuse(files("sd1").folder("fp32"), tmp_path / "fused", source.path, strengths=(0.7, 0))
    found = canonical(tmp_path / "fused.safetensors")
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name for name in patches if name in before} != set()
    for name in changed:
        exact = before[name].double() + 0.7 * delta(patches[name], before[name]).double()
        assert (found[name] - exact).norm() <= 1e-6 * exact.norm()
        assert (found[name] - before[name]).norm() > 1e-3 * exact.norm()
    assert_same(canonical(tmp_path / "fused"), found)


def test_extra_terms_add_up(files, tmp_path):
    inputs = files("sd1")
    extra = [write(tmp_path / f"{kind}.safetensors", ADAPTERS[kind]).path for kind in ("lora", "dora", "loha")]
    terms = tuple(zip(extra, (0.3, -0.5, 1.2), strict=True))
    report = fuse(
        inputs.base("fp32"), tmp_path / "all.safetensors", inputs.style, inputs.lcm, (0.8, 0.9), adapters=terms
    )
    assert [(row.term, row.strength) for row in report.rows if row.component == "unet"] == [
        ("style", 0.8), ("lcm", 0.9), ("lora", 0.3), ("dora", -0.5), ("loha", 1.2),
    ]  # fmt: skip
    before = canonical(inputs.base("fp32"))
    expected = {name: tensor.double() for name, tensor in before.items()}
    for path, strength in ((inputs.style, 0.8), (inputs.lcm, 0.9), *terms):
        fuse(inputs.base("fp32"), tmp_path / "one.safetensors", path, strengths=(strength, 0), force=True)
        for name, tensor in canonical(tmp_path / "one.safetensors").items():
            expected[name] += tensor.double() - before[name].double()
    for name, tensor in canonical(tmp_path / "all.safetensors").items():
        assert (tensor - expected[name]).norm() <= 1e-6 * expected[name].norm()


def test_terms_of_the_same_name_are_told_apart(files, tmp_path):
    """The Hub's LoRAs are all called pytorch_lora_weights.safetensors."""
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        tensors = ADAPTERS["lora"] | {
            f"lora_unet_{folder}.lora_up.weight": drawn(8, 3),
            f"lora_unet_{folder}.lora_down.weight": drawn(3, 8),
        }
        paths.append(write(tmp_path / folder / "weights.safetensors", tensors).path)
    report = fuse(
        files("sd1").base(), tmp_path / "fused.safetensors", adapters=tuple((path, 1.0) for path in paths),
        allow_unmatched=True, block_weights={"weights-2": "BASE=0"},
    )  # fmt: skip
    assert report.unmatched == {"weights": ("lora_unet_one",), "weights-2": ("lora_unet_two",)}
    assert [(row.term, row.component) for row in report.rows] == [
        ("weights", "unet"), ("weights", "text_encoder"), ("weights-2", "unet"),
    ]  # fmt: skip


def test_lcm_alone(files, tmp_path):
    report = fuse(files("sdxl").base(), tmp_path / "fused.safetensors", lcm=files("sdxl").lcm)
    assert [(row.term, row.component, row.parameters) for row in report.rows] == [("lcm", "unet", 788)]


# A whole checkpoint as the style


@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
@pytest.mark.parametrize("name", of_each(["sd1", "sdxl"]))
def test_a_fine_tuned_checkpoint_is_a_dense_term(name, layout, files, tmp_path):
    """τ′ = θ_ft − θ_pre, also where the two are in different layouts and dtypes."""
    tuned = pico(name, seed=1)
    path = (
        tuned.single_file(tmp_path / "tuned.safetensors")
        if layout == "single-file"
        else tuned.folder(tmp_path / "tuned")
    )
    report = fuse(files(name).base("fp32"), tmp_path / "fused.safetensors", path, strengths=(0.6, 0))
    assert {row.component for row in report.rows} == set(tuned.arch.components)
    before, after = canonical(files(name).base("fp32")), canonical(path)
    for parameter, tensor in canonical(tmp_path / "fused.safetensors").items():
        exact = before[parameter].double() + 0.6 * (after[parameter].double() - before[parameter].double())
        assert (tensor - exact).norm() <= 1e-6 * exact.norm(), parameter


@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_tuned_from_names_what_it_was_tuned_from(layout, files, tmp_path):
    tuned, origin = pico("sd2", seed=1), pico("sd2", seed=2)
    style = tuned.single_file(tmp_path / "tuned.safetensors", "fp32")
    start = (
        origin.single_file(tmp_path / "origin.safetensors", "fp32")
        if layout == "single-file"
        else origin.folder(tmp_path / "origin", "fp32")
    )
    fuse(
        files("sd2").folder("fp32"), tmp_path / "fused", style, files("sd2").lcm, (0.6, 1.0),
        tuned_from=start, block_weights={"style": "BASE=0,IN00-OUT11=0.5"},
    )  # fmt: skip
    fuse(files("sd2").folder("fp32"), tmp_path / "lcm", lcm=files("sd2").lcm)
    before, end, begin = canonical(tmp_path / "lcm"), tuned.state(), origin.state()
    for name, tensor in canonical(tmp_path / "fused").items():
        factor = 0.3 if name.startswith("unet.") else 0.0
        exact = before[name].double() + factor * (end[name].double() - begin[name].double())
        assert (tensor - exact).norm() <= 1e-6 * exact.norm(), name


def test_a_checkpoint_that_is_the_base_has_no_effect(files, tmp_path):
    with pytest.raises(LcmMergeError, match="changes nothing") as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", files("sd1").folder(), strengths=(1, 0))
    assert caught.value.exit_code == 3


def test_a_checkpoint_of_another_architecture(files, tmp_path):
    with pytest.raises(LcmMergeError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", files("sd2").base(), strengths=(1, 0))
    assert caught.value.exit_code == 3
    assert "Stable Diffusion 2" in caught.value.hint


def test_what_only_a_whole_checkpoint_of_another_kind_has_is_unmatched(files, tmp_path):
    """The guidance's embedding of a whole LCM, but not what is left of a LoRA, nor an EMA copy."""
    strangers = {
        "model.diffusion_model.time_embed.cond_proj.weight": drawn(8, 4),
        "model.diffusion_model.out.2.lora_up.weight": drawn(4, 4),
        "model.diffusion_model.out.2.lora_down.weight": drawn(4, 4),
        "model_ema.diffusion_modelout2weight": drawn(4, 4),
    }
    edited(pico("sd1", seed=1).single_file(tmp_path / "t.safetensors"), tmp_path / "tuned.safetensors", **strangers)
    with pytest.raises(UnmatchedKeysError, match=r"1 of its .*\.time_embed\.cond_proj\.weight") as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "tuned.safetensors")
    assert "both are Stable Diffusion 1" in caught.value.hint
    report = fuse(
        files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "tuned.safetensors", allow_unmatched=True
    )
    assert report.unmatched == {"style": ("model.diffusion_model.time_embed.cond_proj.weight",)}


# Models whose first layer has other input channels

FIRST = "lora_unet_conv_in"
FIRST_LAYERS = {
    "lora": {f"{FIRST}.lora_up.weight": drawn(8, 2, 1, 1), f"{FIRST}.lora_down.weight": drawn(2, 4, 3, 3)},
    "full": {f"{FIRST}.diff": drawn(8, 4, 3, 3)},
    "dora": {
        f"{FIRST}.lora_up.weight": drawn(8, 2, 1, 1), f"{FIRST}.lora_down.weight": drawn(2, 4, 3, 3),
        f"{FIRST}.dora_scale": 1 + drawn(8, 1, 1, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", FIRST_LAYERS)
def test_an_adapter_of_four_channels_goes_into_the_first_four_of_nine(kind, files, tmp_path):
    source = write(tmp_path / "style.safetensors", FIRST_LAYERS[kind])
    base = files("sd1-inpainting").base("fp32")
    planned = plan(merge_of(base, tmp_path / "fused.safetensors", source.path, (0.7, 0.0)))
    assert planned.doubts[-1:] == (
        "style: made for 4 input channels, the base has 9: only the first 4 change",
    )
    fuse(base, tmp_path / "fused.safetensors", source.path, strengths=(0.7, 0))
    before, found = canonical(base), canonical(tmp_path / "fused.safetensors")
    name = "unet.conv_in.weight"
    assert {key for key in found if not torch.equal(found[key], before[key])} == {name}
    (patch,) = read_adapter(source).patches
    exact = before[name].clone()
    exact[:, :4] += 0.7 * delta(patch, before[name][:, :4])
    assert (found[name] - exact).norm() <= 1e-6 * exact.norm()
    assert torch.equal(found[name][:, 4:], before[name][:, 4:])


def test_an_adapter_of_nine_channels_on_four(files, tmp_path):
    """What is added does not depend on the channels that the base lacks; a DoRA's norm does."""
    up, down = drawn(8, 2, 1, 1), drawn(2, 9, 3, 3)
    tensors = {f"{FIRST}.lora_up.weight": up, f"{FIRST}.lora_down.weight": down}
    write(tmp_path / "style.safetensors", tensors)
    base = files("sd1").base("fp32")
    fuse(base, tmp_path / "fused.safetensors", tmp_path / "style.safetensors", strengths=(1, 0))
    before, found = canonical(base)["unet.conv_in.weight"], canonical(tmp_path / "fused.safetensors")
    exact = before + (up.flatten(1) @ down.flatten(1)).reshape(8, 9, 3, 3)[:, :4]
    assert (found["unet.conv_in.weight"] - exact).norm() <= 1e-6 * exact.norm()
    write(tmp_path / "dora.safetensors", tensors | {f"{FIRST}.dora_scale": drawn(8, 1, 1, 1)})
    with pytest.raises(ShapeMismatchError):
        fuse(base, tmp_path / "no.safetensors", tmp_path / "dora.safetensors", strengths=(1, 0))


@pytest.mark.parametrize("method", ["add", "ties"])
def test_an_inpainting_model_of_a_tuned_one(method, files, tmp_path):
    """θ_inpainting + (θ_tuned − θ_base), of nine and four channels."""
    tuned = pico("sd1", seed=1).single_file(tmp_path / "tuned.safetensors", "fp32")
    base, origin = files("sd1-inpainting").base("fp32"), files("sd1").base("fp32")
    fuse(base, tmp_path / "fused.safetensors", tuned, strengths=(1, 0), tuned_from=origin, method=method)
    before, found, end, begin = map(canonical, (base, tmp_path / "fused.safetensors", tuned, origin))
    name = "unet.conv_in.weight"
    assert torch.equal(found[name][:, 4:], before[name][:, 4:])
    if method == "add":
        exact = before[name][:, :4] + end[name] - begin[name]
        assert (found[name][:, :4] - exact).norm() <= 1e-6 * exact.norm()
    else:
        assert not torch.equal(found[name][:, :4], before[name][:, :4])


# Differences of zero, and scales that nothing states


@pytest.mark.parametrize("role", ["diff", "lora_up.weight"])
def test_a_difference_of_zero_needs_no_home(role, files, tmp_path):
    """ComfyUI saves one of a projection that is its module's alone."""
    stray = "text_encoders.clip_l.transformer.text_projection"
    pair = {f"{stray}.lora_down.weight": drawn(16, 16)} if role != "diff" else {}
    edited(files("sd1").style, tmp_path / "style.safetensors", **pair, **{f"{stray}.{role}": torch.zeros(16, 16)})
    fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")
    fuse(files("sd1").base(), tmp_path / "expected.safetensors", files("sd1").style)
    assert_same(load(tmp_path / "fused.safetensors"), load(tmp_path / "expected.safetensors"))
    edited(files("sd1").style, tmp_path / "style.safetensors", **pair, **{f"{stray}.{role}": drawn(16, 16)})
    with pytest.raises(UnmatchedKeysError, match="text_projection"):
        fuse(files("sd1").base(), tmp_path / "no.safetensors", tmp_path / "style.safetensors")


def test_a_scale_that_nothing_states_is_told(files, tmp_path):
    key = f"base_model.model.{PARAMETERS[QUERY].removeprefix('unet.')}"
    tensors = {f"{key}.lora_A.weight": drawn(3, 8), f"{key}.lora_B.weight": drawn(8, 3)}
    source = write(tmp_path / "adapter_model.safetensors", tensors)
    merge = merge_of(files("sd1").base(), tmp_path / "fused.safetensors", source.path, (1.0, 0.0))
    assert [doubt for doubt in plan(merge).doubts if "1 of its modules have no alpha" in doubt]
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    assert not [doubt for doubt in plan(merge).doubts if "alpha" in doubt]
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3}')
    assert [doubt for doubt in plan(merge).doubts if "no adapter_config.json tells it" in doubt]


# Refused, with the likely cause


@pytest.mark.parametrize(
    ("base", "lora", "kind", "made_for"),
    [
        ("ssd1b", "sdxl", "style", "Stable Diffusion XL"),
        ("ssd1b", "sdxl", "lcm", "Stable Diffusion XL"),
        ("sdxl", "sd1", "style", "Stable Diffusion 1"),
        ("sdxl", "sd1", "lcm", "Stable Diffusion 1"),
        ("sd1", "sdxl", "style", "Stable Diffusion XL"),
        ("sd2", "sd1", "lcm", "Stable Diffusion 1"),
        ("sd1", "ssd1b", "lcm", "SSD-1B"),
    ],
)
def test_a_lora_of_another_architecture(base, lora, kind, made_for, files, tmp_path):
    path = getattr(files(lora), kind)
    with pytest.raises((UnmatchedKeysError, ShapeMismatchError)) as caught:
        fuse(files(base).base(), tmp_path / "fused.safetensors", path, strengths=(1, 0))
    assert caught.value.exit_code == 3
    assert path.name in caught.value.message
    assert made_for in caught.value.hint
    assert pico(base).arch.title in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_allow_unmatched_merges_the_rest_and_lists_what_does_not_fit(files, tmp_path):
    """SDXL's LCM-LoRA on SSD-1B: what has a home is merged as if the rest were not there."""
    base, lcm = files("ssd1b").base("fp32"), files("sdxl").lcm
    report = fuse(base, tmp_path / "fused.safetensors", lcm=lcm, allow_unmatched=True)
    modules = {name.partition(".")[0] for name in load_file(lcm)}
    left = set(report.unmatched["lcm"])
    assert len(modules) == 788
    assert len(modules - left) == report.rows[0].parameters > 300
    edited(
        lcm, tmp_path / "rest.safetensors", **{name: None for name in load_file(lcm) if name.partition(".")[0] in left}
    )
    fuse(base, tmp_path / "expected.safetensors", lcm=tmp_path / "rest.safetensors")
    assert_same(load(tmp_path / "fused.safetensors"), load(tmp_path / "expected.safetensors"))


def test_nothing_that_fits_is_an_error_even_so(files, tmp_path):
    write(tmp_path / "style.safetensors", {f"lora_unet_mystery.{role}": tensor for role, tensor in {
        "lora_up.weight": drawn(8, 3), "lora_down.weight": drawn(3, 8)}.items()})  # fmt: skip
    with pytest.raises(LcmMergeError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors", allow_unmatched=True)
    assert caught.value.exit_code == 3


def test_the_unmatched_keys_are_named_and_counted(files, tmp_path):
    strangers = {f"lora_unet_stranger_{i}.{role}": drawn(*shape) for i in range(5) for role, shape in (
        ("lora_up.weight", (8, 3)), ("lora_down.weight", (3, 8)))}  # fmt: skip
    edited(files("sd1").style, tmp_path / "style.safetensors", **strangers)
    with pytest.raises(UnmatchedKeysError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")
    assert "5 of its 269 keys" in caught.value.message
    assert "lora_unet_stranger_0, lora_unet_stranger_1, lora_unet_stranger_2, …" in caught.value.message
    assert "--allow-unmatched" in caught.value.hint


def test_a_factor_of_another_shape(files, tmp_path):
    edited(files("sd1").style, tmp_path / "style.safetensors", **{f"{QUERY}.lora_down.weight": drawn(4, 9)})
    with pytest.raises(ShapeMismatchError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")
    assert f"style.safetensors: {QUERY}: down is 4×9, not 4×8" in caught.value.message


@pytest.mark.parametrize("role", ["lora_up.weight", "lora_down.weight"])
def test_half_a_pair(role, files, tmp_path):
    edited(files("sd1").style, tmp_path / "style.safetensors", **{f"{QUERY}.{role}": None})
    with pytest.raises(LcmMergeError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")
    assert QUERY in caught.value.message


def test_textual_inversion_in_a_bundle(files, tmp_path):
    """Its embedding is no weight of the model: said, and left out only on request."""
    bundle = {"bundle_emb.kitty.string_to_param.*": drawn(2, 16)}
    edited(files("sd1").style, tmp_path / "style.safetensors", **bundle)
    with pytest.raises(UnmatchedKeysError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")
    assert "textual-inversion" in caught.value.hint
    fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors", allow_unmatched=True)
    fuse(files("sd1").base(), tmp_path / "expected.safetensors", files("sd1").style)
    assert_same(load(tmp_path / "fused.safetensors"), load(tmp_path / "expected.safetensors"))


def test_neither_adapter_nor_checkpoint(files, tmp_path):
    save_file({"something": drawn(3)}, tmp_path / "style.safetensors")
    with pytest.raises(UnknownArchitectureError, match=r"no architecture and no adapter has .* 'something'"):
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")


def test_an_adapter_as_the_base(files, tmp_path):
    with pytest.raises(LcmMergeError, match="this is an adapter") as caught:
        fuse(files("sd1").style, tmp_path / "fused.safetensors", files("sd1").style)
    assert caught.value.exit_code == 3


def test_an_architecture_without_an_official_lcm_lora(files, tmp_path, cli):
    done = cli("fuse", files("sd2").base(), files("sd2").style, "-o", tmp_path / "fused")
    assert done.code == 1
    assert done.err.splitlines() == [
        "Error: Stable Diffusion 2: the accelerator lcm has no file for it, only for sd1, sdxl, ssd1b, segmind_vega",
        "Hint: --accelerator takes any of tcd, or a file",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"control_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "a ControlNet"),
        ({"emb_params": (2, 16)}, "a textual inversion"),
        ({"ip_adapter.0.to_q_lora.down.weight": (4, 8), "ip_adapter.0.to_q_lora.up.weight": (8, 4),
          "image_proj.norm.weight": (8,)}, "an IP-Adapter"),
        ({"down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": (4, 8),
          "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": (8, 4)},
         "an AnimateDiff motion model"),
        ({"lora_controlnet_mid_block_resnets_0_conv1.lora_down.weight": (4, 8),
          "lora_controlnet_mid_block_resnets_0_conv1.lora_up.weight": (8, 4)}, "a Control-LoRA"),
        ({"diffusion_model.out.2.set_weight": (4, 8, 3, 3)}, "set_weight"),
        ({"decoder.conv_in.weight": (8, 4, 3, 3)}, "a VAE alone"),
        ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (8, 8)}, "FLUX"),
        ({"scaled_fp8": (2,)}, "quantised"),
    ],
)  # fmt: skip
def test_a_style_that_is_something_else_is_told_what_it_is(names, said, files, tmp_path):
    save_file({name: drawn(*shape) for name, shape in names.items()}, tmp_path / "style.safetensors")
    with pytest.raises(UnknownArchitectureError, match=said):
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")


@pytest.mark.parametrize(
    ("module", "made_for"),
    [
        ("diffusion_model.blocks.0.self_attn.q", "Wan"),
        ("lora_unet_blocks_0_cross_attn_k_proj", "Cosmos-Predict 2 (Anima)"),
        ("lora_unet_blocks_0_attn_wq", "Krea 2"),
        ("diffusion_model.layers.0.attention.to_q", "Z-Image"),
        ("diffusion_model.double_stream_blocks.0.block.attn1.to_q", "HiDream"),
        ("diffusion_model.transformer_blocks.0.attn1.to_q", "LTX-2 or Sana"),
    ],
)
def test_a_lora_of_another_family_is_told_by_its_names(module, made_for, files, tmp_path):
    tensors = {f"{module}.lora_down.weight": drawn(3, 8), f"{module}.lora_up.weight": drawn(8, 3)}
    write(tmp_path / "style.safetensors", tensors)
    with pytest.raises(UnmatchedKeysError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")
    assert made_for in caught.value.hint


def test_the_base_is_not_blamed_for_being_what_it_is(files, tmp_path):
    """The names are those of Stable Diffusion 1 and 2 alike."""
    tensors = {f"{QUERY}.lora_up.weight": drawn(8, 3), f"{QUERY}.lora_down.weight": drawn(3, 9)}
    write(tmp_path / "style.safetensors", tensors)
    with pytest.raises(ShapeMismatchError) as caught:
        fuse(files("sd1").base(), tmp_path / "fused.safetensors", tmp_path / "style.safetensors")
    assert "looks made for" not in caught.value.hint
    assert "of Stable Diffusion 2: it may be made for that" in caught.value.hint
