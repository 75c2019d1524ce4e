"""What is to be drawn: one job per image; and how much of it at most, by bounds that no real use meets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lcmmerge.errors import FormatError, NotFoundError, OptionError
from lcmmerge.refs.files import read_text

MULTIPLE = 8  # pixels per latent
MOST_IMAGES = 100_000  # of one command, or of one cell of a search
MOST_CELLS = 10_000  # of a search
MOST_STEPS = 1_000  # as many timesteps as models are trained at
LONGEST = 16_384  # pixels of a side
DIGITS = 9  # that are read of a side: Python refuses thousands of them in words of its own
Size = tuple[int, int]  # width, height


@dataclass(frozen=True, slots=True)
class Job:
    """One image; ``width`` and ``height`` in pixels, multiples of 8. The seed is of all its noise."""

    prompt: str
    negative: str
    seed: int
    width: int
    height: int

    @property
    def size(self) -> Size:
        return self.width, self.height


def jobs_of(prompts: Sequence[str], size: Size, *, negative: str = "", seed: int = 0, count: int = 1) -> list[Job]:
    """``count`` jobs for each prompt, with the seeds ``seed``, ``seed`` + 1, …: the same for every prompt.

    Raises OptionError for more, or larger ones, than anybody draws.
    """
    check_amount(len(prompts) * count, size)
    return [Job(prompt, negative, seed + number, *size) for prompt in prompts for number in range(count)]


def check_amount(images: int, size: Size) -> None:
    """Raises OptionError. A size may also come from a model's config."""
    if images > MOST_IMAGES:
        raise OptionError(f"{images} images, of at most {MOST_IMAGES} at once", "give fewer prompts, or less --count")
    if max(size) > LONGEST:
        raise OptionError(f"{size[0]}x{size[1]}: no side is longer than {LONGEST} pixels", "give a smaller --size")


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, empty lines aside. Raises NotFoundError, FormatError."""
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise NotFoundError(f"prompts {path}: cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError:
        raise FormatError(f"prompts {path}: is not text in UTF-8", "one prompt a line") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise FormatError(f"prompts {path}: holds no prompt", "one prompt a line")
    return prompts


def parse_size(text: str) -> Size:
    """``768x512`` is width × height. Raises ValueError."""
    width, _, height = text.lower().partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise ValueError(f"{text!r} is not a size: write WIDTHxHEIGHT, such as 768x512")
    size = int(width[:DIGITS]), int(height[:DIGITS])
    if any(side < 1 or side % MULTIPLE or side > LONGEST for side in size):
        raise ValueError(f"{text!r}: width and height must be multiples of {MULTIPLE}, up to {LONGEST}")
    return size
