"""What was measured, and what follows: medians and spread by case, ratios of one round, the table, the JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One measurement. `who`: bare, ours, or another checkout."""

    scenario: str
    case: str
    who: str
    unit: str
    value: float


@dataclass(frozen=True)
class Goal:
    """A promise: a ratio of two measurements of one round (or a plain value, without `to`), and its bound."""

    text: str
    scenario: str
    case: str
    bound: float
    who: str = "ours"
    to: tuple[str, str] | None = None
    """(case, who) that it is divided by."""
    most: bool = False
    """The bound is an upper one."""


class Book:
    """Measurements in the order in which they came: the n-th of a case belongs to the n-th round."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def note(self, scenario: str, case: str, who: str, unit: str, value: float) -> None:
        self.entries.append(Entry(scenario, case, who, unit, value))

    def values(self, scenario: str, case: str, who: str) -> list[float]:
        return [entry.value for entry in self.entries if entry[:3] == (scenario, case, who)]

    def ratio(self, scenario: str, case: str, who: str, to: tuple[str, str]) -> float | None:
        """The median of the rounds' ratios; None: one of the two was not measured."""
        pairs = list(zip(self.values(scenario, case, who), self.values(scenario, *to)))
        return statistics.median(a / b for a, b in pairs) if pairs else None

    def reached(self, goal: Goal) -> float | None:
        if goal.to is not None:
            return self.ratio(goal.scenario, goal.case, goal.who, goal.to)
        values = self.values(goal.scenario, goal.case, goal.who)
        return statistics.median(values) if values else None

    def rows(self) -> list[tuple[str, ...]]:
        """Of each case and program: median, spread, and the ratio to bare."""
        lines = []
        for scenario, case, who, unit in dict.fromkeys(entry[:4] for entry in self.entries):
            values = self.values(scenario, case, who)
            ratio = self.ratio(scenario, case, who, (case, "bare")) if who != "bare" else None
            spread = f"{number(min(values))} – {number(max(values))}"
            lines.append((scenario, case, who, number(statistics.median(values)), spread, unit, "" if ratio is None else f"{ratio:.2f}"))
        return [("scenario", "case", "who", "median", "spread", "unit", "to bare"), *lines]

    def held_against(self, goals: Iterable[Goal]) -> list[tuple[str, ...]]:
        lines = []
        for goal in goals:
            found = self.reached(goal)
            if found is not None:
                found = round(found, 9)  # 1.0000000000000009 % is a sum of ticks, and no more than 1
                met = found <= goal.bound if goal.most else found >= goal.bound
                lines.append((goal.text, number(found), f"{'≤' if goal.most else '≥'} {number(goal.bound)}", "met" if met else "NOT MET"))
        return [("target", "found", "bound", ""), *lines] if lines else []

    def write(self, path: Path, machine: dict[str, object]) -> None:
        path.write_text(json.dumps({"machine": machine, "entries": [entry._asdict() for entry in self.entries]}, indent=1))


def renew(page: Path, book: Book, goals: Iterable[Goal], told: str) -> None:
    """Puts a run into the page, between its markers. `told`: when, where and how."""
    parts = [told, *(markdown(lines) for lines in (book.held_against(goals), book.rows()) if lines)]
    before, begin, rest = page.read_text("utf-8").partition("<!-- measured -->\n")
    _, end, after = rest.partition("<!-- end of measured -->")
    page.write_text(before + begin + "\n\n".join(parts) + "\n\n" + end + after, "utf-8")


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))] if lines else []
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
