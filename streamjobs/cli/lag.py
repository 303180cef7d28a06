"""`streamjobs lag`: how far the groups of each queue are behind, and whether they catch up."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from streamjobs.backlog import Backlog, Collector, QueueLag
from streamjobs.cli import completion, render
from streamjobs.cli.command import Command, Exit, did_you_mean, pass_session
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session
from streamjobs.core import duration
from streamjobs.core.lag import depths, eta
from streamjobs.core.topics import timer_group
from streamjobs.errors import BrokerError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

#: So many characters show how what is pending went.
SPARK_WIDTH = 16
_BARS = "▁▂▃▄▅▆▇█"

_COLUMNS = (
    Column("queue", "QUEUE"),
    Column("group", "GROUP"),
    Column("tier", "TIER"),
    Column("pending", "PENDING", render.count, right=True),
    Column("oldest_s", "OLDEST", lambda value: render.duration(value or None), right=True),
    Column("arrived_per_s", "ARRIVING", lambda value: f"{value:,.1f}/s", right=True, spare=4),
    Column("done_per_s", "DONE", lambda value: f"{value:,.1f}/s", right=True, spare=3),
    Column("growth_per_s", "GROWTH", render.rate, right=True),
    Column("drain", "DRAINED IN", spare=1),
    Column("deleted", "DELETED", render.count, right=True, spare=5),
)
_JSON = (*_COLUMNS, Column("topic", "TOPIC"))
_WATCHED = (*_COLUMNS, Column("spark", "PENDING SO FAR", spare=2))
#: With --watch: the broker is asked no more often than the one, and no more seldom than the other.
_SHORTEST_S, _LONGEST_S = 0.1, 86_400.0


@click.command(
    cls=Command,
    examples=[
        "streamjobs lag -A billing:app --watch",
        "streamjobs lag -A billing:app invoices --fail-above 10000 -o json",
    ],
)
@click.argument("queues", nargs=-1, shell_complete=completion.queues)
@click.option("--watch", is_flag=True, help="Look again and again; rates need three looks. Ctrl-C ends it.")
@click.option("--every", metavar="DURATION", default="2s", show_default=True, help="With --watch: how often.")
@click.option(
    "--fail-above", type=click.IntRange(min=0), help="Exit code 3 when a group has more pending in a queue."
)
@pass_session
def lag(session: Session, /, queues: tuple[str, ...], watch: bool, every: str, fail_above: int | None) -> int:
    """Show what is pending in QUEUES (none named: in all of the app's), for each group, main and retry topics
    apart.

    The numbers come from the broker alone: they are right, and grow, when no worker lives. OLDEST is the time
    since the oldest waiting job could have run. Jobs that wait for their time are shown as delayed; they are
    not pending before the last part of their wait (`delay.hold`). In a topic that is written in transactions, each of them that is not
    passed yet counts as one more. DELETED counts offsets that retention took before anyone had finished them. With --fail-above, which
    looks once, a queue whose topic is missing is a failure, exit code 1: nothing is known of it.
    """
    _check(session, queues)
    if watch and fail_above is not None:
        raise UsageError("--fail-above looks once and says by its exit code what it saw; --watch never ends: give one of them")
    collector = Collector(session.app)
    if watch:
        _watch(session, queues, lambda: collector.collect(queues), _interval(every))
        return Exit.DONE
    found = collector.collect(queues)
    session.show(rows(session.app.name, found), _JSON if session.output == "json" else _COLUMNS)
    exceeded = [] if fail_above is None else above(found, fail_above)
    absent = _absent(session, queues, found)
    for name in exceeded:
        session.say(f"{name}: more than {fail_above:,} pending")
    if exceeded:
        return Exit.PENDING
    return Exit.FAILED if absent and fail_above is not None else Exit.DONE


def _absent(session: Session, queues: Sequence[str], found: Backlog) -> list[str]:
    """Queues of which nothing was seen, and says so. *Bites*: an alert asks the wrong cluster, or for another prefix, and is green for
    ever."""
    app = session.app
    wanted, seen = queues or app.queues(), {item.queue for item in found.queues if item.tier == "main"}
    absent = [queue for queue in wanted if queue not in seen]
    if absent:
        topics = ", ".join(map(app.names.main, absent))
        session.say(
            f"not measured: there is no {topics} at {app.settings.bootstrap}; `streamjobs topic apply` makes what app {app.name} needs, "
            "unless `bootstrap` or `jobs_prefix` is wrong"
        )
    elif not wanted:
        session.say(f"app {app.name} has no queue: its job types are declared in no module that {session.app_ref} imports")
    return absent or ([] if wanted else [app.name])


def rows(app: str, found: Backlog) -> list[dict[str, Any]]:
    """A row for each queue, group and tier, and one for the ladder if anything waits in it."""
    made = [_row(item) for item in found.queues]
    delayed = sum(found.delayed.values())
    if delayed:
        made.append({"queue": None, "group": timer_group(app), "tier": "delayed", "pending": delayed})
    return made


def above(found: Backlog, limit: int) -> list[str]:
    """`queue (group)` of those whose main and retry topics together have more pending."""
    sums: dict[str, int] = {}
    for item in found.queues:
        name = f"{item.queue} ({item.group})"
        sums[name] = sums.get(name, 0) + item.pending
    return [name for name, pending in sums.items() if pending > limit]


def spark(values: Sequence[float | None]) -> str:
    """A line of bars from 0 to the largest value; a gap is a space."""
    highest = max((value for value in values if value is not None), default=0) or 1
    return "".join(
        " " if value is None else _BARS[round(value / highest * (len(_BARS) - 1))] for value in values
    )


def watched(found: Sequence[Mapping[str, Any]], width: int) -> Table:
    """The rows for a terminal of so many characters."""
    return render.table(found, _WATCHED, width)


def _row(item: QueueLag) -> dict[str, Any]:
    rates = item.rates
    return {
        "queue": item.queue,
        "group": item.group,
        "tier": item.tier,
        "topic": item.topic,
        "pending": item.pending,
        "oldest_s": item.oldest_s,
        "arrived_per_s": rates.arrived if rates else None,
        "done_per_s": rates.done if rates else None,
        "growth_per_s": rates.growth if rates else None,
        "drain": eta(item.samples).text,
        "deleted": item.deleted,
        "spark": spark(depths(item.samples, SPARK_WIDTH)),
    }


def _check(session: Session, queues: Iterable[str]) -> None:
    known = session.app.queues()
    for queue in queues:
        if queue not in known:
            raise UsageError(f"the app has no queue {queue!r}: {did_you_mean(queue, known)}")


def _interval(text: str) -> float:
    try:
        found = duration.seconds(text)
    except ValueError as error:
        raise UsageError(f"--every: {error}") from None
    if found < _SHORTEST_S:
        raise UsageError(f"--every {text}: that is too often, for the broker is asked each time; {duration.text(_SHORTEST_S)} at least")
    if found > _LONGEST_S:
        raise UsageError(f"--every {text}: that is no watch; {duration.text(_LONGEST_S)} at most")
    return found


def _watch(session: Session, queues: Sequence[str], look: Callable[[], Backlog], interval: float) -> None:
    """In place on a terminal; in a pipe table after table, or one JSON array a line. Ends with Ctrl-C."""
    app, first = session.app.name, look()
    _absent(session, queues, first)
    if render.is_terminal(sys.stdout) and session.output == "table":
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            for found in _looks(session, first, look, interval):
                live.update(watched(rows(app, found), live.console.width), refresh=True)
    else:
        for found in _looks(session, first, look, interval):
            _print(session, rows(app, found))


def _looks(session: Session, first: Backlog, look: Callable[[], Backlog], interval: float) -> Iterator[Backlog]:
    """Without end. *Bites*: a broker is restarted, and the watch ends just when there is something to see."""
    pause = threading.Event()
    yield first
    while True:
        pause.wait(interval)
        try:
            yield look()
        except BrokerError as error:
            if not error.retriable:
                raise
            session.say(f"not measured: {error}")


def _print(session: Session, found: Sequence[Mapping[str, Any]]) -> None:
    if session.output == "table":
        session.show(found, _WATCHED)
    else:
        keys = [column.key for column in _JSON]
        click.echo(render.as_json([{key: row.get(key) for key in keys} for row in found], indent=None))
