"""`streamjobs demo`: the whole story of a few thousand jobs on the embedded broker, and whether one was lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from streamjobs.cli import render
from streamjobs.cli.command import Command, Exit, pass_session
from streamjobs.cli.lag import spark
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session

if TYPE_CHECKING:
    from rich.console import RenderableType

    from streamjobs.demo.run import State, Watch
    from streamjobs.demo.summary import QueueRow, Summary, TypeRow

#: So many of a verdict's findings are shown.
FINDINGS = 10
#: A backlog that changes by fewer jobs a second neither grows nor shrinks.
_STEADY = 1.0


_COUNTS = (
    Column("job_type", "JOB TYPE"),
    Column("published", "PUBLISHED", render.count, right=True),
    Column("succeeded", "SUCCEEDED", render.count, right=True),
    Column("retried", "RETRIED", render.count, right=True),
    Column("dead", "DEAD", render.count, right=True),
    Column("replayed", "REPLAYED", render.count, right=True),
)
_TIMES = (
    Column("job_type", "JOB TYPE"),
    *(
        Column(f"{what}_p{share}", f"{what.upper()} p{share}", render.duration, right=True)
        for what in ("wait", "run")
        for share in (50, 95, 99)
    ),
)
_ERRORS = (
    Column("error_type", "ERROR"),
    Column("job_type", "JOB TYPE"),
    Column("count", "COUNT", render.count, right=True),
)
_QUEUES = (
    Column("queue", "QUEUE"),
    Column("peak", "PEAK", render.count, right=True),
    Column("depth", "DEPTH"),
    Column("growth", "GROWTH"),
    Column("fastest", "AT MOST", render.rate, right=True),
)


@click.command(
    cls=Command,
    examples=[
        "streamjobs demo",
        "streamjobs demo --break            # loses one job on purpose, and must say so",
        "streamjobs demo -o json | jq .jobs",
    ],
)
@click.option("--break", "lose", is_flag=True, help="Run a layer that loses one job: the verdict must be `lost 1`.")
@pass_session
def demo(session: Session, /, lose: bool) -> int:
    """Publish a few thousand jobs to an embedded broker and run them in two worker processes. Nothing needs to be installed.

    Some fail twice and pass through the delay ladder and the retry topic; some fail for good and become dead letters, as does a
    record of garbage; then the cause is fixed and the letters are replayed. At the end, what the broker acknowledged is compared
    with a ledger that the handlers wrote: the exit code is 1 if a job was lost or something that happened can't be explained.
    """
    from streamjobs.demo.run import run

    with _watch(session) as watch:
        summary = run(watch, lose=lose)
    if session.output == "json":
        click.echo(render.as_json(summary.as_data()))
    else:
        _print(summary)
    return Exit.DONE if summary.verdict.clean else Exit.FAILED


# --- the summary ------------------------------------------------------------------------------------------------------


def _print(summary: Summary) -> None:
    render.show([{**asdict(row), "job_type": _name(row.job_type)} for row in summary.jobs], _COUNTS, "table")
    runs = " + ".join(map(render.count, summary.runs_by_process.values()))
    click.echo(f"  by acknowledgements, the handlers' ledger and the dead-letter tables; runs by process: {runs}\n")
    render.show([_times(row) for row in summary.jobs if row.job_type], _TIMES, "table")
    click.echo("  from lifecycle events\n")
    render.show([{**asdict(row), "job_type": _name(row.job_type)} for row in summary.errors], _ERRORS, "table")
    click.echo(f"  dead letters that still stand: {summary.standing}\n")
    render.show(map(_chart, summary.queues), _QUEUES, "table")
    click.echo(f"  from broker offsets; ↑ grows, ↓ shrinks; in the delay ladder at most {summary.peak_delayed}\n")
    for job, why in _findings(summary):
        click.echo(render.clean(f"  {job}: {why}"))
    click.secho(summary.verdict.line, bold=True, fg="green" if summary.verdict.clean else "red")


def _name(job_type: str | None) -> str:
    return job_type or "(garbage)"


def _times(row: TypeRow) -> dict[str, Any]:
    wait = {f"wait_{share}": value for share, value in row.wait_s.items()}
    return {"job_type": row.job_type, **wait, **{f"run_{share}": value for share, value in row.run_s.items()}}


def _findings(summary: Summary) -> Iterator[tuple[str, str]]:
    found = [*summary.verdict.lost.items(), *summary.verdict.unexplained.items()]
    yield from found[:FINDINGS]
    if len(found) > FINDINGS:
        yield "and", f"{len(found) - FINDINGS} more; -o json has all of them"


def _chart(row: QueueRow) -> dict[str, Any]:
    growth = [value for value in row.series.growth if value is not None]
    return {
        "queue": row.queue,
        "peak": row.peak,
        "depth": spark(row.series.pending),
        "growth": "".join(map(_arrow, row.series.growth)),
        "fastest": max(growth, default=None),
    }


def _arrow(growth: float | None) -> str:
    return " " if growth is None else "·" if abs(growth) < _STEADY else "↑" if growth > 0 else "↓"


# --- while it runs ----------------------------------------------------------------------------------------------------


@contextmanager
def _watch(session: Session) -> Iterator[Watch]:
    """On a terminal, a picture on stderr that refreshes itself; else a line for every step."""
    if not render.is_terminal(sys.stderr):
        yield Lines(session)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, refresh_per_second=8) as live:
        yield Picture(live.console.print, live.update)


class Lines:
    """Quiet: what came of each step."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def say(self, text: str) -> None:
        self._session.say(text)

    def show(self, state: State) -> None:
        """Nobody watches."""


class Picture:
    """Live: a bar for each job type, the depth of all queues so far, and the steps that are over above it."""

    def __init__(self, print_above: Any, update: Any) -> None:
        self._print_above = print_above
        self._update = update

    def say(self, text: str) -> None:
        from rich.text import Text

        self._print_above(Text.assemble(("✓ ", "green"), render.clean(text)))

    def show(self, state: State) -> None:
        self._update(picture(state))


def picture(state: State) -> RenderableType:
    """What a terminal shows of a state."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bars = Table.grid(padding=(0, 2, 0, 0))
    for name, published in state.published.items():
        ended = state.ended[name]
        bars.add_row(name, ProgressBar(total=published, completed=ended, width=40), f"{ended:,} of {published:,}")
    depth = Text(f"pending {spark(state.depths[-40:])} {state.depths[-1]:,}" if state.depths else "")
    facts = Text(f"failed runs {state.failed:,}, waiting in the delay ladder {state.delayed:,}", style="dim")
    return Group(Text(state.step, style="bold"), bars, depth, facts)
