from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from families import state_of
from hypothesis import given
from hypothesis import strategies as st
from named import named_source
from pico import PICOS, lcm_lora, pico, style_lora
from published import shapes

from lcmmerge.archs import (
    Model,
    architectures,
    guess_architecture,
    identify,
    kohya_name,
    likely_architectures,
    lora_targets,
    names_in,
    names_of,
)
from lcmmerge.archs.names import Home, module_of
from lcmmerge.archs.views import TRANSPOSED, WHOLE, part
from lcmmerge.tensors import open_source


def model(name: str) -> Model:
    state = {parameter: tuple(tensor.shape) for parameter, tensor in pico(name).state().items()}
    return identify(named_source(state, "diffusers"))


def modules(file: Path) -> set[str]:
    return {re.sub(r"\.(lora_(down|up)\.weight|alpha)$", "", name) for name in open_source(file).tensors}


@pytest.mark.parametrize("name", PICOS)
def test_official_and_kohya_files_find_every_module(name: str, tmp_path: Path) -> None:
    """Each LoRA module's shape must be its canonical module's, so that a wrong home shows."""
    base, names = model(name), names_of(architectures()[name.partition("-")[0]])
    for write in (lcm_lora, style_lora):
        tensors = open_source(write(tmp_path / "lora.safetensors", name)).tensors
        for key in modules(tmp_path / "lora.safetensors"):
            shape = base.parameters[f"{names.find(key).module}.weight"].shape
            assert tensors[f"{key}.lora_up.weight"].shape[0] == shape[0]
            assert tensors[f"{key}.lora_down.weight"].shape[1:] == shape[1:]


@pytest.mark.parametrize(
    ("name", "alias", "module"),
    [
        ("sd1", "lora_unet_up_blocks_1_upsamplers_0_conv", "unet.up_blocks.1.upsamplers.0.conv"),
        ("sd1", "lora_unet_output_blocks_2_1_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("sdxl", "lora_unet_output_blocks_2_2_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("sdxl", "lora_unet_input_blocks_3_0_op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("sdxl", "lora_unet_label_emb_0_2", "unet.add_embedding.linear_2"),
        ("sdxl", "unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sdxl", "mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sdxl", "lycoris_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sdxl", "diffusion_model.middle_block.1.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sdxl", "model.diffusion_model.middle_block.1.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sdxl", "first_stage_model.decoder.up.3.block.0.conv1", "vae.decoder.up_blocks.0.resnets.0.conv1"),
        ("sdxl", "lora_te2_text_projection", "text_encoder_2.text_projection"),
        ("sd2", "lora_te_encoder_layers_22_mlp_fc1", "text_encoder.text_model.encoder.layers.22.mlp.fc1"),
        ("sd1", "unet.base_model.model.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sd1", "unet.middle_block.1.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sd1", "module.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sd1", "state_dict.unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sd1", "model.model.diffusion_model.middle_block.1.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sd1", "oft_unet_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("sd1", "lora_te1_text_model_encoder_layers_3_mlp_fc1", "text_encoder.text_model.encoder.layers.3.mlp.fc1"),
        (
            "sd1",
            "text_encoder.base_model.model.text_model.encoder.layers.3.mlp.fc1",
            "text_encoder.text_model.encoder.layers.3.mlp.fc1",
        ),
        ("sdxl", "clip_g.encoder.layers.3.mlp.fc1", "text_encoder_2.text_model.encoder.layers.3.mlp.fc1"),
        ("sd1", "unet:0", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("sd1", "unet:54", "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("sd1", "unet:143", "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"),
        ("sd1", "text_encoder:5", "text_encoder.text_model.encoder.layers.1.self_attn.v_proj"),
        (
            "sd1",
            "cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1",
            "text_encoder.text_model.encoder.layers.3.mlp.fc1",
        ),
        (
            "sdxl",
            "text_encoder_2.encoder.layers.3.self_attn.q_proj",
            "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj",
        ),
        (
            "sdxl",
            "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj",
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
        ),
        (
            "sdxl",
            "text_encoders.clip_g.transformer.text_model.encoder.layers.3.self_attn.q_proj",
            "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj",
        ),
    ],
)
def test_spellings(name: str, alias: str, module: str) -> None:
    home = names_of(architectures()[name]).find(alias)
    assert home and [module for module, _ in home.parts] == [module]


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("sdxl", "text_model.encoder.layers.3.mlp.fc1"),  # of which text encoder?
        ("sdxl", "lora_te_text_model_encoder_layers_3_mlp_fc1"),
        ("ssd1b", "lora_unet_mid_block_attentions_0_proj_in"),
        ("sd1", "unet:144"),
        ("qwen_image", "unet:0"),
    ],
)
def test_what_is_in_doubt_or_absent_is_left_out(name: str, alias: str) -> None:
    assert names_of(architectures()[name]).find(alias) is None


def test_names_that_are_kept_are_found_and_their_tables_made_once() -> None:
    query = "encoder.block.0.layer.0.SelfAttention.q"
    state = {name: tuple(tensor.shape) for name, tensor in state_of("flux1").items()}
    base = named_source(state | {f"text_encoder_2.{query}.weight": (2, 2)}, "diffusers")
    first, second = (names_in(identify(base)) for _ in range(2))
    home = first.find(f"lora_te3_{query.replace('.', '_')}")
    assert home and home.module == f"text_encoder_2.{query}"
    assert second is first
    assert names_of(architectures()["flux1"]).find(f"text_encoder_2.{query}") is None


def test_a_fused_module_is_the_home_of_its_parts() -> None:
    home = names_of(architectures()["sdxl"]).find("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj")
    attention = "text_encoder_2.text_model.encoder.layers.0.self_attn."
    assert home == Home(tuple((f"{attention}{name}_proj", part(i, i + 1, 3)) for i, name in enumerate("qkv")))


def test_a_transposed_module() -> None:
    home = names_of(architectures()["sdxl"]).find("conditioner.embedders.1.model.text_projection")
    assert home == Home((("text_encoder_2.text_projection", TRANSPOSED),))


@pytest.mark.parametrize("name", architectures())
def test_every_canonical_module_names_itself(name: str) -> None:
    names, parameters = names_of(architectures()[name]), architectures()[name].keymap("diffusers").slots
    for module in {module_of(parameter) for parameter in parameters}:
        assert Home(((module, WHOLE),)) in names.homes(module)


@given(
    name=st.sampled_from(list(architectures())),
    seed=st.integers(0),
    begin=st.sampled_from(["", "base_model.model.", "lycoris_"]),
)
def test_a_name_is_found_with_underscores_for_its_dots(name: str, seed: int, begin: str) -> None:
    """Unless two components have it (SDXL's text encoders)."""
    arch = architectures()[name]
    modules = sorted({module_of(parameter) for parameter in arch.keymap("diffusers").slots})
    module = modules[seed % len(modules)]
    inner = module.partition(".")[2]
    found = names_of(arch).find(begin + inner.replace(".", "_"))
    twice = len([each for each in modules if each.partition(".")[2] == inner]) > 1
    assert found is None if twice else found == Home(((module, WHOLE),))


@pytest.mark.parametrize(
    ("name", "lcm", "style"),
    [
        ("sd1", "Stable Diffusion 1 or Stable Diffusion 2", "Stable Diffusion 1"),
        ("sd2", "Stable Diffusion 1 or Stable Diffusion 2", "Stable Diffusion 2"),
        ("sdxl", "Stable Diffusion XL", "Stable Diffusion XL"),
        ("sdxl_refiner", "Stable Diffusion XL refiner", "Stable Diffusion XL refiner"),
        ("ssd1b", "SSD-1B", "SSD-1B"),
        ("segmind_vega", "Segmind-Vega", "Segmind-Vega"),
    ],
)
def test_guess_by_the_modules_alone(name: str, lcm: str, style: str, tmp_path: Path) -> None:
    """The LCM-LoRA has U-Net modules only, which SD 1 and SD 2 name alike; the style has text encoders, too."""
    assert guess_architecture(modules(lcm_lora(tmp_path / "lcm.safetensors", name))) == lcm
    assert guess_architecture(modules(style_lora(tmp_path / "style.safetensors", name))) == style


@pytest.mark.parametrize(
    ("keys", "guess"),
    [
        (["lora_unet_double_blocks_0_img_mod_lin"], "FLUX.1"),
        (["lora_unet_joint_blocks_0_x_block_attn_proj"], "Stable Diffusion 3"),
        (["transformer.single_transformer_blocks.0.norm.linear"], "FLUX.1 or HunyuanVideo"),
        (
            ["lora_te3_encoder_block_0_layer_0_SelfAttention_k"],
            "Stable Diffusion 3, Flux or another diffusion transformer",
        ),
        (["some_other_model_fc1"], None),
        ([], None),
    ],
)
def test_guess_foreign(keys: list[str], guess: str | None) -> None:
    assert guess_architecture(keys) == guess


@pytest.mark.parametrize("name", architectures())
def test_kohya_names_are_names_of_their_module(name: str) -> None:
    arch = architectures()[name]
    modules = {module_of(parameter) for parameter in arch.keymap("diffusers").slots}
    for module in [module for module in modules if not module.startswith("vae.")]:
        homes = names_of(arch).homes(kohya_name(module, arch) or "")
        assert module in [home.module for home in homes]  # of experts there are several


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "ssd1b", "segmind_vega", "sdxl_refiner"])
def test_diffusers_finds_every_module_by_its_kohya_name(name: str) -> None:
    """Oracle: diffusers' own conversion; each module's factors hold the module's number."""
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in pico(name).state().items()}
    wanted, stored = list(lora_targets(shapes)), {}
    for number, module in enumerate(wanted):
        out, *rest = shapes[f"{module}.weight"]
        key = kohya_name(module, architectures()[name])
        stored[f"{key}.lora_down.weight"] = torch.full((1, *rest), float(number))
        stored[f"{key}.lora_up.weight"] = torch.zeros(out, 1, *(1 for _ in rest[1:]))
        stored[f"{key}.alpha"] = torch.tensor(1.0)
    found, _ = StableDiffusionXLPipeline.lora_state_dict(stored, unet_config=pico(name).pipeline.unet.config)
    inner = {key.removeprefix("unet."): tensor for key, tensor in found.items()}
    numbers = {
        f"unet.{key.removesuffix('.lora_A.weight')}": int(tensor.flatten()[0])
        for key, tensor in convert_unet_state_dict_to_peft(inner).items()
        if key.endswith(".lora_A.weight")
    }
    assert numbers == {module: number for number, module in enumerate(wanted)}


@pytest.mark.parametrize(
    ("name", "module", "key"),
    [
        ("sd1", "unet.up_blocks.0.upsamplers.0.conv", "lora_unet_up_blocks_0_upsamplers_0_conv"),
        ("sdxl", "unet.up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
        ("sdxl", "unet.down_blocks.0.resnets.1.time_emb_proj", "lora_unet_input_blocks_2_0_emb_layers_1"),
        ("sdxl", "unet.mid_block.attentions.0.proj_in", "lora_unet_middle_block_1_proj_in"),
        ("sdxl", "unet.add_embedding.linear_2", "lora_unet_label_emb_0_2"),
        ("ssd1b", "unet.conv_out", "lora_unet_out_2"),
        ("sdxl", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
         "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        ("sdxl", "vae.encoder.conv_in", None),
    ],
)  # fmt: skip
def test_kohya_names_have_ldms_blocks_in_sdxl_alone(name: str, module: str, key: str | None) -> None:
    assert kohya_name(module, architectures()[name]) == key


def test_an_ssd_1b_lora_is_told_from_sdxl_though_it_fits_both(tmp_path: Path) -> None:
    keys = modules(lcm_lora(tmp_path / "lora.safetensors", "ssd1b"))
    assert all(names_of(architectures()["sdxl"]).find(key) for key in keys)
    assert [arch.name for arch in likely_architectures(keys)] == ["ssd1b"]


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_lora_diffusion_numbers_the_linears_in_the_order_of_diffusers_own_modules(name: str) -> None:
    """Oracle: the pico's modules, in which lora_diffusion looks for linears below these classes' objects.

    In diffusers of 2022 a block's MLP stood before its attn2.
    """
    pipeline, names = pico(name).pipeline, names_of(architectures()[name])
    for component, classes in (("unet", {"Attention", "GEGLU"}), ("text_encoder", {"CLIPAttention"})):
        model = getattr(pipeline, component)
        found = [
            f"{path}.{inner}".removeprefix("text_model.")
            for path, module in model.named_modules()
            if type(module).__name__ in classes
            for inner, linear in module.named_modules()
            if type(linear).__name__ == "Linear"
        ]
        if component == "unet":
            blocks = [found[begin : begin + 9] for begin in range(0, len(found), 9)]
            found = [path for block in blocks for path in (*block[:4], block[8], *block[4:8])]
        homes = [names.find(f"{component}:{number}") for number in range(len(found))]
        modules = [home.module.removeprefix(f"{component}.") for home in homes if home]
        assert [module.removeprefix("text_model.") for module in modules] == found
        assert names.find(f"{component}:{len(found)}") is None


def test_lora_diffusion_s_own_file_of_stable_diffusion_1() -> None:
    """The shapes in analog_svd_rank4.safetensors, of github.com/cloneofsimo/lora."""
    names, real = names_of(architectures()["sd1"]), shapes("sd1")
    for block, width in enumerate([320] * 2 + [640] * 2 + [1280] * 5 + [640] * 3 + [320] * 3 + [1280]):
        inputs = [width] * 4 + [width] + [width, 768, 768, width]
        outputs = [width] * 4 + [8 * width] + [width] * 4
        for place, shape in enumerate(zip(outputs, inputs, strict=True)):
            home = names.find(f"unet:{9 * block + place}")
            assert home and real[f"{home.module}.weight"] == shape


def test_names_of_two_text_encoders_are_of_the_one_that_has_and_fits_them_all() -> None:
    names = names_of(architectures()["sdxl"])
    layers = [f"text_model.encoder.layers.{i}.mlp.fc1" for i in range(32)]

    def settled(keys: list[str], width: str) -> set[str]:
        return {home.component for home in names.settle(keys, lambda key, home: home.component == width).values()}

    assert settled(layers, "neither") == {"text_encoder_2"}  # the other has 12
    assert settled(layers[:12], "text_encoder") == {"text_encoder"}
    assert settled(layers[:12], "text_encoder_2") == {"text_encoder_2"}
    assert settled(layers[:12], "neither") == set()
    assert set(names.settle(["unet.conv_in", *layers], lambda key, home: False)) == {"unet.conv_in", *layers}


@pytest.mark.parametrize(("width", "title"), [(768, "Stable Diffusion 1"), (1024, "Stable Diffusion 2")])
def test_the_width_of_the_text_tells_what_names_do_not(width: int, title: str) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert guess_architecture({key: (320, width)}) == title
    assert guess_architecture({key: (320, 16)}) == "Stable Diffusion 1 or Stable Diffusion 2"
    assert guess_architecture({key: ()}) == "Stable Diffusion 1 or Stable Diffusion 2"
