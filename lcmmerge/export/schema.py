"""What ``lcmmerge.json`` may hold: an export may be a stranger's, and every path in it stays in its folder."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lcmmerge.refs import HUB
from lcmmerge.refs.files import is_inside
from lcmmerge.tensors.dtypes import OUTPUT_DTYPES

MOST_STEPS = 1000


def _in_folder(path: str) -> str:
    if not is_inside(path):
        raise ValueError(f"{path!r} leads out of the folder")
    return path


def _on_hub(reference: str) -> str:
    if not reference.startswith(HUB):
        raise ValueError(f"{reference!r} is not on the Hub")
    return reference


# Also words of a shell: commands that an export holds name them.
InFolder = Annotated[str, Field(pattern=r"^\w[\w./-]*$"), AfterValidator(_in_folder)]
Word = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Dims = list[int | str]
Shapes = dict[Word, Annotated[list[list[int]], Field(min_length=3, max_length=3)]]  # input → least, usual, most
Range = Annotated[list[int], Field(min_length=3, max_length=3)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class GraphEntry(_Entry):
    """A graph of a component."""

    path: InFolder
    opset: int


class ComponentEntry(_Entry):
    """A part of the pipeline, with its graphs and ports."""

    weights: InFolder
    dtype: Literal[tuple(OUTPUT_DTYPES)]  # type: ignore[valid-type]
    graphs: dict[Word, GraphEntry] = Field(min_length=1)
    inputs: dict[Word, Dims]
    outputs: dict[Word, Dims]


class SamplingEntry(_Entry):
    """How the export is drawn with."""

    name: str
    scheduler: str = Field(pattern=r"^\w+Scheduler$")
    settings: dict[str, Any]
    steps: int = Field(ge=1, le=MOST_STEPS)
    guidance: float = Field(ge=0)
    arguments: dict[str, float]


class ProfileEntry(_Entry):
    """Sizes that engines are built for."""

    static: bool
    images: Range
    width: Range
    height: Range
    shapes: dict[Word, Shapes]


class File(_Entry):
    """A file of the export."""

    bytes: int = Field(ge=0)
    sha256: str


class Whole(_Entry):
    """Graphs of the whole pipeline."""

    graphs: dict[Word, GraphEntry]
    timesteps: list[int]
    shapes: dict[Word, Shapes]
    inputs: dict[Word, Dims]
    outputs: dict[Word, Dims]


class Named(_Entry):
    """A component under another tool's names."""

    path: InFolder
    component: Word
    inputs: dict[Word, Word]
    outputs: dict[Word, Word]


class Content(_Entry):
    """The manifest without its version."""

    model: dict[str, str | None]
    architecture: Word
    target: Word
    dtype: Literal[tuple(OUTPUT_DTYPES)]  # type: ignore[valid-type]
    components: dict[Word, ComponentEntry] = Field(min_length=1)
    sampling: SamplingEntry
    recipe: dict[str, Any]
    references: dict[str, Annotated[str, AfterValidator(_on_hub)]]
    profiles: dict[Word, ProfileEntry] = Field(min_length=1)
    versions: dict[str, str]
    parity: dict[str, Any]
    image_parity: dict[str, Any]
    files: dict[InFolder, File]
    whole: Whole | dict[str, None]
    named: dict[Word, Named]
    unfinished: bool

    @model_validator(mode="after")
    def _agree(self) -> Content:
        """What one field says of a component or a file, the others know."""
        known = self.components.keys()
        if any("plain" not in item.graphs or item.weights not in self.files for item in self.components.values()):
            raise ValueError("a component lacks its plain graph, or its weights are not among the files")
        shaped = {name for profile in self.profiles.values() for name in profile.shapes}
        if strange := (shaped | {item.component for item in self.named.values()}) - known:
            raise ValueError(f"there is no component {strange.pop()!r}")
        if any(profile.shapes.keys() != known for profile in self.profiles.values()):
            raise ValueError("a profile has not every component's shapes")
        if isinstance(self.whole, Whole) and self.whole.shapes.keys() != self.profiles.keys():
            raise ValueError("the whole pipeline has other profiles")
        return self
