"""Which weight files an export has, and the plan that writes them: the merge engine's, laid out anew.

A graph points at a parameter by its offset in such a file. So what stands before the tensors depends on names, shapes
and dtypes alone: the names are sorted, and the metadata is the one key that transformers asks for. A new λ then moves
nothing. Who made the file is told in the export's manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcmmerge.archs import Model
from lcmmerge.bake.outcome import Outcome
from lcmmerge.errors import ShapeMismatchError
from lcmmerge.merge.configs import CURE
from lcmmerge.merge.layout import Piece, PlannedFile, PlannedTensor, lay_out
from lcmmerge.merge.outputs import weights_stem
from lcmmerge.merge.plan import Plan
from lcmmerge.merge.spec import Written
from lcmmerge.refs.weights import DIFFUSERS
from lcmmerge.tensors import DType
from lcmmerge.tensors.encodings import UNQUANTISED, plain
from lcmmerge.tensors.layout import TensorSpec

VAE_PARTS: Mapping[str, tuple[str, ...]] = {
    "vae_decoder": ("decoder.", "post_quant_conv."),
    "vae_encoder": ("encoder.", "quant_conv."),
}
HEADER = {"format": "pt"}  # transformers refuses a file without it


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file that graphs point into.

    ``path`` is below the export's folder; ``component`` the checkpoint's, of which it holds the names that begin so.

    The external data of a graph must lie in the graph's own folder, so the VAE's halves have files of their own,
    beside the whole one that diffusers loads.
    """

    path: Path
    component: str
    begins: tuple[str, ...] = ("",)


def source_of(component: str) -> str:
    """The checkpoint's component that a graph is of."""
    return "vae" if component in VAE_PARTS else component


def weight_files(model: Model) -> Iterator[WeightFile]:
    for component in model.arch.components:
        yield WeightFile(Path(component, f"{weights_stem(component)}.safetensors"), component)
    for part, begins in VAE_PARTS.items():
        yield WeightFile(Path(part, f"{weights_stem('vae')}.safetensors"), "vae", begins)


def plan_weights(merge: Plan, target: Path, dtypes: Mapping[str, DType]) -> Plan:
    """θ′ in an export's files under ``target``; ``dtypes``: of each of the checkpoint's components.

    Only what a module has a parameter for is written: no EMA copies, no ``position_ids``. Raises FormatError where a
    part of the U-Net has no name in diffusers' layout.
    """
    output = Written(drop_ema=True, encoding=UNQUANTISED)
    laid, dropped = lay_out(merge.base, merge.contributions, target, DIFFUSERS, output)
    pieces = {piece.operand.name: piece for file in laid for tensor in file.tensors for piece in tensor.pieces}
    # A full LCM's `cond_proj` is no parameter of the architecture's, and is one of its U-Net's.
    denoiser = f"{merge.base.arch.denoiser.name}."
    extra = {name for name in merge.base.leftovers if name.startswith(denoiser)}
    wanted = sorted(name for name in pieces if name in merge.base.parameters or name in extra)
    files = tuple(
        PlannedFile(
            file.path,
            tuple(
                _planned(name.removeprefix(f"{file.component}."), pieces[name], dtypes[file.component])
                for name in wanted
                if name.startswith(tuple(f"{file.component}.{begin}" for begin in file.begins))
            ),
        )
        for file in weight_files(merge.base)
    )
    return replace(merge, target=target, layout=DIFFUSERS, files=files, dropped=dropped)


def _planned(name: str, piece: Piece, dtype: DType) -> PlannedTensor:
    piece = replace(piece, encoding=plain(dtype), transposed=False)
    return PlannedTensor(TensorSpec(name, dtype, piece.operand.shape), piece.operand.shape, (piece,))


def header(file: PlannedFile, sha256: str, *, final: bool) -> dict[str, str]:
    """``bake.execute``'s Metadata: the same for every file."""
    return HEADER


def described(plan: Plan, outcome: Outcome, folder: Path) -> dict[str, Mapping[str, Any]]:
    """What the manifest says of the plan's files, whose whole hashes the outcome has."""
    return {
        file.path.as_posix(): {"bytes": (folder / file.path).stat().st_size, "sha256": sha256}
        for file, sha256 in zip(plan.files, outcome.sha256, strict=True)
    }


def check_fit(file: PlannedFile, parameters: Mapping[str, tuple[int, ...]], configs: Path) -> None:
    """Refuse weights that are not those of the module that the configs describe: name → shape.

    Raises ShapeMismatchError.
    """
    found = {tensor.spec.name: tensor.spec.shape for tensor in file.tensors}
    unlike = sorted(name for name in found.keys() | parameters.keys() if found.get(name) != parameters.get(name))
    if unlike:
        name = unlike[0]
        have = list(found[name]) if name in found else "missing"
        want = list(parameters[name]) if name in parameters else "no such parameter"
        raise ShapeMismatchError(
            f"{configs}: {len(unlike)} parameters of {file.path.parent} are not as it describes them, the first of "
            f"them {name}: {have}, by its config.json {want}",
            CURE,
        )
