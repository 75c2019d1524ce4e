"""Every grammar of the field, written as a real file and read back."""

import json

import pytest
import torch
from adapterfile import write

from lcmmerge.adapters import algorithm, read_adapter
from lcmmerge.adapters.names import parse_name
from lcmmerge.errors import FormatError

UP, DOWN = torch.zeros(8, 4), torch.zeros(4, 6)
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"

# grammar → (its spelling of a module's LoRA with a hole for the half, the module's key, the halves' names)
UNET, TEXT = f"unet.{ATTENTION}", "text_encoder.text_model.encoder.layers.0.self_attn"
LORAS = {
    "kohya": ("lora_unet_mid_block_0_proj.lora_{}.weight", "lora_unet_mid_block_0_proj", "up down"),
    "kohya lycoris": ("lycoris_mid_block.lora_{}.weight", "lycoris_mid_block", "up down"),
    "kohya dotted": (UNET + ".to_q.lora_{}.weight", UNET + ".to_q", "up down"),
    "peft": ("base_model.model." + ATTENTION + ".to_q.lora_{}.weight", ATTENTION + ".to_q", "B A"),
    "peft named": (UNET + ".to_out.0.lora_{}.default.weight", UNET + ".to_out.0", "B A"),
    "diffusers": (UNET + ".to_k.lora.{}.weight", UNET + ".to_k", "up down"),
    "diffusers text": (TEXT + ".q_proj.lora_linear_layer.{}.weight", TEXT + ".q_proj", "up down"),
    "processor": (UNET + ".processor.to_q_lora.{}.weight", UNET + ".to_q", "up down"),
    "processor out": (ATTENTION + ".processor.to_out_lora.{}.weight", ATTENTION + ".to_out.0", "up down"),
    "processor text": (TEXT + ".to_out_lora.{}.weight", TEXT + ".out_proj", "up down"),
}


@pytest.mark.parametrize("grammar", LORAS)
def test_lora_in_every_grammar(grammar, tmp_path):
    spelling, key, halves = LORAS[grammar]
    up, down = (spelling.format(half) for half in halves.split())
    file = read_adapter(write(tmp_path / "a.safetensors", {up: UP, down: DOWN, f"{key}.alpha": torch.tensor(8.0)}))
    (patch,) = file.patches
    assert (patch.key, patch.parameter, patch.alpha) == (key, "weight", 8.0)
    assert (patch.shape("up"), patch.shape("down")) == ((8, 4), (4, 6))
    assert {info.name for info in patch.roles.values()} == {up, down}
    assert algorithm(patch)[0] == "lora"
    assert file.grammars == (grammar.split()[0],)
    assert file.unknown == file.embeddings == ()


# suffixes of one module → the algorithm and parameter of each of its patches
HADA = "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"
MODULES = {
    "tucker": ("lora_up.weight lora_mid.weight lora_down.weight", "lora.weight"),
    "kohya dora": ("lora_up.weight lora_down.weight dora_scale", "dora.weight"),
    "peft dora": ("lora_A.weight lora_B.weight lora_magnitude_vector", "dora.weight"),
    "peft dora named": ("lora_A.x.weight lora_B.x.weight lora_magnitude_vector.x.weight", "dora.weight"),
    "peft bias": ("lora_A.weight lora_B.weight lora_B.bias", "lora.weight lora_bias.bias"),
    "loha": (HADA, "loha.weight"),
    "loha tucker dora": (HADA + " hada_t1 hada_t2 dora_scale", "dora.weight"),
    "peft loha": (HADA.replace(" ", ".default ") + ".default", "loha.weight"),
    "lokr": ("lokr_w1 lokr_w2_a lokr_w2_b lokr_t2", "lokr.weight"),
    "lokr both": ("lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b", "lokr.weight"),
    "oft": ("oft_blocks rescale", "oft.weight"),
    "peft boft": ("boft_R boft_s", "boft.weight"),
    "glora": ("a1.weight a2.weight b1.weight b2.weight", "glora.weight"),
    "full": ("diff diff_b", "full.weight full.bias"),
    "norm": ("w_norm b_norm", "norm.weight norm.bias"),
    "lora and bias": ("lora_up.weight lora_down.weight diff_b", "lora.weight full.bias"),
}


@pytest.mark.parametrize("module", MODULES)
def test_modules_of_every_algorithm(module, tmp_path):
    suffixes, expected = MODULES[module]
    tensors = {f"x.y.{suffix}": torch.zeros(2, 2, 2) for suffix in suffixes.split()}
    told = {"lora_alpha": 8} if "named" in module else None  # without it there is no scale
    file = read_adapter(write(tmp_path / "a.safetensors", tensors), told)
    assert [f"{algorithm(patch)[0]}.{patch.parameter}" for patch in file.patches] == expected.split()
    assert {patch.key for patch in file.patches} == {"x.y"}
    assert file.unknown == ()


@pytest.mark.parametrize("flag", [0, 1])
def test_ia3_of_lycoris(flag, tmp_path):
    tensors = {"x.weight": torch.zeros(6), "x.on_input": torch.tensor(flag), "y.weight": torch.zeros(6)}
    file = read_adapter(write(tmp_path / "a.safetensors", tensors))
    (patch,) = file.patches
    assert set(patch.roles) == ({"shift_in"} if flag else {"shift_out"})
    assert file.unknown == ("y.weight",)


def test_ia3_of_peft(tmp_path):
    tensors = {"a.ia3_l": torch.zeros(6, 1), "b.ia3_l": torch.zeros(1, 6), "c.ia3_l": torch.zeros(1, 6, 1, 1)}
    source = write(tmp_path / "a.safetensors", tensors)
    file = read_adapter(source, {"peft_type": "IA3", "feedforward_modules": ["c"]})
    found = [(patch.key, patch.parameter, set(patch.roles), patch.optional) for patch in file.patches]
    assert sorted(found) == [
        ("a", "bias", {"scale_out"}, True),
        ("a", "weight", {"scale_out"}, False),
        ("b", "weight", {"scale_in"}, False),
        ("c", "weight", {"scale_in"}, False),
    ]


def test_four_dimensional_oft_blocks_are_boft(tmp_path):
    tensors = {"x.oft_blocks": torch.zeros(3, 4, 2, 2), "x.alpha": torch.tensor(0.5)}
    (patch,) = read_adapter(write(tmp_path / "a.safetensors", tensors)).patches
    assert (algorithm(patch)[0], patch.alpha) == ("boft", 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_of_any_dtype(dtype, shape, tmp_path):
    alpha = torch.full(shape, 8, dtype=dtype)
    tensors = {"x.lora_up.weight": UP, "x.lora_down.weight": DOWN, "x.alpha": alpha}
    (patch,) = read_adapter(write(tmp_path / "a.safetensors", tensors)).patches
    assert patch.alpha == 8.0


def test_patches_keep_the_files_order(tmp_path):
    tensors = {f"{key}.{half}.weight": UP for key in "zmab" for half in ("lora.up", "lora.down")}
    source = write(tmp_path / "a.safetensors", tensors)
    stored = list(dict.fromkeys(name.partition(".")[0] for name in source.tensors))
    assert [patch.key for patch in read_adapter(source).patches] == stored
    assert len(stored) == 4


def test_what_is_no_patch(tmp_path):
    names = (
        "conv_in.weight",
        "x.alpha",
        "x.oft_r",
        "x.bias_indices",
        "y.lora_A",
        "z.lora_embedding_A",
        "alpha",
    )
    tensors = {name: torch.zeros(1) for name in (*names, "bundle_emb.style.string_to_param.*")}
    file = read_adapter(write(tmp_path / "a.safetensors", tensors))
    assert file.patches == ()
    assert sorted(file.unknown) == sorted(names)
    assert file.embeddings == ("bundle_emb.style.string_to_param.*",)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ("lora_up.weight", "down"),
        ("lora_A.weight", "up"),
        ("hada_w1_a", "hada_w1_b, hada_w2_a, hada_w2_b"),
        ("lokr_w1_a", "lokr_w1_b"),
        ("a1.weight", "a2, b1, b2"),
        ("on_input", "weight"),
        ("boft_R", "boft_s"),
    ],
)
def test_half_a_module_is_an_error(present, missing, tmp_path):
    with pytest.raises(FormatError) as caught:
        read_adapter(write(tmp_path / "a.safetensors", {f"some.module.{present}": torch.zeros(1)}))
    assert "some.module" in caught.value.message
    assert caught.value.message.endswith(f"without {missing}")


def test_two_adapters_in_one_file_are_an_error(tmp_path):
    tensors = {f"x.lora_{half}.{name}.weight": UP for half in "AB" for name in ("one", "two")}
    with pytest.raises(FormatError, match=r"x\.lora_"):
        read_adapter(write(tmp_path / "a.safetensors", tensors))


def test_alpha_of_several_elements_is_an_error(tmp_path):
    tensors = {"x.lora_up.weight": UP, "x.lora_down.weight": DOWN, "x.alpha": torch.zeros(3)}
    with pytest.raises(FormatError, match=r"x\.alpha has 3 elements"):
        read_adapter(write(tmp_path / "a.safetensors", tensors))


def lora_tensors(*keys):
    return {f"{key}.lora_{half}.weight": UP if half == "B" else DOWN for key in keys for half in "AB"}


def test_diffusers_metadata_by_component_and_pattern(tmp_path):
    fields = {
        "unet.lora_alpha": 2, "unet.r": 4, "unet.use_rslora": True, "unet.alpha_pattern": {"mid.proj": 16},
        "text_encoder.lora_alpha": 3, "text_encoder.r": 4, "text_encoder.use_rslora": False,
    }  # fmt: skip
    keys = (
        "unet.a.to_q",
        "unet.mid.proj",
        "unet.up.mid.proj",
        "unet.pyramid.proj",
        "text_encoder.b",
        "text_encoder_2.c",
    )
    source = write(tmp_path / "a.safetensors", lora_tensors(*keys), {"lora_adapter_metadata": json.dumps(fields)})
    found = {patch.key: (patch.alpha, patch.rank_stabilized) for patch in read_adapter(source).patches}
    assert found == {
        "unet.a.to_q": (2, True),
        "unet.mid.proj": (16, True),
        "unet.up.mid.proj": (16, True),
        "unet.pyramid.proj": (2, True),
        "text_encoder.b": (3, False),
        "text_encoder_2.c": (None, False),
    }


def test_a_stored_alpha_comes_before_every_configuration(tmp_path):
    tensors = lora_tensors("x") | {"x.alpha": torch.tensor(8.0)}
    (patch,) = read_adapter(write(tmp_path / "a.safetensors", tensors), {"lora_alpha": 2, "use_rslora": True}).patches
    assert (patch.alpha, patch.rank_stabilized) == (8.0, False)


def test_an_alpha_of_the_metadata_is_told(tmp_path):
    """And not applied: of which tensors it is, and whether they hold it already, nothing says."""
    said = {"alpha": "128"}
    source = write(tmp_path / "a.safetensors", lora_tensors("x"), said)
    assert [doubt for doubt in read_adapter(source).doubts if "metadata say alpha '128'" in doubt]
    assert read_adapter(source, alpha=2.0).doubts == ()
    source = write(tmp_path / "b.safetensors", lora_tensors("x") | {"x.alpha": torch.tensor(8.0)}, said)
    assert read_adapter(source).doubts == ()


def test_config_file_beside_and_sidecar_before_it(tmp_path):
    source = write(tmp_path / "a.safetensors", lora_tensors("x"))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 2}')
    assert [patch.alpha for patch in read_adapter(source).patches] == [2]
    assert [patch.alpha for patch in read_adapter(source, {"lora_alpha": 5}).patches] == [5]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("x.lora_up.weight", {"peft_type": "LORA", "lora_alpha": 2}),
        ("x.lora_B.weight", {"peft_type": "IA3", "alpha": 2}),
    ],
)
def test_a_config_of_another_file_is_not_used(name, config, tmp_path):
    other = name.replace("up", "down").replace("lora_B", "lora_A")
    (patch,) = read_adapter(write(tmp_path / "a.safetensors", {name: UP, other: DOWN}), config).patches
    assert patch.alpha is None


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b"\xff", b'{"lora_alpha": "8"}', b'{"alpha_pattern": {"x": []}}', b'{"alpha_pattern": {"(": 1}}'],
)
def test_a_damaged_config_is_an_error(text, tmp_path):
    source = write(tmp_path / "a.safetensors", lora_tensors("x"))
    (tmp_path / "adapter_config.json").write_bytes(text)
    with pytest.raises(FormatError):
        read_adapter(source)


def test_names_that_only_look_alike_are_no_names():
    assert parse_name("lora_up.weight") is None
    assert parse_name("x.lora_A.a.b.weight") is None
    assert parse_name("x.hada_w1_a.weight") is None
