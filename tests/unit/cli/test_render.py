"""Tables and JSON: what a value looks like, and what a record may not do to a terminal."""

from __future__ import annotations

import io
import json
import sys

import pytest

from streamjobs.cli import render
from streamjobs.cli.render import Column, as_json, clean, show, show_one

COLUMNS = (Column("queue", "QUEUE"), Column("lag", "LAG", render.count, right=True), Column("age_s", "AGE", render.duration))
ROWS = [{"queue": "invoices", "lag": 12_345, "age_s": 250.4}, {"queue": "mails", "lag": 0, "age_s": None}]


def test_a_table_is_aligned_and_never_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show([*ROWS, {"queue": "x" * 300, "lag": 1, "age_s": 1}], COLUMNS, "table")

    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("x" * 300 + "       1  1s")
    assert lines[1].split() == ["invoices", "12,345", "4m", "10s"]
    assert lines[2].split() == ["mails", "0", "–"]
    assert lines[0].index("AGE") == lines[1].index("4m")


def test_wide_characters_keep_the_columns_straight(capsys: pytest.CaptureFixture[str]) -> None:
    show([{"queue": "請求書", "lag": 1}, {"queue": "e\u0301", "lag": 1}], COLUMNS[:2], "table")

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "請求書    1"
    assert lines[2] == "e\u0301         1"


def test_json_is_the_data_itself_with_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    show([*ROWS, {"queue": "new", "hidden": 1}], COLUMNS, "json")

    assert json.loads(capsys.readouterr().out) == [*ROWS, {"queue": "new", "lag": None, "age_s": None}]


def test_one_thing_is_a_line_for_each_fact(capsys: pytest.CaptureFixture[str]) -> None:
    show_one(ROWS[0], COLUMNS, "table")
    show_one(ROWS[0], COLUMNS, "json")

    out = capsys.readouterr().out
    assert out.startswith("QUEUE  invoices\nLAG    12,345\nAGE    4m 10s\n")
    assert json.loads(out.partition("{")[1] + out.partition("{")[2]) == ROWS[0]


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;owned\x07title", "title"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP+q544e\x1b\\x", "x"),
        ("\x9b2Jgone", "gone"),
        ("\x9d52;c;cm0gLXJm\x9cpaste", "paste"),
        ("\x1b[", ""),
        ("\x1b", ""),
        ("\x1b]unterminated", ""),
        ("\x1bcreset", "reset"),
        ("two\nlines\r\tand\x00nul", "two lines  and nul"),
        ("a\u202egnp.exe", "a gnp.exe"),
        ("\u2066x\u2069", " x "),
        ("[red]markup[/red]", "[red]markup[/red]"),
        ("plain ünï 😀", "plain ünï 😀"),
    ],
)
def test_what_a_record_says_can_not_drive_the_terminal(hostile: str, shown: str) -> None:
    assert clean(hostile) == shown


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_clean_their_cells(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")

    show([{"queue": "\x1b]0;owned\x07[red]x[/red]\n", "lag": 1}], COLUMNS[:2], "table")

    assert "\x1b" not in out.getvalue()
    assert "[red]x[/red]" in out.getvalue()


WIDE = (
    Column("id", "LETTER"), Column("attempt", "ATTEMPT", right=True, spare=2), Column("message", "MESSAGE", fit="start", spare=1),
    Column("topic", "TOPIC"), Column("advice", "WHAT TO DO", fit="words"),
)  # fmt: skip
WIDE_ROW = {
    "id": "jobs.invoices@1f2e3d4c/3/70012#15", "attempt": 15, "message": "no answer from the bank after 30 seconds",
    "topic": "jobs.invoices.shop.dlt", "advice": "mend the cause, then replay them all",
}  # fmt: skip


@pytest.mark.parametrize(
    ("width", "titles", "first"),
    [
        (170, "LETTER ATTEMPT MESSAGE TOPIC WHAT", "no answer from the bank after 30 seconds"),
        (115, "LETTER ATTEMPT MESSAGE TOPIC WHAT", "no answer from the bank …"),
        (105, "LETTER MESSAGE TOPIC WHAT", "no answer from the bank…"),
        (90, "LETTER TOPIC WHAT", "mend the cause,"),
        (40, "LETTER TOPIC WHAT", "mend the cause,"),
    ],
)
def test_ids_and_topics_are_whole_on_every_terminal(width: int, titles: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bit: an id in six pieces below each other, which can't be copied, and a title `ATTEMP/T`."""
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")

    show([WIDE_ROW], WIDE, "table")

    head, line, *rest = clean(out.getvalue().replace("\n", "␤")).split("␤")
    assert " ".join(head.split()).startswith(titles)
    assert WIDE_ROW["id"] in line and WIDE_ROW["topic"] in line and first in line
    assert all(len(each.rstrip()) <= max(width, 79) for each in (head, line, *rest))


def test_json_escapes_what_would_drive_a_terminal_and_loses_nothing() -> None:
    hostile = "\x1b[2J\x9b\u202e\x7f\ufeff ü😀"

    made = as_json({"error": hostile})

    assert json.loads(made) == {"error": hostile}
    assert not set(made) & set("\x1b\x9b\u202e\x7f\ufeff")
    assert "ü😀" in made


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0ms"), (0.0304, "30ms"), (1, "1s"), (2.5, "2.5s"), (42.4, "42s"), (59.9, "1m"), (60, "1m"), (250, "4m 10s"),
        (3_600, "1h"), (9_000, "2h 30m"), (86_399.9, "1d"), (90_000, "1d 1h"), (7_776_000, "90d"), (-250, "-4m 10s"),
        (None, "–"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, shown: str) -> None:
    assert render.duration(seconds) == shown


def test_other_figures() -> None:
    assert [render.rate(value) for value in (12.34, -0.5, 0, None)] == ["+12.3/s", "-0.5/s", "+0.0/s", "–"]
    assert [render.size(value) for value in (999, 1_500, 123_456, 5e12)] == ["999 B", "1.5 kB", "123 kB", "5.0 TB"]
    assert render.count(None) == "–"
    assert render.instant(None) is None
    assert render.instant(0.0) is None


def test_an_instant_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert render.instant(1_780_000_000.25) == "2026-05-28T20:26:40.250Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_there_is_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress("published", total=2) as bar:
        bar.advance(2)

    assert capsys.readouterr() == ("", "")


def test_the_bar_is_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", err)

    with render.progress("published", total=2) as bar:
        bar.advance(2)

    assert "published" in err.getvalue()
    assert capsys.readouterr().out == ""
