"""`streamjobs group`: consumer groups, where they stand, and moving them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click

from streamjobs import admin
from streamjobs.broker import Member, TopicPartition
from streamjobs.cli import render
from streamjobs.cli.command import Exit, Group, approved, counted, did_you_mean, pass_session, plan_options
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session
from streamjobs.core import duration
from streamjobs.errors import DecodeError, UsageError

_LIST = (
    Column("group", "GROUP"),
    Column("state", "STATE"),
    Column("protocol", "PROTOCOL"),
    Column("members", "MEMBERS", render.count, right=True),
    Column("topics", "TOPICS", render.count, right=True),
    Column("pending", "PENDING", render.count, right=True),
)
_SHOW = (
    Column("topic", "TOPIC"),
    Column("partition", "PARTITION", right=True),
    Column("committed", "COMMITTED", render.count, right=True),
    Column("start", "LOG START", render.count, right=True, spare=3),
    Column("end", "LOG END", render.count, right=True, spare=2),
    Column("finished", "FINISHED BEYOND", render.count, right=True, spare=1),
    Column("pending", "PENDING", render.count, right=True),
    Column("member", "OWNER"),
)
_MEMBER = (
    Column("member_id", "MEMBER"),
    Column("client_id", "CLIENT"),
    Column("host", "HOST"),
)
_SEEK = (
    Column("topic", "TOPIC"),
    Column("partition", "PARTITION", right=True),
    Column("before", "COMMITTED", render.count, right=True),
    Column("to", "TO", render.count, right=True),
    Column("again", "READ AGAIN", render.count, right=True),
    Column("skipped", "SKIPPED", render.count, right=True),
)

#: So many characters of a member's id tell it apart.
_OWN = 8


@click.group(
    cls=Group,
    examples=["streamjobs group list -A billing:app", "streamjobs group seek billing -A billing:app --to 2h"],
)
def group() -> None:
    """Show the consumer groups of an app, and move where they read.

    A group NAME has up to three of Kafka's: NAME for main topics, NAME.retry for retries, and APP.timer for
    the delay ladder.
    """


@group.command(
    name="list",
    examples=["streamjobs group list -A billing:app", "streamjobs group list -A billing:app -o json"],
)
@pass_session
def list_(session: Session, /) -> None:
    """List the app's groups and all others that are registered on its queues."""
    session.show([_listed(item) for item in admin.groups(session.app)], _LIST)


@group.command(
    examples=[
        "streamjobs group show billing -A billing:app",
        "streamjobs group show billing.retry -A billing:app -o json",
    ],
)
@click.argument("name")
@pass_session
def show(session: Session, /, name: str) -> None:
    """Show where group NAME stands in each partition, and which member owns it."""
    found = admin.groups(session.app, [name])
    if not found:
        raise UsageError(f"no group {name!r} is registered: {did_you_mean(name, _names(session))}")
    session.show([row for item in found for row in _places(item)], _SHOW if session.output == "table" else _SHOW + _MEMBER)


@group.command(
    examples=[
        "streamjobs group seek billing -A billing:app --to 2h --reason 'mails were lost'",
        "streamjobs group seek billing jobs.invoices --partition 3 --to earliest --apply",
    ],
)
@click.argument("name")
@click.argument("topics", nargs=-1)
@click.option(
    "--to",
    required=True,
    metavar="PLACE",
    help="earliest, latest, reported (by workers, which this version's are not), an instant (ISO 8601), or 2h: so long ago.",
)
@click.option(
    "--partition", "partitions", type=int, multiple=True, help="Only this partition; may be given again."
)
@click.option("--reason", default="", help="Noted in the order and in the audit topic.")
@plan_options
@pass_session
def seek(
    session: Session,
    /,
    name: str,
    topics: tuple[str, ...],
    to: str,
    partitions: tuple[int, ...],
    reason: str,
    apply: bool,
    yes: bool,
) -> int:
    """Move group NAME in TOPICS (none named: in all that it is registered on).

    Backwards, jobs run again; forwards, jobs that wait never run. While the group has members their owners
    are ordered to do it, and do so within seconds. `reported` is the oldest unfinished job in the last worker
    report: for a group whose commits the broker has forgotten. Workers of this version write no reports yet.
    """
    place = parse_place(to, session.app.clock.now())
    reported = reported_bases(session, name) if place == "reported" else None
    found = admin.plan_seek(session.app, name, place, topics=topics, partitions=partitions, reported=reported)
    if found.missing and not found.moves:
        session.say(f"error: no worker has reported where {name} stood, as workers of this version don't: give --to earliest or an instant")
        return Exit.FAILED
    session.show([_moved(move) for move in found.moves], _SEEK)
    for tp in found.missing:
        session.say(f"no report says where {name} stood in {tp.topic}/{tp.partition}: it stays")
    if found.standing:
        session.say(f"{counted(len(found.standing), 'partition')} left alone: {name} stands there already")
    for topic in found.unread:
        session.say(f"no member of {name} reads {topic} now: the order waits for one that does, a day at most")
    if not approved(len(found.moves), apply=apply, yes=yes):
        return Exit.DONE
    done, complaint = admin.apply_seek(session.app, found, reason=reason, reported=reported)
    if complaint:
        session.say(complaint)
    session.say(f"{counted(len(done.moves), 'partition')} {_how(done)}")
    return Exit.DONE


def _how(done: admin.SeekPlan) -> str:
    if not done.live:
        return "moved"
    nobody = {move.partition.topic for move in done.moves} <= set(done.unread)
    return "ordered; who reads them next carries it out" if nobody else "ordered; the owners carry it out"


def parse_place(text: str, now: float) -> admin.To:
    """`earliest`, `latest`, `reported`, an ISO instant (local time unless it says otherwise), or a duration:
    so long ago.

    Raises UsageError.
    """
    if text in {"earliest", "latest", "reported"}:
        return text  # type: ignore[return-value]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        pass
    try:
        return now - duration.seconds(text)
    except ValueError:
        raise UsageError(
            f"--to {text!r}: say earliest, latest, reported, an instant such as 2026-03-01T12:00, or 2h (ago)"
        ) from None


def reported_bases(session: Session, group: str) -> dict[TopicPartition, int]:
    """The oldest unfinished offset in the newest report on each partition, if the topic is still the same."""
    from streamjobs import tables
    from streamjobs.telemetry import reports

    app = session.app
    topics = app.broker.admin().topics()
    found: dict[TopicPartition, int] = {}
    rows = tables.read_table(app.broker, app.names.workers).values()
    for row in sorted(rows, key=lambda row: row.appended):
        try:
            report = reports.decode(row.value)
        except DecodeError as error:
            session.say(f"a worker report can't be read: {error}")
            continue
        for part in (
            part for loop in report["loops"] if loop["group"] == group for part in loop["partitions"]
        ):
            topic = topics.get(part["topic"])
            if topic and topic.id[:4] == part["topic_id"][:4] and part["state"] != "lost_commit":
                found[TopicPartition(part["topic"], part["partition"])] = part["base"]
    return found


def _names(session: Session) -> list[str]:
    return [item.group.name for item in admin.groups(session.app)]


def _listed(item: admin.GroupLag) -> dict[str, Any]:
    return {
        "group": item.group.name,
        "state": item.group.state,
        "protocol": item.group.protocol or None,
        "members": len(item.group.members),
        "topics": len(item.topics),
        "pending": item.pending,
    }


def _places(item: admin.GroupLag) -> Iterable[dict[str, Any]]:
    owners = {tp: member for member in item.group.members for tp in member.assignment}
    for topic, places in item.topics.items():
        for number, place in places.items():
            owner = owners.get(TopicPartition(topic, number))
            yield {
                "topic": topic,
                "partition": number,
                "committed": place.base if place.committed else None,
                "start": place.start,
                "end": place.end,
                "finished": place.finished,
                "pending": place.pending,
                **(_owner(owner) if owner else {}),
            }


def _owner(member: Member) -> dict[str, str]:
    """Two workers on one machine differ in the member's id alone, which may begin with the client's, or with the instance's."""
    host = member.host.removeprefix("/")
    own = member.id.removeprefix(f"{member.instance or member.client_id}-")[:_OWN]
    shown = f"{member.instance or member.client_id}@{host} ({own})"
    return {"member": shown, "member_id": member.id, "client_id": member.client_id, "host": host}


def _moved(move: admin.Move) -> dict[str, Any]:
    return {
        "topic": move.partition.topic,
        "partition": move.partition.partition,
        "before": move.before,
        "to": move.to,
        "again": move.again,
        "skipped": move.skipped,
    }
