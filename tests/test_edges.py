"""The list of edge cases is whole, and what claims to hold one of them is a test."""

from __future__ import annotations

import re
from pathlib import Path

from tests.edges import NEVER, carried, cases, missing

ROOT = Path(__file__).resolve().parent.parent


def test_every_number_has_its_line() -> None:
    assert list(cases()) == list(range(1, 82))


def test_numbers_are_carried_by_tests() -> None:
    """`# edge N` stands at the `def` of a test or at one of its cases, and N is on the list."""
    strays = []
    for number, places in carried().items():
        for place in places:
            name, _, line = place.rpartition(":")
            lines = (ROOT / name).read_text("utf-8").splitlines()
            if number not in cases() or not _is_test(lines, int(line) - 1):
                strays.append(f"{place}: edge {number}")

    assert not strays


def _is_test(lines: list[str], at: int) -> bool:
    """On the line of a `def test_…`, on the last line of its signature, or on a case of its parameters above it."""
    line = lines[at]
    if re.match(r"\s*(?:async )?def test_", line) or re.match(r"\s*(?:pytest\.param)?\(.+\),?\s*#", line):
        return True
    signature = next((text for text in reversed(lines[:at]) if re.match(r"\s*(?:async )?def ", text)), "")
    return "def test_" in signature and re.match(r"\s*\).*:\s*#", line) is not None


def test_what_cannot_arise_is_not_tested_all_the_same() -> None:
    """A test that carries such a number says that it does arise."""
    never = {number for number, text in cases().items() if NEVER in text}

    assert never & carried().keys() == set()
    assert never.isdisjoint(missing())
