"""Sessions: what is refused before a runtime could crash, which provider runs, and files that change meanwhile."""

import os
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from running import exact
from safetensors.torch import load_file, save_file

from lcmmerge.errors import FormatError, IncompatibleError, LcmMergeError, NotFoundError
from lcmmerge.export import runtime
from lcmmerge.export.runtime import choose_provider, open_export, open_session

GPU = os.path.exists("/dev/nvidia0")  # noqa: PTH110
WEIGHTS = "diffusion_pytorch_model.safetensors"
LATENTS = {"latent_sample": torch.linspace(-2, 2, 4 * 9 * 7).reshape(1, 4, 9, 7)}


@pytest.fixture(scope="module")
def export(files, tmp_path_factory):
    return exact(tmp_path_factory, files("sd1"))


@pytest.fixture
def decoder(export, tmp_path):
    """A copy of the decoder's folder."""
    return shutil.copytree(export / "vae_decoder", tmp_path / "vae_decoder") / "model.onnx"


def moved(weights, export):
    weights.rename(weights.with_name("elsewhere"))


def truncated(weights, export):
    os.truncate(weights, weights.stat().st_size - 1)


def of_another_architecture(weights, export):
    shutil.copyfile(export / "unet" / WEIGHTS, weights)


def of_another_dtype(weights, export):
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})


def of_another_shape(weights, export):
    tensors = load_file(weights)
    save_file(tensors | {"decoder.conv_out.bias": torch.zeros(4)}, weights, {"format": "pt"})


def symlinked(weights, export):
    weights.rename(weights.with_name("elsewhere"))
    weights.symlink_to("elsewhere")


FAULTS = {
    moved: (NotFoundError, "no such file"),
    truncated: (FormatError, "truncated"),
    of_another_architecture: (IncompatibleError, "has no 'decoder.conv_in.bias'|has no 'post_quant_conv"),
    of_another_dtype: (IncompatibleError, r"is F16 \[.*\], in the graph F32"),
    of_another_shape: (IncompatibleError, r"conv_out.bias' is F32 \[4\], in the graph F32 \[3\]|another place"),
    symlinked: (FormatError, "symbolic link"),
}


@pytest.mark.e2e
@pytest.mark.parametrize("provider", ["cpu", "torch"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_weights_are_named_before_they_are_mapped(fault, provider, decoder, export):
    fault(decoder.parent / WEIGHTS, export)
    kind, said = FAULTS[fault]
    with pytest.raises(kind, match=said):
        open_session(decoder, provider)


@pytest.mark.e2e
@pytest.mark.parametrize("provider", ["cpu", "torch"])
def test_a_session_keeps_the_weights_that_it_was_opened_with(provider, decoder):
    """They are replaced as ``relambda`` does it: written beside and renamed."""
    weights = decoder.parent / WEIGHTS
    old = open_session(decoder, provider)
    before = old(LATENTS)["sample"].clone()
    content = weights.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    values = np.frombuffer(content[header:], np.float32) * np.float32(1.1)
    beside = weights.with_name("beside")
    beside.write_bytes(content[:header] + values.tobytes())
    beside.replace(weights)
    torch.testing.assert_close(old(LATENTS)["sample"], before, rtol=0, atol=0)
    assert (open_session(decoder, provider)(LATENTS)["sample"] - before).abs().max() > 0.01


@pytest.mark.e2e
def test_a_bound_session_gives_what_a_plain_one_does(export):
    graph = export / "vae_decoder" / "model.onnx"
    plain = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    expected = plain.run(None, {name: tensor.numpy() for name, tensor in LATENTS.items()})[0]
    strided = {"latent_sample": LATENTS["latent_sample"].transpose(2, 3).contiguous().transpose(2, 3)}
    for given in (LATENTS, strided):
        found = open_session(graph, "cpu")(given)["sample"]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.e2e
def test_onnx_runtime_warns_again_after_a_refusal(decoder, capfd):
    decoder.write_bytes(decoder.read_bytes().replace(b"Sigmoid", b"Sigmoit"))
    with pytest.raises(FormatError):
        open_session(decoder, "cpu")
    capfd.readouterr()
    x, y = (helper.make_tensor_value_info(name, 1, [1]) for name in "xy")
    unused = numpy_helper.from_array(np.ones(1, np.float32), "unused")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", [x], [y], [unused])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert "Removing initializer 'unused'" in capfd.readouterr().err


@pytest.mark.e2e
def test_a_graph_that_onnx_runtime_refuses(decoder):
    decoder.write_bytes(decoder.read_bytes().replace(b"Sigmoid", b"Sigmoit"))
    with pytest.raises(FormatError, match=r"ONNX Runtime refuses it: .*Sigmoit"):
        open_session(decoder, "cpu")


@pytest.mark.e2e
def test_no_graph_at_all(decoder):
    decoder.write_bytes(b"no graph")
    with pytest.raises(FormatError, match="is not an ONNX graph"):
        open_session(decoder, "torch")


@pytest.mark.e2e
@pytest.mark.skipif(GPU, reason="there is a GPU here")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here(provider, export, capfd):
    with pytest.raises(LcmMergeError, match=f"provider '{provider}': is not usable here; usable are cpu") as refused:
        open_export(export, provider)
    assert "--provider" in refused.value.hint
    assert capfd.readouterr() == ("", "")


CPU_ONLY = "running on cpu by ONNX Runtime's CPUExecutionProvider"
BY_TORCH = "running on cpu by torch, node by node"


@pytest.mark.skipif(GPU, reason="there is a GPU here")
@pytest.mark.parametrize(
    ("asked", "dtypes", "free", "chosen", "said"),
    [
        (None, {"fp32"}, 8e9, "cpu", f"{CPU_ONLY}: no GPU that ONNX Runtime could use"),
        (None, {"fp32"}, None, "cpu", f"{CPU_ONLY}: no GPU that ONNX Runtime could use"),
        (None, {"fp32"}, 6e9, "torch", f"{BY_TORCH}: ONNX Runtime would take some 7.0 GB, and 6.0 GB are free"),
        (
            *(None, {"fp16", "fp32"}, 64e9, "torch"),
            f"{BY_TORCH}: ONNX Runtime widens fp16, to some 7.0 GB (--provider cpu: faster for many images)",
        ),
        (None, {"fp32", "bf16"}, 64e9, "torch", f"{BY_TORCH}: ONNX Runtime takes no bf16 on the CPU"),
        ("cpu", {"fp16"}, 1e9, "cpu", CPU_ONLY),
        ("torch", {"fp32"}, 64e9, "torch", BY_TORCH),
    ],
)
def test_what_a_person_would_take_on_a_cpu(asked, dtypes, free, chosen, said, monkeypatch):
    monkeypatch.setattr(runtime, "available_memory", lambda: free)
    lines = []
    assert choose_provider(asked, dtypes, lines.append, parameters=10**9) == chosen
    assert lines == [said]


def test_bf16_on_onnx_runtimes_cpu():
    with pytest.raises(IncompatibleError, match="no bf16") as refused:
        choose_provider("cpu", {"bf16"})
    assert "fp32" in refused.value.hint


@pytest.mark.e2e
def test_variants(export):
    fused = open_export(export, "cpu", components={"text_encoder", "vae_decoder"}.__contains__)
    assert fused.variants == {"text_encoder": "fused", "vae_decoder": "plain"}
    plain = open_export(export, "cpu", variant="plain", components={"text_encoder"}.__contains__)
    assert plain.variants == {"text_encoder": "plain"}
    ids = {"input_ids": torch.arange(77)[None]}
    torch.testing.assert_close(
        fused("text_encoder", ids)["pooler_output"], plain("text_encoder", ids)["pooler_output"], atol=1e-5, rtol=0
    )


def test_providers_are_those_of_the_command_line():
    from lcmmerge.cli.generate import PROVIDERS

    assert tuple(PROVIDERS.choices) == runtime.PROVIDERS


@pytest.mark.parametrize(
    ("version", "provider", "dtype", "target", "variant"),
    [
        ("1.31.1", "cuda", "fp16", "onnx", "fused"),
        ("1.24.4", "cuda", "fp16", "onnx", "plain"),  # Attention is not on CUDA
        ("1.26.0", "cuda", "fp16", "onnx", "fused"),
        ("1.26.0", "cpu", "fp16", "onnx", "plain"),  # LayerNormalization is not exact
        ("1.31.1", "cuda", "fp16", "tensorrt", "plain"),  # GroupNormalization is not on CUDA
        ("1.31.1", "tensorrt", "fp16", "tensorrt", "fused"),
        ("1.31.1", "tensorrt", "fp32", "onnx", "plain"),
        ("1.22.0", "torch", "fp32", "tensorrt", "fused"),
    ],
)
def test_the_variant_that_a_provider_takes_whole(version, provider, dtype, target, variant, monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", version)
    graphs = {"plain": {}, "fused": {}}
    assert runtime._variant(graphs, None, provider, dtype, target) == variant
    assert runtime._variant(graphs, "fused", provider, dtype, target) == "fused"
    assert runtime._variant({"plain": {}}, None, provider, dtype, target) == "plain"


def test_bf16_on_an_old_cuda_provider(monkeypatch):
    monkeypatch.setattr(runtime, "_usable", lambda name: True)
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(IncompatibleError, match="CUDA provider takes no bf16") as refused:
        choose_provider("cuda", {"bf16"})
    assert "1.25" in refused.value.hint
    assert choose_provider("cuda", {"fp16"}) == "cuda"
    monkeypatch.setattr(onnxruntime, "__version__", "1.25.0")
    assert choose_provider("cuda", {"bf16"}) == "cuda"


@pytest.mark.e2e
@pytest.mark.parametrize("provider", ["cpu", "torch"])
def test_a_runtime_that_fails_is_named(provider, decoder):
    """Neither the graph nor a config is at fault."""
    wrong = {"latent_sample": torch.zeros(1, 3, 8, 8)}
    with pytest.raises(LcmMergeError, match=r"ONNX Runtime 1\.\S+ fails to run it|torch cannot compute it") as failed:
        open_session(decoder, provider)(wrong)
    assert not isinstance(failed.value, FormatError | IncompatibleError)
    assert "config" not in failed.value.message + failed.value.hint


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device here")
def test_cuda_is_the_cpu(export):
    """Bound where they lie: the result is on the GPU."""
    graph = export / "vae_decoder" / "model.onnx"
    found = open_session(graph, choose_provider(None, {"fp32"}))(LATENTS)["sample"]
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), open_session(graph, "cpu")(LATENTS)["sample"], atol=1e-3, rtol=0)
