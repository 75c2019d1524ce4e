from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from named import named_source
from pico import PICOS, lcm_lora, pico
from published import PUBLISHED, shapes

from lcmmerge.archs import identify, is_ema
from lcmmerge.archs.views import CONV1X1, WHOLE
from lcmmerge.errors import FormatError, UnknownArchitectureError
from lcmmerge.tensors import open_source

LDM = "model.diffusion_model."


def state_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {parameter: tuple(tensor.shape) for parameter, tensor in pico(name).state().items()}


def ldm_shapes(tmp_path: Path, name: str = "sd1") -> dict[str, tuple[int, ...]]:
    source = open_source(pico(name).single_file(tmp_path / "ldm.safetensors"))
    return {info.name: info.shape for info in source}


@pytest.mark.parametrize("name", PICOS)
@pytest.mark.parametrize("layout", ["single-file", "diffusers"])
def test_every_layout_gives_the_same_parameters(name: str, layout: str, tmp_path: Path) -> None:
    model = pico(name)
    write = model.folder if layout == "diffusers" else model.single_file
    found = identify(open_source(write(tmp_path / "model.safetensors")))
    assert (found.arch, found.layout) == (model.arch, layout)
    assert found.purpose == ("inpainting" if name == "sd1-inpainting" else "base")
    assert {name: parameter.shape for name, parameter in found.parameters.items()} == state_shapes(name)
    assert found.components == model.arch.components
    assert not found.leftovers and not found.missing


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_leftovers_are_kept_apart(name: str, tmp_path: Path) -> None:
    model = pico(name)
    found = identify(open_source(model.single_file(tmp_path / "model.safetensors", extras=True)))
    assert found.parameters.keys() == state_shapes(name).keys()
    ema = [stored for stored in found.leftovers if is_ema(stored)]
    unet = [name for name in found.parameters if name.startswith("unet.")]
    assert len(ema) == len(unet) + 1  # and the decay
    others = {stored.rpartition(".")[2] for stored in found.leftovers if stored not in ema}
    unused = {"text_projection", "in_proj_weight", "in_proj_bias", "weight", "bias"}  # SD 2's 24th layer
    assert (
        others
        == {"alphas_cumprod"}
        | {
            "sd1": {"position_ids"},
            "sd2": {"logit_scale"} | unused,
            "sdxl": {"position_ids", "logit_scale"},
        }[name]
    )


def test_parameters_come_in_reading_order(tmp_path: Path) -> None:
    source = open_source(pico("sd2").single_file(tmp_path / "model.safetensors"))
    places = [(info.path, info.offset) for info in (p.info for p in identify(source).parameters.values())]
    assert places == sorted(places)


@pytest.mark.parametrize("name", PICOS)
def test_a_lone_unet(name: str, tmp_path: Path) -> None:
    diffusers = {p.removeprefix("unet."): s for p, s in state_shapes(name).items() if p.startswith("unet.")}
    ldm = {n: s for n, s in ldm_shapes(tmp_path, name).items() if n.startswith(LDM)}
    comfy = {n.removeprefix("model."): s for n, s in ldm.items()}
    bare = {n.removeprefix(LDM): s for n, s in ldm.items()}
    for stored in (diffusers, ldm, comfy, bare):
        found = identify(named_source(stored))
        assert (found.arch, found.layout) == (pico(name).arch, "component")
        assert {parameter.slot.stored for parameter in found.parameters.values()} == stored.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_sizes_are_the_same_architectures(name: str) -> None:
    assert identify(named_source(shapes(name), "diffusers")).arch.name == name


@pytest.mark.parametrize(
    ("channels", "purpose"),
    [(4, "base"), (5, "depth"), (8, "instruct-pix2pix"), (9, "inpainting"), (7, "7 input channels")],
)
def test_purposes_by_input_channels(channels: int, purpose: str) -> None:
    stored = state_shapes("sd2") | {"unet.conv_in.weight": (8, channels, 3, 3)}
    assert identify(named_source(stored, "diffusers")).purpose == purpose


@given(name=st.sampled_from(sorted(PUBLISHED)), factor=st.integers(1, 50), seed=st.integers())
def test_any_widths_are_recognised_and_order_is_kept(name: str, factor: int, seed: int) -> None:
    stored = {n: tuple(factor * size for size in shape) for n, shape in state_shapes(name).items()}
    names = list(stored)
    Random(seed).shuffle(names)
    stored = {n: stored[n] for n in names}
    found = identify(named_source(stored, "diffusers"))
    assert found.arch.name == name
    assert list(found.parameters) == names


def test_spellings_of_transformers_5_and_old_diffusers() -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    stored = {}
    for parameter, shape in state_shapes("sdxl").items():
        name = parameter
        if name.startswith("vae."):
            for new, was in old.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        stored[name.replace("text_encoder.text_model.", "text_encoder.")] = shape
    assert len(stored.keys() - state_shapes("sdxl").keys()) > 200
    found = identify(named_source(stored, "diffusers"))
    assert {name: parameter.shape for name, parameter in found.parameters.items()} == state_shapes("sdxl")
    assert {parameter.slot.stored for parameter in found.parameters.values()} == stored.keys()


def test_old_single_files_without_text_model(tmp_path: Path) -> None:
    stored = {name.replace(".text_model.", "."): shape for name, shape in ldm_shapes(tmp_path).items()}
    found = identify(named_source(stored))
    assert "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight" in stored
    assert not found.leftovers and found.parameters.keys() == state_shapes("sd1").keys()


def test_linears_where_a_single_file_has_no_convolutions(tmp_path: Path) -> None:
    stored = ldm_shapes(tmp_path)
    stored["first_stage_model.encoder.mid.attn_1.q.weight"] = (16, 16)
    parameters = identify(named_source(stored)).parameters
    linear = parameters["vae.encoder.mid_block.attentions.0.to_q.weight"]
    conv = parameters["vae.encoder.mid_block.attentions.0.to_k.weight"]
    assert (linear.slot.view, conv.slot.view) == (WHOLE, CONV1X1)
    assert linear.shape == conv.shape == (16, 16)


def test_what_a_component_lacks_is_told(tmp_path: Path) -> None:
    stored = ldm_shapes(tmp_path)
    del stored["first_stage_model.decoder.conv_out.bias"]
    pruned = {name: shape for name, shape in stored.items() if not name.startswith("cond_stage_model.")}
    found = identify(named_source(pruned))
    assert found.components == ("unet", "vae")
    assert found.missing == ("vae.decoder.conv_out.bias",)


def test_the_same_parameter_in_two_spellings_is_refused() -> None:
    stored = state_shapes("sd1")
    stored["text_encoder.final_layer_norm.bias"] = stored["text_encoder.text_model.final_layer_norm.bias"]
    with pytest.raises(FormatError, match="two spellings"):
        identify(named_source(stored, "diffusers"))


def test_a_fused_tensor_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    stored = ldm_shapes(tmp_path, "sd2")
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    for shape in ((), (32,)):
        with pytest.raises(FormatError, match="3 equal parts"):
            identify(named_source(stored | {name: shape}))


def test_a_lora_as_base(tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitectureError, match="adapter"):
        identify(open_source(lcm_lora(tmp_path / "lora.safetensors", "sd1")))


@pytest.mark.parametrize("extra", ["scaled_fp8", f"{LDM}input_blocks.1.1.proj_in.scale_weight"])
def test_scaled_fp8_is_refused(extra: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownArchitectureError, match="quantised"):
        identify(named_source(ldm_shapes(tmp_path) | {extra: ()}))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["transformer.transformer_blocks.0.attn.to_q.weight"], "a diffusion transformer of no known structure"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["conv_in.weight", "controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE alone"),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder alone"),
        (["control_lora.weight", "lora_controlnet"], "a Control-LoRA"),
        (["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"], "ControlLLLite"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["ip_adapter.0.to_q_lora.down.weight"], "an IP-Adapter"),
        (["adapter.body.0.resnets.0.block1.weight"], "a T2I-Adapter"),
        (["body.0.block1.weight"], "a T2I-Adapter"),
        (["768.0.linear.0.weight"], "a hypernetwork"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff motion model"),
        (["model.1.sub.0.RDB1.conv1.0.weight"], "an upscaler"),
        (["emb_params"], "a textual inversion"),
        (["<krk>"], "a textual inversion"),
        (["clip_g", "clip_l"], "a textual inversion"),
        (["string_to_param.*"], "a textual inversion"),
        (["diffusion_model.out.2.set_weight"], "set_weight, which replaces"),
        (["vision_model.embeddings.class_embedding"], "a CLIP image encoder"),
        (["blocks.0.self_attn.q.weight", "head.modulation"], "Wan"),
        (["double_blocks.0.img_mod.linear.weight", "txt_in.t_embedder.mlp.0.weight"], "HunyuanVideo"),
        (["adaln_single.linear.weight", "patchify_proj.weight"], "LTX"),
        (["controlnet_mid_block.weight", "control_add_embedding.linear_1.weight"], "a ControlNet"),
        (["id_adapter.latents"], "PuLID"),
        (["0.to_q_lora.down.weight", "1.to_k_ip.weight"], "an IP-Adapter"),
        (["decoder.1.weight", "encoder.0.weight"], "a VAE alone"),
        (["model.embed_tokens.weight"], "a text encoder alone"),
        (["body.0.weight", "body.1.weight"], "an upscaler"),
        (["fc.weight"], "no architecture"),
        ([], "no architecture"),
    ],
)
def test_foreign_files_are_told_what_they_are(names: list[str], said: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=said):
        identify(named_source(dict.fromkeys(names, (8, 8))))


def test_video_models_do_not_pass_for_what_they_contain(tmp_path: Path) -> None:
    stored = ldm_shapes(tmp_path, "sd2") | {f"{LDM}input_blocks.1.0.time_stack.in_layers.0.weight": (8,)}
    with pytest.raises(UnknownArchitectureError, match="Stable Video Diffusion"):
        identify(named_source(stored))


def test_a_broken_unet_is_compared_with_the_nearest() -> None:
    stored = state_shapes("ssd1b")
    del stored["unet.mid_block.resnets.0.conv1.weight"]
    with pytest.raises(UnknownArchitectureError, match=r"SSD-1B.* lacks 1 tensors.*mid_block\.resnets\.0\.conv1"):
        identify(named_source(stored, "diffusers"))


def test_unknown_tensors_beside_a_known_unet_are_leftovers() -> None:
    stored = state_shapes("sd1") | {"unet.time_embedding.cond_proj.weight": (8, 256)}  # a whole LCM
    found = identify(named_source(stored, "diffusers"))
    assert list(found.leftovers) == ["unet.time_embedding.cond_proj.weight"]
    assert found.parameters.keys() == state_shapes("sd1").keys()


VAE_SPELLINGS = {
    "a converter's": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "old diffusers'": {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"},
}


@pytest.mark.parametrize("spelling", VAE_SPELLINGS)
def test_a_single_file_s_vae_attention_in_every_spelling(spelling: str, tmp_path: Path) -> None:
    stored = {}
    for name, shape in ldm_shapes(tmp_path).items():
        head, middle, tail = name.partition(".mid.attn_1.")
        module, dot, p = tail.rpartition(".")
        stored[head + middle + VAE_SPELLINGS[spelling].get(module, module) + dot + p] = shape
    found = identify(named_source(stored))
    assert not found.leftovers and not found.missing
    assert found.shapes == state_shapes("sd1")


def test_clip_g_s_projection_in_both_spellings(tmp_path: Path) -> None:
    stored = ldm_shapes(tmp_path, "sdxl")
    name = "conditioner.embedders.1.model.text_projection"
    inputs, outputs = stored.pop(name)
    found = identify(named_source(stored | {f"{name}.weight": (outputs, inputs)}))
    projection = found.parameters["text_encoder_2.text_projection.weight"]
    assert not found.missing and not found.leftovers
    assert (projection.slot.view, projection.shape) == (WHOLE, (outputs, inputs))
    with pytest.raises(FormatError, match="two spellings"):
        identify(named_source(stored | {f"{name}.weight": (outputs, inputs), name: (inputs, outputs)}))


def test_a_vector_of_a_text_encoders_width_is_a_textual_inversion() -> None:
    with pytest.raises(UnknownArchitectureError, match="a textual inversion"):
        identify(named_source({"birb": (768,)}))
    with pytest.raises(UnknownArchitectureError, match="no architecture"):
        identify(named_source({"birb": (767,)}))


def test_what_is_left_of_an_adapter_in_a_checkpoint_is_a_leftover() -> None:
    stray = "unet.mid_block.attentions.0.proj_in.lora_A.weight"
    found = identify(named_source(state_shapes("sd1") | {stray: (4, 32)}, "diffusers"))
    assert list(found.leftovers) == [stray]


@pytest.mark.parametrize("wrapper", ["state_dict.", "module.", "_orig_mod.", "model.", "module.model."])
def test_what_stands_before_all_names_is_no_part_of_them(wrapper: str, tmp_path: Path) -> None:
    plain = ldm_shapes(tmp_path)
    found = identify(named_source({wrapper + name: shape for name, shape in plain.items()}))
    assert not found.leftovers and found.components == ("unet", "vae", "text_encoder")
    assert {parameter.slot.stored for parameter in found.parameters.values()} == plain.keys()
    assert found.source.tensors.keys() == plain.keys()
