"""`streamjobs dlt`: dead letters, looked at, replayed, discarded, edited, taken out and brought back."""

from __future__ import annotations

import heapq
import json
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from streamjobs.cli import completion, render
from streamjobs.cli import letters as shown
from streamjobs.cli.command import Exit, Group, approved, as_seconds, counted, pass_session, plan_options
from streamjobs.cli.session import Session
from streamjobs.core import duration
from streamjobs.errors import ReplayError, UsageError
from streamjobs.telemetry.log import MASK

if TYPE_CHECKING:
    from streamjobs.core.letters import Letter
    from streamjobs.dead_letters import DeadLetters, Plan
    from streamjobs.dead_letters.orders import Order

T = TypeVar("T")

#: Letters that a table shows unless told otherwise, and those that are printed together when all are.
_SHOWN, _PAGE = 50, 1_000


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


def _letters(session: Session, queue: str, where: Iterable[str], ids: Collection[str], group: str) -> DeadLetters:
    """Without an id any will do: to a command that is an option which was not given."""
    return session.app.dead_letters(queue, group=group).where(*where, ids=ids or None)


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
        _list_all((shown.row(letters, letter, now) for letter in _noting_none(letters, session)), session)
        return
    newest = _Newest(limit)
    newest.take(_noting_none(letters, session))
    session.show([shown.row(letters, letter, now) for letter in newest.found], shown.LIST if session.output == "table" else shown.LIST + shown.MORE)
    if newest.seen > limit:
        session.say(f"the newest {limit:,} of {newest.seen:,}; --limit 0 shows all")


def _noting_none(letters: Iterable[T], session: Session) -> Iterator[T]:
    """The letters as they come; says so if there are none."""
    none = True
    for letter in letters:
        none = False
        yield letter
    if none:
        session.say("no letters")


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
            session.show(page, shown.LIST)
        return
    between = "[\n"
    for row in rows:
        click.echo(between + render.as_json(row, indent=None), nl=False)
        between = ",\n"
    click.echo("[]" if between == "[\n" else "\n]")


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
    session.show([shown.group_row(fields, each) for each in found.groups], shown.stats_columns(fields))
    if found.count:
        parked = f", {found.parked:,} parked" if found.parked else ""
        session.say(f"{counted(found.count, 'letter')} ({render.size(found.size)}){parked}, from {render.instant(found.first)} on")
    else:
        session.say("no letters")


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
        raise UsageError(shown.unknown(id, letters.table.topic))
    rows = [shown.full_row(letters, letter, session.app.clock.now()) for letter in found]
    if session.output == "json":
        click.echo(render.as_json(rows))
        return
    for row in rows:
        shown.show_letter(row)


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
    allows stays, parked. Ctrl-C ends it behind the batch in hand, a second one at once; the same command goes on with what is left.
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


@dlt.command(
    examples=[
        "streamjobs dlt edit invoices inv-7 -A billing:app --set customer_id=acme --apply",
        "streamjobs dlt edit invoices inv-7 -A billing:app --apply      # opens your editor",
    ],
)
@queue_argument
@click.argument("id")
@click.option("--group", default="", help="Letters of another group than the app's own.")
@click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Sets a field of the payload anew; may be given again.")
@reason_option
@plan_options
@pass_session
def edit(
    session: Session, /, queue: str, id: str, group: str, changes: tuple[str, ...], reason: str, apply: bool, yes: bool
) -> int:
    """Change the payload of letter (or job) ID of QUEUE, which stays on its table; without --set, in your editor.

    The new payload is checked against its job type. The old one is gone: `dlt export` keeps a copy.
    """
    from streamjobs.dead_letters.payloads import Change

    letters = _letters(session, queue, (), (id,), group)
    wanted = [Change.parse(text) for text in changes] or [Change.of(*pair) for pair in _from_editor(letters, id).items()]
    if not wanted:
        session.say("nothing was changed in the editor; --set FIELD=VALUE changes a field without one")
        return Exit.DONE
    order = letters.edit_order(wanted)
    return _carry_out(session, order, letters.plan(order), f"set {', '.join(each.field for each in wanted)}", None, reason, apply, yes)


def _from_editor(letters: DeadLetters, id: str) -> dict[str, Any]:
    """The fields that were changed. Secrets are masked there, too, and stay what they are."""
    payloads = [letters.shown(letter) for letter in letters]
    if len(payloads) != 1 or not isinstance(payloads[0].json, dict):
        known = f"{len(payloads)} letters have that id" if len(payloads) != 1 else payloads[0].problem or "its payload has no fields"
        raise UsageError(f"{id} can't be edited here: {known}; name one letter, and --set FIELD=VALUE")
    before = payloads[0].json
    text = click.edit(render.as_json(before) + "\n", extension=".json")
    try:
        after = before if text is None else json.loads(text)
    except ValueError as error:
        raise UsageError(f"what you wrote is not valid JSON: {error}") from None
    if not isinstance(after, dict) or before.keys() - after.keys():
        raise UsageError("a field is missing from what you wrote: set it to null where there shall be none")
    changed = {name: value for name, value in after.items() if before.get(name, ...) != value}
    if MASK in json.dumps(changed):
        raise UsageError(f"a changed field still has {MASK}, which hides a secret: change it with --set FIELD.SECRET=VALUE")
    return changed


# --- out and in ---------------------------------------------------------------------------------------------------------------


@dlt.command(
    examples=[
        "streamjobs dlt export invoices -A billing:app --where reason=undecodable > letters.jsonl",
        "streamjobs dlt export invoices -A billing:app | jq -c '{id, error, payload}'",
    ],
)
@queue_argument
@select_options
@pass_session
def export(session: Session, /, queue: str, where: tuple[str, ...], ids: tuple[str, ...], group: str) -> None:
    """Print the letters of QUEUE as JSON, one a line, with all that `dlt import` needs.

    `value` and `headers` are what they are, secrets included; `payload` is for people, and masked. The letters stay where they are.
    """
    with render.progress("exported") as bar:
        for row in _noting_none(_letters(session, queue, where, ids, group).export(), session):
            click.echo(render.as_json(row, indent=None))
            bar.advance()


@dlt.command(
    name="import",
    examples=[
        "streamjobs dlt import invoices letters.jsonl -A billing:app --apply",
        """jq -c '.arguments = {invoice_id: 7, customer_id: "acme"}' letter.jsonl | streamjobs dlt import invoices - -A billing:app --apply""",
    ],
)
@queue_argument
@click.argument("file", type=click.File("rb"))
@click.option("--group", default="", help="Letters of another group than the app's own.")
@reason_option
@plan_options
@pass_session
def import_(session: Session, /, queue: str, file: IO[bytes], group: str, reason: str, apply: bool, yes: bool) -> int:
    """Put letters back on the table of QUEUE, as `dlt export` wrote them or mended since; "-" is standard input.

    A line that has `arguments` gets them as its new payload, checked against its job type. Then `dlt replay` runs them. A letter of
    another table (`topic`) is refused.
    """
    letters = _letters(session, queue, (), (), group)
    with _rows(file) as rows:
        order = letters.import_order(rows)
        plan = letters.plan(order)
        if order.absent:
            are = "is" if order.absent == 1 else "are"
            session.say(f"{order.absent:,} {are} not on the table (any more): what was replayed since its export would run once more")
        return _carry_out(session, order, plan, "come onto it", None, reason, apply, yes)


class _Rows:
    """The lines of a file, as often as they are asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if line.strip():
                yield _object(line, number)


def _object(line: bytes, number: int) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UsageError(f"line {number} is not valid JSON: {error}") from None
    except RecursionError:
        raise UsageError(f"line {number} is nested too deeply") from None
    if not isinstance(found, dict):
        raise UsageError(f"line {number} is {type(found).__name__}, not an object")
    return found


@contextmanager
def _rows(file: IO[bytes]) -> Iterator[_Rows]:
    """What can't be read twice, as a pipe, goes through a file."""
    if file.seekable():
        yield _Rows(file)
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        yield _Rows(copy)


# --- plan and report ----------------------------------------------------------------------------------------------------------


def _carry_out(
    session: Session, order: Order, plan: Plan, what: str, rate: float | None, reason: str, apply: bool, yes: bool
) -> int:
    """Shows the plan; with `--apply`, acts on what of it holds then."""
    from streamjobs.dead_letters.run import carry_out

    if order.filter.ids and plan.unknown >= order.filter.ids:
        raise UsageError("\n".join(shown.unknown(id, plan.topic) for id in sorted(plan.unknown)))
    takes_s = plan.count / rate if rate else None
    if session.output == "table" or not apply:
        shown.show_plan(session, plan, what, takes_s)
    for id in sorted(plan.unknown):
        session.say(shown.unknown(id, plan.topic))
    if not approved(plan.count + plan.marks, apply=apply, yes=yes, question=f"{order.action.capitalize()} {plan.count:,}?"):
        return shown.outcome(plan, plan.unknown)
    with _interruptible() as (stop, at_once), render.progress(order.action, plan.count) as bar:
        try:
            done = carry_out(order, rate=rate, reason=reason, stop=stop, at_once=at_once, moved=bar.advance)
        except ReplayError as error:
            if not at_once.is_set():
                raise
            session.say(str(error))
            return Exit.INTERRUPTED
    return shown.report(session, plan, done)


@contextmanager
def _interruptible() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Ctrl-C and SIGTERM set the first event; the second one sets the other, too, and interrupts what goes on, as the open batch is
    undone. It does both, for the interruption may be lost: in a callback of the Kafka client, or where that swallows it."""
    stop, at_once = threading.Event(), threading.Event()

    def ask(number: int, _: object) -> None:
        if stop.is_set():
            at_once.set()
            raise KeyboardInterrupt
        stop.set()
        click.echo("finishing the batch; again: at once", err=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, at_once
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
