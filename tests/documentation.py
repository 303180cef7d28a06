"""The parts of the documentation that are made from the code: `make docs` writes them, `tests/test_docs.py` compares.

A part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->` in README.md, DESIGN.md or a file of docs/.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from streamjobs import errors
from streamjobs.cli import root
from streamjobs.cli.command import _common
from streamjobs.core import duration, lifecycle, projection
from streamjobs.core.lifecycle import TRANSITIONS, State
from streamjobs.core.retry import Retry
from streamjobs.kafka.embedded import LACKS
from streamjobs.settings import documented, load
from streamjobs.telemetry import catalogue
from streamjobs.telemetry.events import KINDS

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").glob("*.md"))]
_PART = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL)


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# --- the parts ------------------------------------------------------------------------------------------------------------


def settings() -> str:
    rows = (
        (f"`{s.path}`", s.type, f"`{s.default}`" if s.default else "–", f"`{s.env}`", s.meaning) for s in documented()
    )
    return table(("setting", "type", "default", "environment", "meaning"), rows)


def metrics() -> str:
    return catalogue.markdown()


def events() -> str:
    rows = (
        (f"`{name}`", kind.meaning, "yes" if kind.ends else "no", str(projection.RANKS[name])) for name, kind in KINDS.items()
    )
    return table(("kind", "what happened", "ends the run", "rank"), rows)


def states() -> str:
    """A table and a diagram of the same transitions."""
    rows = (
        (f"**{state.value}**", ", ".join(other.value for other in State if other in TRANSITIONS[state]) or "– (final)")
        for state in State
    )
    lines = ["```mermaid", "stateDiagram-v2"]
    for state in State:
        lines += [f"    {state.value} --> {other.value}" for other in State if other in TRANSITIONS[state]]
        if not TRANSITIONS[state]:
            lines.append(f"    {state.value} --> [*]")
    return table(("state", "may become"), rows) + "\n" + "\n".join([*lines, "```"]) + "\n"


def reasons() -> str:
    return ", ".join(f"`{reason.value}`" for reason in lifecycle.Reason) + "\n"


def outcomes() -> str:
    return ", ".join(f"`{outcome.value}`" for outcome in lifecycle.Outcome) + "\n"


def lacks() -> str:
    return "".join(f"- `{name}`: {_LACKS[name]}\n" for name in sorted(LACKS))


_LACKS = {
    "compaction": "its logs keep every record; readers of a table take the last record of each key, so they see no difference",
    "delete_records": "nothing can be trimmed; it drops the oldest records of a partition by itself beyond about 5 MiB",
    "topic_admin": "topics appear on first use, with four partitions; none can be made, grown or deleted",
    "topic_config": "no topic has settings; no retention, no size limit of its own",
    "topic_ids": "a topic's id is the hash of its name, so a recreated topic is not noticed",
    "transactions": "a facade: what was aborted is visible, and offsets sent with a transaction are not applied",
}


def error_tree() -> str:
    doc = inspect.getdoc(errors) or ""
    drawn = [line[4:] for line in doc.splitlines() if line.startswith("    ")]
    return "```\n" + "\n".join(drawn) + "\n```\n"


def defaults() -> str:
    found = load({}, environ={}, file=None)
    retry = Retry()
    backoff = retry.backoff
    waits = [backoff._nominal(attempt) for attempt in range(1, retry.attempts)]
    first, longest = duration.text(backoff.waits_s[0]), duration.text(backoff.max_s)
    rows = (
        ("attempts", f"{retry.attempts}: about {_in_words(sum(waits))} ({_hours(sum(waits))} without jitter)"),
        ("backoff", f"exponential, {first} … {longest}, each wait ± {backoff.jitter:.0%}"),
        ("timeout", "none"),
        ("order", "by key where a job has one"),
        ("slots", f"{found.worker.slots} def jobs and {found.worker.slots} async ones a process"),
        ("processes", str(found.worker.processes)),
        ("drain", duration.text(found.worker.drain)),
        ("publish waits", f"{duration.text(found.publish_timeout)} at most"),
        ("partitions", f"{found.partitions} a queue, replication min(3, brokers)"),
        ("longest delay", duration.text(found.max_delay)),
        ("history", duration.text(found.history)),
        ("bootstrap", f"`{found.bootstrap}`"),
        ("worker's /metrics, /healthz, /readyz", f"`{found.worker.listen}`"),
    )
    return table(("what", "default"), iter(rows))


def _in_words(seconds: float) -> str:
    return f"{('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight')[int(seconds // 3600) - 1]} hours"


def _hours(seconds: float) -> str:
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


# --- the command line -----------------------------------------------------------------------------------------------------


def walk(command: click.Command = root, path: str = "streamjobs") -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command below and with `command`: its path as it is typed, and itself."""
    context = click.Context(command, info_name=path)
    yield path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, f"{path} {name}")


def commands() -> str:
    shared = {name for option in _common() for name in option.opts}
    sections = [_options("Every command takes, before or after its verb:", _common())]
    for path, command, context in walk():
        pieces = " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")
        own = [p for p in command.params if isinstance(p, click.Option) and not shared & set(p.opts)]
        examples = "\n".join(getattr(command, "examples", ()))
        about = inspect.cleandoc(command.help or "").replace("\b\n", "")
        sections.append(f"### `{path}`\n\n`{path} {pieces}`".rstrip("` ") + "`\n\n" + about + "\n")
        if own:
            sections.append(_options("", own))
        sections.append(f"```sh\n{examples}\n```\n")
    return "\n".join(sections)


def _options(title: str, options: list[click.Option] | list[click.Parameter]) -> str:
    rows = ((f"`{', '.join(o.opts)}{_takes(o)}`", getattr(o, "help", "") or "") for o in options)
    return (title + "\n\n" if title else "") + table(("option", "meaning"), rows)


def _takes(option: click.Parameter) -> str:
    if getattr(option, "is_flag", False):
        return ""
    if isinstance(option.type, click.Choice):
        return " " + "|".join(map(str, option.type.choices))
    return " " + (option.metavar or option.type.name.upper().replace("INTEGER RANGE", "INTEGER"))


# --- writing and comparing ------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "defaults": defaults,
    "error-tree": error_tree,
    "events": events,
    "lacks": lacks,
    "metrics": metrics,
    "outcomes": outcomes,
    "reasons": reasons,
    "settings": settings,
    "states": states,
}


def renewed(text: str) -> str:
    """A file's text with every generated part as the code has it now."""
    return _PART.sub(lambda match: f"{match[1]}\n{PARTS[match['name']]()}\n{match[3]}", text)


def parts_of(text: str) -> list[str]:
    return [match["name"] for match in _PART.finditer(text)]


def main() -> int:
    for path in FILES:
        before = path.read_text("utf-8")
        after = renewed(before)
        if after != before:
            path.write_text(after, "utf-8")
            sys.stdout.write(f"renewed {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
