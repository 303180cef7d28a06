"""`streamjobs dlt`: dead letters, looked at, replayed, discarded, edited, taken out and brought back."""

from __future__ import annotations

import heapq
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from streamjobs.cli import completion, render
from streamjobs.cli.command import Exit, Group, approved, as_seconds, counted, pass_session, plan_options
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session
from streamjobs.core import duration
from streamjobs.core.letters import Kept
from streamjobs.errors import UsageError

if TYPE_CHECKING:
    from streamjobs.core.letters import Letter
    from streamjobs.dead_letters import DeadLetters, Done, Plan
    from streamjobs.dead_letters.orders import Order

#: Letters that a table shows unless told otherwise, and those that are printed together when all are.
_SHOWN, _PAGE = 50, 1_000


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"


_LIST = (
    Column("id", "LETTER"),
    Column("job_id", "JOB"),
    Column("type", "TYPE"),
    Column("key", "KEY"),
    Column("reason", "REASON"),
    Column("error", "ERROR"),
    Column("message", "MESSAGE", _short),
    Column("attempt", "ATTEMPT", right=True),
    Column("age_s", "AGE", render.duration, right=True),
    Column("state", "STATE"),
)
_MORE = (
    Column("tags", "TAGS", ", ".join),
    Column("run", "RUN", right=True),
    Column("replays", "REPLAYS", right=True),
    Column("died", "DIED", render.instant),
    Column("published", "PUBLISHED"),
    Column("first_attempt", "FIRST ATTEMPT", render.instant),
    Column("origin", "ORIGIN"),
    Column("partition", "PARTITION", right=True),
    Column("offset", "OFFSET", right=True),
    Column("size_bytes", "SIZE", render.size, right=True),
    Column("fingerprint", "FINGERPRINT"),
    Column("problem", "PROBLEM"),
)
_PLAN = (
    Column("error", "ERROR"),
    Column("type", "TYPE"),
    Column("count", "LETTERS", render.count, right=True),
    Column("first", "FIRST", render.instant),
    Column("last", "LAST", render.instant),
)


def select_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which letters: the arguments `where`, `ids` and `group`, to be handed to `_letters`."""
    function = click.option("--group", default="", help="Letters of another group than the app's own.")(function)
    function = click.option("--id", "ids", multiple=True, help="Only this letter, or the letters of this job; may be given again.")(function)
    return click.option(
        "-w", "--where", multiple=True, metavar="CONDITION",
        help="Only letters for which it holds: error=Timeout, type=, key=, tag=, reason=, message~=refused, age>2h, attempt>=5; "
        "all that are given must hold.",
    )(function)  # fmt: skip


queue_argument = click.argument("queue", shell_complete=completion.queues)
reason_option = click.option("--reason", default="", help="Noted in the audit topic.")


def _letters(session: Session, queue: str, where: Iterable[str], ids: Iterable[str], group: str) -> DeadLetters:
    return session.app.dead_letters(queue, group=group).where(*where, ids=ids)


@click.group(
    cls=Group,
    examples=["streamjobs dlt list invoices -A billing:app", "streamjobs dlt replay invoices -A billing:app --where error=Timeout --apply"],
)
def dlt() -> None:
    """Look at the dead letters of a queue, and decide what becomes of them.

    A dead letter is a job that failed for good. It stays on its table until it is replayed or discarded.
    """


# --- looking ------------------------------------------------------------------------------------------------------------------


@dlt.command(
    name="list",
    examples=[
        "streamjobs dlt list invoices -A billing:app --where 'age>2h' --where error=Timeout",
        "streamjobs dlt list invoices -A billing:app -o json | jq .[].job_id",
    ],
)
@queue_argument
@select_options
@click.option("--limit", type=click.IntRange(0), help=f"The newest so many (0: all; a table shows {_SHOWN} unless told otherwise).")
@pass_session
def list_(session: Session, /, queue: str, where: tuple[str, ...], ids: tuple[str, ...], group: str, limit: int | None) -> None:
    """List the letters of QUEUE, the newest first; all of them in the order of the table, as they come."""
    letters = _letters(session, queue, where, ids, group)
    if limit is None:
        limit = 0 if session.output == "json" else _SHOWN
    now = session.app.clock.now()
    if not limit:
        _list_all((_row(letters, letter, now) for letter in letters), session)
        return
    newest = _Newest(limit)
    newest.take(letters)
    session.show([_row(letters, letter, now) for letter in newest.found], _LIST if session.output == "table" else _LIST + _MORE)
    if newest.seen > limit:
        session.say(f"the newest {limit:,} of {newest.seen:,}; --limit 0 shows all")


class _Newest:
    """The last to die of many, in memory for those alone."""

    def __init__(self, limit: int) -> None:
        self.seen = 0
        self._limit = limit
        self._heap: list[tuple[float, int, Letter]] = []

    def take(self, letters: Iterable[Letter]) -> None:
        for self.seen, letter in enumerate(letters, 1):
            item = (letter.died, self.seen, letter)
            if len(self._heap) < self._limit:
                heapq.heappush(self._heap, item)
            else:
                heapq.heappushpop(self._heap, item)

    @property
    def found(self) -> list[Letter]:
        return [letter for _, _, letter in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


def _list_all(rows: Iterator[dict[str, Any]], session: Session) -> None:
    """As they come: a million letters take no memory here."""
    if session.output == "table":
        while page := list(islice(rows, _PAGE)):
            session.show(page, _LIST)
        return
    between = "[\n"
    for row in rows:
        click.echo(between + render.as_json(row, indent=None), nl=False)
        between = ",\n"
    click.echo("[]" if between == "[\n" else "\n]")


def _row(letters: DeadLetters, letter: Letter, now: float) -> dict[str, Any]:
    meta = letter.meta
    return {
        "id": letter.id,
        "job_id": meta.job_id or None,
        "type": meta.job_type or None,
        "key": letter.key,
        "reason": meta.reason or None,
        "error": meta.error_type or None,
        "message": letters.masking.text(meta.error_message) or None,
        "attempt": meta.attempt,
        "age_s": round(now - letter.died, 3),
        "state": _state(letter),
        "tags": list(letter.tags),
        "run": meta.run,
        "replays": meta.replays,
        "died": letter.died,
        "published": meta.published or None,
        "first_attempt": meta.first_attempt or None,
        "origin": letter.origin,
        "partition": letter.partition,
        "offset": letter.offset,
        "size_bytes": letter.size,
        "fingerprint": letter.fingerprint[:12],
        "problem": letter.problem or None,
    }


def _state(letter: Letter) -> str | None:
    return "parked" if letter.meta.parked else None


@dlt.command(
    examples=[
        "streamjobs dlt stats invoices -A billing:app",
        "streamjobs dlt stats invoices -A billing:app --by error,type --where 'age<1d' -o json",
    ],
)
@queue_argument
@select_options
@click.option("--by", default="error,type,fingerprint", show_default=True, metavar="FIELDS", help="What the letters of a group agree in.")
@pass_session
def stats(session: Session, /, queue: str, where: tuple[str, ...], ids: tuple[str, ...], group: str, by: str) -> None:
    """Count the letters of QUEUE in groups, the largest first.

    A fingerprint is one sort of failure: the error's type, where it was raised, and its message without ids, numbers and quoted text.
    """
    fields = [field.strip() for field in by.split(",") if field.strip()]
    found = _letters(session, queue, where, ids, group).stats(fields)
    session.show([_group(fields, each) for each in found.groups], [*map(_by_column, fields), *_STATS])
    if found.count:
        parked = f", {found.parked:,} parked" if found.parked else ""
        session.say(f"{counted(found.count, 'letter')} ({render.size(found.size)}){parked}, from {render.instant(found.first)} on")
    else:
        session.say("no letters")


_STATS = (
    Column("count", "LETTERS", render.count, right=True),
    Column("first", "FIRST SEEN", render.instant),
    Column("last", "LAST SEEN", render.instant),
    Column("kinds", "KINDS", render.count, right=True),
    Column("message", "MESSAGE", _short),
    Column("sample", "SAMPLE"),
)


def _by_column(field: str) -> Column:
    return Column(field, field.upper())


def _group(fields: list[str], group: Any) -> dict[str, Any]:
    facts = {"count": group.count, "first": group.first, "last": group.last, "kinds": len(group.fingerprints)}
    return {**dict(zip(fields, group.by, strict=True)), **facts, "message": group.message, "sample": group.sample}


@dlt.command(
    examples=[
        "streamjobs dlt show invoices inv-7 -A billing:app",
        "streamjobs dlt show invoices 'jobs.invoices@1f2e3d4c/3/70012#15' -A billing:app -o json",
    ],
)
@queue_argument
@click.argument("id")
@click.option("--group", default="", help="Letters of another group than the app's own.")
@pass_session
def show(session: Session, /, queue: str, id: str, group: str) -> None:
    """Show letter ID of QUEUE, or the letters of the job ID: why it died, what it carries, where it was.

    The payload is decoded by the schema that wrote it; one that can't be is shown in hexadecimal. Values whose names say that they are
    secret are masked (setting `mask.patterns`).
    """
    letters = _letters(session, queue, (), (), group)
    found = letters.get(id)
    if not found:
        raise UsageError(f"no letter or job {id!r} is on {letters.table.topic}: it was replayed or discarded, or never there")
    rows = [_full(letters, letter, session.app.clock.now()) for letter in found]
    if session.output == "json":
        click.echo(render.as_json(rows))
        return
    for row in rows:
        _show(row)


def _full(letters: DeadLetters, letter: Letter, now: float) -> dict[str, Any]:
    shown = letters.shown(letter)
    return {
        **_row(letters, letter, now),
        "payload": shown.json,
        "payload_problem": shown.problem or None,
        "payload_hex": shown.hex or None,
        "stack": letters.masking.text(letter.meta.error_stack) or None,
        "headers": {name: letters.masking.field(name, _text(value)) for name, value in letter.headers if not _ours(name)},
    }


def _ours(name: str) -> bool:
    return name.startswith(("sj_", "ce_"))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"0x{raw.hex()}"


def _show(row: Mapping[str, Any]) -> None:
    facts = [column for column in _LIST + _MORE if row.get(column.key) not in (None, [], "")]
    render.show_one(row, facts, "table")
    _section("PAYLOAD", None if row["payload_problem"] else render.as_json(row["payload"]))
    _section(f"PAYLOAD, in hexadecimal: {row['payload_problem']}", row["payload_hex"] and _hexdump(row["payload_hex"]))
    _section("HEADERS", "\n".join(f"{name}: {value}" for name, value in row["headers"].items()))
    _section("STACK", row["stack"])
    click.echo()


def _section(title: str, text: str | None) -> None:
    if text:
        click.echo(f"\n{render.clean(title)}")
        click.echo("\n".join(f"  {render.clean(line)}" for line in text.splitlines()))


def _hexdump(text: str) -> str:
    return "\n".join(" ".join(re.findall("..", text[at : at + 64])) for at in range(0, len(text), 64))


# --- acting -------------------------------------------------------------------------------------------------------------------


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Letters a second: "50", "50/s", "600/m"."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|m|h))?", value.strip())
    rate = float(found[1]) / {"s": 1, "m": 60, "h": 3600}[found[2] or "s"] if found else 0.0
    if rate <= 0:
        raise click.BadParameter(f"{value!r} is no rate: write 50, 50/s or 600/m", ctx, param)
    return rate


rate_option = click.option("--rate", callback=_rate, metavar="N[/s|/m|/h]", help="So many letters a second (default: as fast as it goes).")
limit_option = click.option("--limit", type=click.IntRange(1), help="So many letters at most, the oldest of each partition first.")


@dlt.command(
    examples=[
        "streamjobs dlt replay invoices -A billing:app --where error=Timeout --rate 50 --apply --reason 'the bank is back'",
        "streamjobs dlt replay invoices -A billing:app --id inv-7 --set customer_id=acme --apply",
    ],
)
@queue_argument
@select_options
@rate_option
@limit_option
@click.option("--to", default="", metavar="QUEUE", help="Into another queue of the group.")
@click.option("--delay", callback=as_seconds, metavar="DURATION", help='They run so much later, such as "10m".')
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Sets a field of the payloads anew; may be given again.")
@reason_option
@plan_options
@pass_session
def replay(
    session: Session, /, queue: str, where: tuple[str, ...], ids: tuple[str, ...], group: str, rate: float | None, limit: int | None,
    to: str, delay: float | None, changes: tuple[str, ...], reason: str, apply: bool, yes: bool,
) -> int:  # fmt: skip
    """Put the jobs of QUEUE's letters back, each exactly once.

    They run again in this group alone, with a fresh count of attempts. A job that was replayed as often as the setting max_replays
    allows stays, parked. Ctrl-C ends it behind the batch in hand; the same command goes on with what is left.
    """
    from streamjobs.dead_letters.payloads import Change

    letters = _letters(session, queue, where, ids, group)
    order = letters.replay_order(limit=limit, to=to, delay=delay or 0.0, changes=[Change.parse(text) for text in changes])
    plan = letters.plan(order)
    later = f", to run in {duration.text(delay)}" if delay else ""
    return _carry_out(session, order, plan, f"→ {order.destination}{later}", rate, reason, apply, yes)


@dlt.command(
    examples=[
        "streamjobs dlt discard invoices -A billing:app --where 'age>30d' --apply --reason 'too late for these'",
        "streamjobs dlt discard invoices -A billing:app --id inv-7 --apply --yes",
    ],
)
@queue_argument
@select_options
@limit_option
@reason_option
@plan_options
@pass_session
def discard(
    session: Session, /, queue: str, where: tuple[str, ...], ids: tuple[str, ...], group: str, limit: int | None, reason: str,
    apply: bool, yes: bool,
) -> int:  # fmt: skip
    """Take letters of QUEUE off their table; their jobs never run. `dlt export` keeps a copy."""
    letters = _letters(session, queue, where, ids, group)
    order = letters.discard_order(limit=limit)
    return _carry_out(session, order, letters.plan(order), "never run", None, reason, apply, yes)


def _carry_out(
    session: Session, order: Order, plan: Plan, what: str, rate: float | None, reason: str, apply: bool, yes: bool
) -> int:
    """Shows the plan; with `--apply`, acts on what of it holds then."""
    from streamjobs.dead_letters import orders

    takes_s = plan.count / rate if rate else None
    if session.output == "table" or not apply:
        _show_plan(session, plan, what, takes_s)
    if not approved(plan.count + plan.marks, apply=apply, yes=yes, question=f"{order.action.capitalize()} {plan.count:,}?"):
        return Exit.DONE
    with _interruptible() as stop, render.progress(order.action, plan.count) as bar:
        done = orders.carry_out(order, rate=rate, reason=reason, stop=stop, moved=bar.advance)
    return _report(session, plan, done)


def _show_plan(session: Session, plan: Plan, what: str, takes_s: float | None) -> None:
    groups = [dict(zip(("error", "type"), group.by, strict=True)) | _span(group) for group in plan.groups]
    if session.output == "json":
        kept = {kept.value: count for kept, count in plan.kept.items()}
        facts = {"action": plan.action, "topic": plan.topic, "where": plan.filter, "count": plan.count, "size_bytes": plan.size}
        click.echo(render.as_json({**facts, "beyond": plan.beyond, "kept": kept, "takes_s": takes_s, "groups": groups}))
    elif groups:
        session.show(groups, _PLAN)
    at_rate = f", about {render.duration(takes_s)} at that rate" if takes_s else ""
    session.say(f"{plan.action}: {counted(plan.count, 'letter')} of {plan.topic} {what}{at_rate}")
    if plan.beyond:
        session.say(f"{plan.beyond:,} more are chosen, behind the limit")
    _say_kept(session, plan)


def _span(group: Any) -> dict[str, Any]:
    return {"count": group.count, "first": group.first, "last": group.last}


_STAYS: Mapping[Kept, str] = {
    Kept.PARKED: "were replayed as often as max_replays allows and stay parked: mend the cause and raise it "
    "(STREAMJOBS_MAX_REPLAYS=…), or discard them",
    Kept.EXPIRED: "stay: their expiry has passed, so workers would skip them; discard them",
    Kept.SOURCE_GONE: "stay: they come from an earlier topic of the queue's name; put them back with --to QUEUE, or discard them",
    Kept.REFUSED: "stay: their payload can't be changed so",
    Kept.TOO_LARGE: "stay: the topic that they shall go to takes no record of their size",
}


def _say_kept(session: Session, found: Plan | Done) -> None:
    for kept, count in found.kept.items():
        example = f", such as {found.why[kept]}" if found.why.get(kept) else ""
        session.say(f"{count:,} {_STAYS[kept]}{example}")


def _report(session: Session, plan: Plan, done: Done) -> int:
    if session.output == "json":
        kept = {kept.value: count for kept, count in done.kept.items()}
        facts = {"action": done.action, "moved": done.moved, "kept": kept, "interrupted": done.interrupted}
        click.echo(render.as_json({**facts, "took_s": round(done.took_s, 3), "batches": done.batches}))
    _say_kept(session, done)
    if not done.fenced:
        session.say("this broker has no transactions: jobs were stored before their letters went; a crash would have left both")
    if done.events_dropped:
        session.say(f"{done.events_dropped} records of events could not be written: the monitor does not know of all of it")
    if done.complaint:
        session.say(done.complaint)
    verb = _PAST[done.action]
    session.say(f"{counted(done.moved, 'letter')} {verb} in {render.duration(done.took_s)}{_per_second(done)}")
    if done.interrupted:
        session.say(f"stopped: about {max(0, plan.count - done.moved):,} are left; the same command goes on with them")
        return Exit.INTERRUPTED
    return Exit.FAILED if done.kept[Kept.REFUSED] or done.kept[Kept.TOO_LARGE] else Exit.DONE


_PAST = {"replay": "replayed", "discard": "discarded", "edit": "edited", "import": "imported"}


def _per_second(done: Done) -> str:
    return f" ({done.moved / done.took_s:,.0f}/s)" if done.moved > 1 and done.took_s > 0 else ""


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event; the second one ends the process at once, and the open batch is undone."""
    stop = threading.Event()

    def ask(number: int, _: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        click.echo("finishing the batch; again: at once", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
