"""Networks that look at images, each loaded once for a device; where their weights are is for ``refs`` to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lcmmerge import refs
from lcmmerge.errors import FormatError, NotFoundError
from lcmmerge.search.objectives.base import is_program

Look = Callable[[Iterator[Tensor]], Iterator[Tensor]]  # images [·, 3, H, W] uint8 → a row for each
CLIP = "hf://openai/clip-vit-base-patch32"
DINO = "hf://facebook/dinov2-small"
VGG = "hf://timm/vgg16.tv_in1k/model.safetensors"
# TensorFlow's network of 2015, by which FID is defined, as TorchScript.
INCEPTION = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
# Of a folder no code is run, nothing is asked and nothing is downloaded; of a pickle tensors alone are read.
OWN: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
ATTENTION: Mapping[str, Any] = {"attn_implementation": "sdpa"}  # a config may name a compiled kernel on the Hub
POOLED = (5, 10, 17, 24)  # before these layers of VGG-16 the image is halved; what stands before is compared
MEAN, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # LPIPS': of images in [-1, 1]


def clip_images(weights: str) -> Look:
    """Embeddings of length 1, [n, d]."""

    def look(images: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in images:
            model, prepare, _ = _clip(weights, batch.device)
            yield _unit(model.get_image_features(**_prepared(prepare, batch)))

    return look


def clip_texts(weights: str, texts: Sequence[str]) -> Tensor:
    """Embeddings of length 1, [n, d] float64; what is longer than CLIP reads is cut."""
    model, _, tokenize = _clip(weights, torch.device("cpu"))
    most = model.config.text_config.max_position_embeddings
    with torch.no_grad():
        tokens = tokenize(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        return _unit(model.get_text_features(**tokens)).double()


def embeddings(weights: str) -> Look:
    """The class token's, [n, d]."""

    def look(images: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in images:
            model, prepare = _transformer(weights, batch.device)
            yield model(**_prepared(prepare, batch)).last_hidden_state[:, 0]

    return look


def inception(weights: str) -> Look:
    """Features of the last pooling, [n, 2048]: of a TorchScript that scales [·, 3, H, W] in 0 … 255 itself.

    Of any other network the class token's.
    """
    if not is_program(weights):
        return embeddings(weights)

    def look(images: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in images:
            yield _script(weights, batch.device)(batch, return_features=True)

    return look


def perceptual(weights: str, others: Iterator[Tensor]) -> Look:
    """The LPIPS distance to each of ``others``, [n]."""

    def look(images: Iterator[Tensor]) -> Iterator[Tensor]:
        for ours, theirs in zip(images, others, strict=True):
            layers, heads = _vgg(weights, ours.device)
            stages = zip(_stages(ours, layers), _stages(theirs, layers), heads, strict=True)
            found = [((one - other).square() * head).sum(1).mean((1, 2)) for one, other, head in stages]
            yield torch.stack(found).sum(0)

    return look


def _stages(images: Tensor, layers: Mapping[int, tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    """What stands before each halving, and at the end, with a length of 1 in each place: [·, C, h, w]."""
    mean, spread = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, SPREAD))
    inner = (images.float() / 127.5 - 1 - mean) / spread
    for number, (kernel, bias) in layers.items():
        if number in POOLED:
            yield functional.normalize(inner, dim=1)
            inner = functional.max_pool2d(inner, 2)
        inner = functional.conv2d(inner, kernel, bias, padding=1).relu()
    yield functional.normalize(inner, dim=1)


@cache
def _clip(weights: str, device: torch.device) -> tuple[Any, Any, Any]:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    with _read(weights) as folder:
        model = CLIPModel.from_pretrained(folder, **OWN, **ATTENTION).eval().to(device)
        prepare = AutoImageProcessor.from_pretrained(folder, **OWN)
        return model, prepare, AutoTokenizer.from_pretrained(folder, **OWN)


@cache
def _transformer(weights: str, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel

    with _read(weights) as folder:
        model = AutoModel.from_pretrained(folder, **OWN, **ATTENTION).eval().to(device)
        return model, AutoImageProcessor.from_pretrained(folder, **OWN)


@cache
def _script(weights: str, device: torch.device) -> Any:
    with _read(weights) as path:
        return torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]


@cache
def _vgg(weights: str, device: torch.device) -> tuple[dict[int, tuple[Tensor, Tensor]], list[Tensor]]:
    """By number each convolution of VGG-16, as torchvision names them; for each stage the channels' weights."""
    import torchmetrics.functional.image.lpips as lpips
    from safetensors.torch import load_file

    with _read(weights) as path:
        tensors = load_file(path, str(device))
        numbers = sorted(int(name.split(".")[1]) for name in tensors if name.startswith("features.") and "bias" in name)
        layers = {number: (tensors[f"features.{number}.weight"], tensors[f"features.{number}.bias"])
                  for number in numbers}  # fmt: skip
    heads = Path(lpips.__file__).parent / "lpips_models" / "vgg.pth"
    found = torch.load(heads, map_location=device, weights_only=True)
    return layers, [found[f"lin{stage}.model.1.weight"][0] for stage in range(len(POOLED) + 1)]


@contextmanager
def _read(weights: str) -> Iterator[str]:
    """Its path, downloaded where it has to be. Raises NotFoundError, FormatError."""
    from transformers.utils import logging

    path = _downloaded(weights) if weights == INCEPTION else refs.resolve(weights, "network")
    logging.disable_progress_bar()
    try:
        yield str(path)
    except Exception as error:  # each library has its own
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"network {weights}: {what}", "see `lcmmerge search --help` for what it may be") from None
    finally:
        logging.enable_progress_bar()


def _downloaded(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise NotFoundError(f"{url}: {error}", "download it elsewhere, and name the file") from None
    return path


def _prepared(prepare: Any, images: Tensor) -> dict[str, Tensor]:
    found = prepare(list(images.cpu()), return_tensors="pt")
    return {"pixel_values": found["pixel_values"].to(images.device)}


def _unit(features: Any) -> Tensor:
    """transformers 5 wraps what its 4 gave bare."""
    return functional.normalize(getattr(features, "pooler_output", features), dim=1)
