"""How data is printed: tables for people, JSON for programs; and what a record may not do to a terminal.

Rows are mappings whose keys are stable and say their unit (`age_s`, `size_bytes`); a column says how its value looks in a
table. JSON is the same rows, unformatted. rich is imported only for a terminal.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TextIO

import click

from streamjobs.core.duration import instant as utc

if TYPE_CHECKING:
    from rich.table import Table

Output = Literal["table", "json"]

#: CSI, OSC and the other strings that a terminal obeys, with whatever they carry; unterminated ones too.
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]?|\x9b[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
#: Control characters, and those that reorder or hide what stands next to them.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
#: Characters between columns, and those that are left of a text on a narrow terminal.
_GAP, _TEXT = 2, 20


class Column(NamedTuple):
    """One column of a table. `form` makes the value's text; numbers stand right.

    On a terminal that is too narrow, values are left `whole`, `words` are put on several lines, or the `start` is shown, with …; then
    columns are left out, the most `spare` first.
    """

    key: str
    title: str
    form: Callable[[Any], str] = str
    right: bool = False
    fit: Literal["whole", "words", "start"] = "whole"
    spare: int = 0


def show(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], output: Output) -> None:
    """Prints rows on stdout. As JSON: an array of objects with every column's key."""
    if output == "json":
        click.echo(as_json([{column.key: row.get(column.key) for column in columns} for row in rows]))
        return
    cells = [[_cell(row, column) for column in columns] for row in rows]
    if is_terminal(sys.stdout):
        _print_rich(cells, columns)
    else:
        click.echo("\n".join(_aligned(cells, columns)))


def show_one(row: Mapping[str, Any], columns: Sequence[Column], output: Output) -> None:
    """Prints one thing, a line for each of its facts. As JSON: one object."""
    if output == "json":
        click.echo(as_json({column.key: row.get(column.key) for column in columns}))
        return
    width = max(len(column.title) for column in columns)
    for column in columns:
        click.echo(f"{column.title:<{width}}  {_cell(row, column)}".rstrip())


def as_json(data: object, *, indent: int | None = 2) -> str:
    """JSON as UTF-8 text in which control characters are escapes, so that it is safe on a terminal and loses nothing."""
    made = json.dumps(data, ensure_ascii=False, indent=indent, default=str)
    return "\n".join(_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in made.split("\n"))


def is_terminal(stream: TextIO | None) -> bool:
    """None: the process was started with that stream closed, as some schedulers do."""
    return stream is not None and stream.isatty()


def clean(text: str) -> str:
    """Text from a record, fit for a terminal: escape sequences are taken out, other control characters become spaces."""
    return _UNSAFE.sub(" ", _ESCAPES.sub("", text))


# --- how values look --------------------------------------------------------------------------------------------------


def count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def duration(value: float | None) -> str:
    """Two units at most: `4m 10s`, `350ms`."""
    if value is None:
        return "–"
    sign, left = ("-" if value < 0 else ""), abs(value)
    if left < 1:
        return f"{sign}{left * 1000:.0f}ms"
    whole = round(left)
    for (size, name), (lesser, small) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // lesser
            return f"{sign}{whole // size}{name}" + (f" {rest}{small}" if rest else "")
    return f"{sign}{left:.1f}".removesuffix(".0") + "s" if left < 10 else f"{sign}{whole}s"


def rate(value: float | None) -> str:
    """Per second, with a sign that is always said: `+12.5/s`."""
    return "–" if value is None else f"{value:+,.1f}/s"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    left = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if left < 1000:
            return f"{left:.0f} {unit}" if unit == "B" or left >= 100 else f"{left:.1f} {unit}"
        left /= 1000
    return f"{left:.1f} TB"


def instant(value: float | None) -> str | None:
    """Epoch seconds as RFC 3339 in UTC, as publishers write it, for people and programs alike; None: at no time."""
    return utc(value) if value else None


_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


# --- tables -----------------------------------------------------------------------------------------------------------


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], room: int) -> Table:
    """The rows as rich draws them in so many characters, for what refreshes itself in place."""
    cells = [[_cell(row, column) for column in columns] for row in rows]
    return _rich_table(cells, columns, _fitted(cells, columns, room))


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value = row.get(column.key)
    return "–" if value is None else clean(column.form(value))


def _print_rich(cells: list[list[str]], columns: Sequence[Column]) -> None:
    """What has no room goes beyond the edge, for the terminal to wrap: an id in pieces can't be copied."""
    from rich.console import Console

    console = Console(highlight=False)
    widths = _fitted(cells, columns, console.width)
    console.width = max(console.width, _taken(widths.values()))
    console.print(_rich_table(cells, columns, widths))


def _fitted(cells: list[list[str]], columns: Sequence[Column], room: int) -> dict[int, int]:
    """The columns that are shown in so many characters, by their place, and how wide each is."""
    widths = {i: max(map(_width, (column.title, *(line[i] for line in cells)))) for i, column in enumerate(columns)}
    least = {i: _least(column, [line[i] for line in cells], widths[i]) for i, column in enumerate(columns)}
    for i in sorted(widths, key=lambda i: columns[i].spare, reverse=True):
        if columns[i].spare and _taken(least.values()) > room:
            del widths[i], least[i]
    for i, width in widths.items():
        least[i] = min(width, least[i] + max(0, room - _taken(least.values())))
    return least


def _least(column: Column, texts: Sequence[str], width: int) -> int:
    if column.fit == "whole":
        return width
    words = [word for text in texts for word in text.split()] if column.fit == "words" else []
    return min(width, max(_TEXT, *map(_width, (column.title, *words))))


def _taken(widths: Collection[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _rich_table(cells: list[list[str]], columns: Sequence[Column], widths: Mapping[int, int]) -> Table:
    """As wide as it is said to be, lest rich cuts numbers. Text objects, not strings: `[red]` in a payload is text, not markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold", width=_taken(widths.values()))
    for i, width in widths.items():
        column = columns[i]
        side: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=side, no_wrap=column.fit != "words", overflow="ellipsis", width=width)
    for line in cells:
        table.add_row(*(Text(line[i]) for i in widths))
    return table


def _aligned(cells: list[list[str]], columns: Sequence[Column]) -> Iterator[str]:
    """For pipes and files: nothing is wrapped or cut, whatever the width."""
    lines = [[column.title for column in columns], *cells]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = (_padded(cell, width, column.right) for cell, width, column in zip(line, widths, columns, strict=True))
        yield (" " * _GAP).join(padded).rstrip()


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


# --- progress ---------------------------------------------------------------------------------------------------------


class Progress(Protocol):
    """Long work, as seen on the terminal."""

    def advance(self, by: int = 1) -> None: ...


class _Silent:
    def advance(self, by: int = 1) -> None:
        """Nobody watches."""


class _Bar:
    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def advance(self, by: int = 1) -> None:
        self._advance(by)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """A bar on stderr while the block runs, if stderr is a terminal. `total` None: it is not known, nor is when it ends."""
    if not is_terminal(sys.stderr):
        yield _Silent()
        return
    from rich import progress as rich_progress
    from rich.console import Console

    shown = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.completed:,.0f}"),
        rich_progress.TimeElapsedColumn(),
        *([] if total is None else [rich_progress.TextColumn("of {task.total:,.0f}, left:"), rich_progress.TimeRemainingColumn()]),
        console=Console(stderr=True),
        transient=True,
    )
    with shown:
        task = shown.add_task(what, total=total)
        yield _Bar(lambda by: shown.advance(task, by))
