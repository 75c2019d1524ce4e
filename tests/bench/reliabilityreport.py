"""docs/reliability.md's tables, of the campaign's outcomes: ``python tests/bench/reliabilityreport.py out.json …``."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]
HOSTILE = "hostile file"


def tables(outcomes: Rows) -> str:
    """Command × fault: how often it was tried; then what happened, by fault; then hostile files by reader."""
    wrong = sum(bool(outcome["wrong"]) for outcome in outcomes)
    parts = (_tried(outcomes), _ends(outcomes), _readers(outcomes))
    return "\n\n".join("\n".join(part) for part in parts) + f"\n\n{len(outcomes)} runs; {wrong} ended otherwise.\n"


def _tried(outcomes: Rows) -> Iterator[str]:
    counts = Counter((outcome["command"], _fault(outcome)) for outcome in outcomes)
    wrong = Counter((outcome["command"], _fault(outcome)) for outcome in outcomes if outcome["wrong"])
    commands, found = (sorted({key[part] for key in counts}) for part in (0, 1))
    yield _row("command", *found)
    yield _row("---", *("---:" for _ in found))
    for command in commands:
        cells = (
            f"{counts[command, fault]}{f' ({wrong[command, fault]} wrong)' if wrong[command, fault] else ''}"
            for fault in found
        )
        yield _row(f"`{command}`", *("–" if cell == "0" else cell for cell in cells))
    yield _row("together", *(sum(counts[command, fault] for command in commands) for fault in found))


def _fault(outcome: Mapping[str, Any]) -> str:
    """Hostile files of all kinds as one."""
    fault = str(outcome["fault"])
    return HOSTILE if fault.startswith("hostile ") else fault


def _ends(outcomes: Rows) -> Iterator[str]:
    ends: dict[str, Counter[int]] = defaultdict(Counter)
    for outcome in outcomes:
        ends[_fault(outcome)][outcome["code"]] += 1
    codes = sorted({code for counter in ends.values() for code in counter})
    yield _row("fault", *(f"exit code {code}" for code in codes), "otherwise than it should")
    yield _row("---", *("---:" for _ in codes), "---:")
    for fault, counter in sorted(ends.items()):
        wrong = sum(bool(outcome["wrong"]) for outcome in outcomes if _fault(outcome) == fault)
        yield _row(fault, *(counter[code] or "–" for code in codes), wrong)


def _readers(outcomes: Rows) -> Iterator[str]:
    files = [outcome for outcome in outcomes if _fault(outcome) == HOSTILE]
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in files:
        kind = outcome["fault"].removeprefix("hostile ")
        kinds[kind]["refused" if outcome["code"] else "read"] += 1
        kinds[kind]["wrong"] += bool(outcome["wrong"])
    yield _row("hostile file", "tried", "refused in one line", "read: sound for all that is read of it", "otherwise")
    yield _row("---", "---:", "---:", "---:", "---:")
    for kind, counter in sorted(kinds.items()):
        refused, read, wrong = counter["refused"], counter["read"], counter["wrong"]
        yield _row(kind, refused + read, refused, read, wrong)


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    outcomes = [outcome for name in sys.argv[1:] for outcome in json.loads(Path(name).read_text())["outcomes"]]
    sys.stdout.write(tables(outcomes))


if __name__ == "__main__":
    main()
