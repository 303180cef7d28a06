"""`streamjobs topic`: the topics and registrations that an app needs, and what may be deleted from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from streamjobs import admin, provision
from streamjobs.cli import render
from streamjobs.cli.command import Exit, Group, approved, counted, pass_session, pending, plan_options
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session

_PLAN = (
    Column("action", "ACTION"),
    Column("target", "TARGET"),
    Column("detail", "DETAIL", fit="words"),
    Column("warning", "WARNING", fit="words"),
)
_LIST = (
    Column("topic", "TOPIC"),
    Column("kind", "KIND"),
    Column("partitions", "PARTITIONS", render.count, right=True),
    Column("replication", "REPLICAS", render.count, right=True, spare=2),
    Column("records", "OFFSETS", render.count, right=True, spare=1),
    Column("groups", "REGISTERED", lambda groups: ", ".join(groups) or "–", fit="words"),
    Column("state", "STATE", fit="words"),
)
_TRIM = (
    Column("topic", "TOPIC"),
    Column("partition", "PARTITION", right=True),
    Column("from_offset", "FROM", render.count, right=True),
    Column("before_offset", "BEFORE", render.count, right=True),
    Column("count", "OFFSETS", render.count, right=True),
    Column("kept", "KEPT BECAUSE", fit="words"),
)


@click.group(
    cls=Group,
    examples=["streamjobs topic plan -A billing:app", "streamjobs topic apply -A billing:app"],
)
def topic() -> None:
    """Plan and apply the topics that an app needs, list them, and trim what is finished and old."""


_from = click.option(
    "--from",
    "from_",
    type=click.Choice(["earliest", "now"]),
    default="earliest",
    show_default=True,
    help="Where a group that is not registered yet starts in queues that exist already.",
)


@topic.command(
    examples=[
        "streamjobs topic plan -A billing:app",
        "streamjobs topic plan -A billing:app --from now -o json",
    ],
)
@_from
@pass_session
def plan(session: Session, /, from_: provision.From) -> int:
    """Show what `topic apply` would do. Exit code 3: changes are pending; 1: what it can't mend keeps workers from starting."""
    found = provision.plan(session.app, from_=from_)
    _show_plan(session, found)
    if found.blocking:
        return Exit.FAILED
    return Exit.PENDING if found.changes else Exit.DONE


@topic.command(
    examples=[
        "streamjobs topic apply -A billing:app",
        "streamjobs topic apply -A billing:app --from now --yes",
    ],
)
@_from
@click.option(
    "--yes", is_flag=True, help="Don't ask; also add partitions, which breaks the order by key for a while."
)
@click.option("--reason", default="", help="Noted in the audit topic.")
@pass_session
def apply(session: Session, /, from_: provision.From, yes: bool, reason: str) -> int:
    """Create topics, register the group, add partitions, set what is configured otherwise.

    Registrations are written first, so that no worker meets a partition without a start offset. Doing it
    twice changes nothing. Exit code 1: something failed, or keeps workers from starting and has to be
    put right by hand.
    """
    found = provision.plan(session.app, from_=from_)
    _show_plan(session, found)
    if found.blocking and not found.changes:
        return Exit.FAILED
    if not approved(len(found.changes), apply=True, yes=yes):
        return Exit.DONE
    return _tell(session, provision.apply(session.app, found, yes=yes, reason=reason), blocked=bool(found.blocking))


@topic.command(
    name="list",
    examples=[
        "streamjobs topic list -A billing:app",
        "streamjobs topic list -A billing:app -o json | jq '.[].topic'",
    ],
)
@click.option("--all", "everything", is_flag=True, help="Also topics of other apps under the same prefixes.")
@pass_session
def list_(session: Session, /, everything: bool) -> None:
    """List the app's topics: what each is for, who is registered on it, and whether it is as it should be."""
    session.show([_listed(item) for item in provision.listed(session.app, everything=everything)], _LIST)


@topic.command(
    examples=[
        "streamjobs topic trim -A billing:app",
        "streamjobs topic trim jobs.invoices -A billing:app --apply --yes",
    ],
)
@click.argument("topics", nargs=-1)
@click.option("--reason", default="", help="Noted in the audit topic.")
@plan_options
@pass_session
def trim(session: Session, /, topics: tuple[str, ...], reason: str, apply: bool, yes: bool) -> int:
    """Delete records that are older than `history` and finished by every group that has a say.

    When no TOPICS are named, it looks at all under the app's prefixes, those of other apps, too: with this app's `history`. Nothing
    else does it yet: run it from a scheduler. A topic of which anything is in doubt keeps everything, and says why.
    """
    found = admin.plan_trim(session.app, topics=topics)
    session.show(_trim_rows(found), _TRIM)
    if not approved(
        len(found.cuts), apply=apply, yes=yes, question=f"Delete {counted(found.count, 'record')}?"
    ):
        return Exit.DONE
    trimmed = admin.apply_trim(session.app, found, reason=reason)
    for cut, error in trimmed.failed:
        session.say(f"not trimmed: {cut.partition.topic}/{cut.partition.partition}: {error}")
    if trimmed.complaint:
        session.say(trimmed.complaint)
    session.say(f"{counted(sum(cut.count for cut in trimmed.done), 'record')} deleted")
    return Exit.FAILED if trimmed.failed else Exit.DONE


def _show_plan(session: Session, found: provision.Plan) -> None:
    rows = [_change_row(change) for change in found.changes]
    if rows or session.output == "json":
        session.show(rows, _PLAN)
    for finding in found.findings:
        session.say(f"{'error' if finding.blocks else 'note'}: {finding.message}")


def _change_row(change: provision.Change) -> dict[str, str]:
    return {
        "action": change.action,
        "target": change.target,
        "detail": change.text(),
        "warning": change.warning,
    }


def _tell(session: Session, applied: provision.Applied, *, blocked: bool) -> int:
    for change, error in applied.failed:
        session.say(f"failed: {change.action} {change.target}: {error}")
    for note in applied.notes:
        session.say(f"note: {note}")
    session.say(f"{counted(len(applied.done), 'change')} applied")
    if applied.failed:
        return Exit.FAILED
    for change in applied.refused:
        session.say(f"not done: {change.action} {change.target} {change.text()}: {change.warning}")
    if blocked:
        return Exit.FAILED
    if applied.refused:
        pending("run again with --yes if that is what you want")
    return Exit.DONE


def _listed(item: provision.Listed) -> dict[str, Any]:
    return {
        "topic": item.topic.name,
        "kind": item.kind,
        "partitions": item.topic.partitions,
        "replication": item.topic.replication,
        "records": item.records,
        "groups": list(item.groups),
        "state": item.state,
    }


def _trim_rows(found: admin.TrimPlan) -> Iterable[dict[str, Any]]:
    for cut in found.cuts:
        yield {
            "topic": cut.partition.topic,
            "partition": cut.partition.partition,
            "from_offset": cut.start,
            "before_offset": cut.before,
            "count": cut.count,
        }
    for blocked in found.blocked:
        yield {"topic": blocked.topic, "partition": blocked.partition, "kept": blocked.message}
