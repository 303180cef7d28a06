"""`make edges`: the numbers of tests/edge_cases.md that no test carries."""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
_LINE = re.compile(r"^(?P<number>\d+)\. (?P<text>.+)$", re.MULTILINE)
_CARRIED = re.compile(r"# edges? (?P<numbers>\d+(?:\s*,\s*\d+)*)")
NEVER = "can't arise: "


def cases() -> dict[int, str]:
    """Number → what it is about."""
    return {int(match["number"]): match["text"] for match in _LINE.finditer((HERE / "edge_cases.md").read_text("utf-8"))}


def carried() -> dict[int, list[str]]:
    """Number → the places of the tests that carry it."""
    found: dict[int, list[str]] = {}
    for path in sorted(HERE.rglob("test_*.py")):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            for match in _CARRIED.finditer(line):
                for edge in re.findall(r"\d+", match["numbers"]):
                    found.setdefault(int(edge), []).append(f"{path.relative_to(HERE.parent)}:{number}")
    return found


def missing() -> dict[int, str]:
    """Those that no test carries, and that can arise."""
    done = carried()
    return {number: text for number, text in cases().items() if number not in done and NEVER not in text}


def main() -> int:
    open_ones = missing()
    for number, text in open_ones.items():
        sys.stdout.write(f"{number:>3}  {text}\n")
    never = sum(NEVER in text for text in cases().values())
    total = len(cases())
    sys.stdout.write(f"{total - len(open_ones) - never} of {total} are held by tests, {never} can't arise, {len(open_ones)} are open\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
