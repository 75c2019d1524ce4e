"""A training's loss as an SVG: every step faintly, the smoothed course, axes; light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 16, 40
MOST_POINTS = 2000
STYLE = """\
text{font:12px system-ui,sans-serif;fill:#444}.axis{stroke:#ccc}.each{stroke:#8ab4f8;opacity:.5}.smooth{stroke:#1a5fb4}
path{fill:none;stroke-width:1.5}rect{fill:#fff}
@media(prefers-color-scheme:dark){rect{fill:#16181c}text{fill:#bbb}.axis{stroke:#444}.smooth{stroke:#8ab4f8}
.each{stroke:#3b5b8c}}"""


class Average:
    """An exponential moving average without the bias towards its start, as Adam's (https://arxiv.org/abs/1412.6980)."""

    def __init__(self, keep: float = 0.98) -> None:
        self._keep, self._sum, self._weight = keep, 0.0, 0.0

    def add(self, value: float) -> float:
        """The average with ``value``."""
        self._sum = self._keep * self._sum + (1 - self._keep) * value
        self._weight = self._keep * self._weight + 1 - self._keep
        return self._sum / self._weight


def svg(steps: Sequence[int], losses: Sequence[float]) -> str:
    """The curve of ``losses``, finite and at least one, over ``steps``, ascending."""
    stride = -(-len(steps) // MOST_POINTS)
    courses = {"each": losses, "smooth": list(map(Average().add, losses))}
    across = Scale(steps[0], max(steps[-1], steps[0] + 1), LEFT, WIDTH - RIGHT)
    low, high = min(losses), max(losses)
    up = Scale(low, high if high > low else low + max(1.0, abs(low)), HEIGHT - BOTTOM, TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f"<title>Loss</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}"/>',
        *_axes(across, up),
    ]
    for name, values in courses.items():
        points = zip(steps[::stride], values[::stride], strict=True)
        path = "L".join(f"{across(step):.1f},{up(value):.1f}" for step, value in points)
        lines.append(f'<path class="{name}" d="M{path}"/>')
    return "\n".join([*lines, "</svg>\n"])


class Scale:
    """Linear, from ``low … high`` to pixels ``start … end``."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Multiples of 1, 2 or 5 · 10ⁿ, about five of them."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def _axes(across: Scale, up: Scale) -> Iterator[str]:
    for value in up.ticks():
        y = up(value)
        yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    for value in across.ticks():
        yield f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
    yield f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text>'
    yield f'<text x="{LEFT - 8}" y="{TOP - 4}" text-anchor="end">loss</text>'
