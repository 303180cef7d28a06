"""`streamjobs publish`: one job from the command line, or many from standard input."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import click

from streamjobs.cli import completion, render
from streamjobs.cli.command import Command, Exit, as_seconds, counted, did_you_mean, pass_session
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session
from streamjobs.errors import OUT_OF_REACH, BrokerError, PayloadError, PublishError, UsageError

if TYPE_CHECKING:
    from streamjobs.job import JobType, Published, Receipt

_COLUMNS = (
    Column("id", "ID"),
    Column("topic", "TOPIC"),
    Column("partition", "PARTITION", right=True),
    Column("offset", "OFFSET", right=True),
)
#: Lines that arrive together are published together, so that a slow pipe is not held back and a fast one is fast.
_CHUNK = 64 * 1024
#: So many lines that may be missing are named.
SHOWN = 20


@click.command(
    cls=Command,
    examples=[
        """streamjobs publish -A billing:app send_invoice '{"invoice_id": 7, "customer_id": "acme"}' --delay 10m""",
        "jq -c '.[]' invoices.json | streamjobs publish -A billing:app send_invoice -",
    ],
)
@click.argument("job", shell_complete=completion.job_types)
@click.argument("arguments", metavar="JSON|-")
@click.option("--delay", callback=as_seconds, metavar="DURATION", help='How long it waits before it runs, such as "10m".')
@click.option("--at", metavar="TIME", help="When it runs: ISO 8601; without an offset, local time.")
@click.option("--id", "job_id", help="Its id; publishing one id twice makes two jobs.")
@click.option("--key", help="Its key, instead of the job type's: jobs of one key start in order.")
@click.option("--tag", "tags", multiple=True, help="A tag; may be given several times.")
@click.option("--expires", callback=as_seconds, metavar="DURATION", help="So long after it was due no run of it begins any more, a retry neither.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A header; may be given several times.")
@pass_session
def publish(
    session: Session, /, job: str, arguments: str, at: str | None, job_id: str | None, **options: Any
) -> int:
    """Publish a JOB with the arguments in JSON, an object. With "-": one job for each line of standard input.

    A line that is refused is named with its number, and the others are published all the same; the exit code is 1 then.
    """
    job_type = _job_type(session, job)
    if at is not None and options["delay"] is not None:
        raise UsageError("give --delay or --at, not both: they are two ways to say when the job runs")
    options |= {"at": _instant(at), "id": job_id, "headers": dict(map(_header, options["headers"]))}
    _reach(session)
    if arguments != "-":
        receipt = job_type.publish_arguments(_object(arguments), **options)
        render.show_one(_row(receipt), _COLUMNS, session.output)
        return Exit.DONE
    if job_id:
        raise UsageError("--id names one job, but every line of standard input is one: leave it out")
    return _publish_lines(session, job_type, options)


def _job_type(session: Session, name: str) -> JobType[Any, Any]:
    known = session.app.job_types
    if name not in known:
        raise UsageError(f"{session.app_ref} has no job type {name!r}: {did_you_mean(name, known)}")
    return known[name]


def _reach(session: Session) -> None:
    """Ends a publish at an address at which there is no broker. *Bites*: the address is mistyped, and the producer tries it for nine
    seconds; a program wants that, for a broker that is started anew is back by then, but a person waits for it and is told nothing."""
    try:
        session.app.broker.admin().topics([session.app.names.schemas])
    except BrokerError as error:
        if error.code in OUT_OF_REACH:
            raise


def _object(text: str | bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise PayloadError(f"the arguments are not valid JSON: {error}") from None
    except RecursionError:
        raise PayloadError("the arguments are nested too deeply") from None
    if not isinstance(found, dict):
        raise PayloadError(f'the arguments are {type(found).__name__}, not an object such as {{"invoice_id": 7}}')
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """*Bites*: of two values of one key the last one is taken, and nobody is told of the other."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise PayloadError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice in the arguments: leave one out")
    return found


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise UsageError(f"--at {text!r} is no time: write it as 2031-05-04T09:00 or 2031-05-04T09:00:00+02:00") from None


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--header {text!r} is not NAME=VALUE")
    return name, value


def _row(receipt: Receipt) -> dict[str, Any]:
    return {"id": receipt.id, "topic": receipt.topic, "partition": receipt.partition, "offset": receipt.offset}


# --- standard input ---------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    number: int
    text: bytes


class _Row(NamedTuple):
    """The arguments of the line of this number."""

    line: int
    arguments: Mapping[str, Any]


@dataclass
class _Tally:
    """`unpublished`: numbers of the lines up to `last` of which nobody knows (yet) that they are stored or refused."""

    published: int = 0
    refused: int = 0
    unpublished: set[int] = field(default_factory=set)
    last: int = 0


def _publish_lines(session: Session, job_type: JobType[Any, Any], options: dict[str, Any]) -> int:
    from streamjobs.job import Published, make_options

    if sys.stdin is None:
        raise UsageError("standard input is closed: there are no lines to publish")
    made, tally = make_options(**options), _Tally()
    job_type.publisher.check(job_type, made)
    published: Published[...] = Published(job_type, made)
    try:
        with render.progress("published") as bar:
            for batch in _batches(sys.stdin.buffer):
                before = tally.published
                rows = [row for line in batch if (row := _validated(session, job_type, line, tally))]
                if rows:
                    tally.unpublished, tally.last = {row.line for row in rows}, batch[-1].number
                    _publish_rows(session, published, rows, tally)
                bar.advance(tally.published - before)
    except PublishError as error:
        session.say(f"error: {error}")
    finally:
        session.say(_summary(tally))
    return Exit.FAILED if tally.refused or tally.unpublished else Exit.DONE


def _validated(session: Session, job_type: JobType[Any, Any], line: Line, tally: _Tally) -> _Row | None:
    try:
        return _Row(line.number, job_type.payload.validate(_object(line.text)))
    except PayloadError as error:
        _refuse(session, line.number, error, tally)
        return None


def _publish_rows(session: Session, published: Published[Any], rows: list[_Row], tally: _Tally) -> None:
    """What is valid may still be refused: a number of more than 64 bits, a job that is too large. `publish_many` sends nothing then, so
    each half is published by itself, until a refused line is alone."""
    try:
        receipts = published.publish_many([row.arguments for row in rows])
    except PayloadError as error:
        if len(rows) == 1:
            _refuse(session, rows[0].line, error, tally)
            return
        half = len(rows) // 2
        _publish_rows(session, published, rows[:half], tally)
        _publish_rows(session, published, rows[half:], tally)
    except PublishError as error:
        _take(session, tally, rows, error.receipts or [None] * len(rows))
        raise
    else:
        _take(session, tally, rows, receipts)


def _refuse(session: Session, line: int, error: PayloadError, tally: _Tally) -> None:
    """Says why. The number of the row within what was published together says nothing to a person; the error before it has none."""
    tally.refused += 1
    tally.unpublished.discard(line)
    session.say(f"line {line}: {error.__cause__ if isinstance(error.__cause__, PayloadError) else error}")


def _take(session: Session, tally: _Tally, rows: list[_Row], receipts: Sequence[Receipt | None]) -> None:
    """Counts the lines that are stored and those that are not, as far as is known; shows the receipts of the stored ones."""
    stored = [receipt for receipt in receipts if receipt is not None]
    tally.published += len(stored)
    tally.unpublished -= {row.line for row, receipt in zip(rows, receipts, strict=True) if receipt is not None}
    if session.output == "json":
        for receipt in stored:
            click.echo(render.as_json(_row(receipt), indent=None))


def _summary(tally: _Tally) -> str:
    parts = [f"{counted(tally.published, 'job')} published"]
    if tally.refused:
        parts.append(f"{counted(tally.refused, 'line')} refused")
    if tally.unpublished:
        parts.append(_missing(sorted(tally.unpublished), tally.last))
    return "; ".join(parts)


def _missing(numbers: list[int], last: int) -> str:
    """What to publish again; what is behind the `last` line was not read."""
    if numbers == [*range(numbers[0], last + 1)]:
        return f"the others may be missing: publish again from line {numbers[0]}"
    shown = ", ".join(map(str, numbers[:SHOWN])) + (f" and {len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else "")
    return f"line {shown} and all behind line {last} may be missing: publish these again"


def _batches(stream: IO[bytes]) -> Iterator[list[Line]]:
    """The lines that arrived together, numbered from 1; blank ones are left out."""
    numbers = count(1)
    pieces: list[bytes] = []
    while chunk := _read(stream):
        whole, newline, rest = chunk.rpartition(b"\n")
        if newline:
            yield _numbered(b"".join([*pieces, whole]).split(b"\n"), numbers)
            pieces = []
        pieces.append(rest)
    yield _numbered([b"".join(pieces)], numbers)


def _read(stream: IO[bytes]) -> bytes:
    return cast(io.BufferedReader, stream).read1(_CHUNK)


def _numbered(lines: list[bytes], numbers: Iterator[int]) -> list[Line]:
    return [line for text in lines if (line := Line(next(numbers), text)).text.strip()]
