"""`streamjobs doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import click

from streamjobs.broker import Cluster, Message
from streamjobs.cli import render
from streamjobs.cli.command import Command, Exit, counted, pass_session
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session
from streamjobs.core.record import Record
from streamjobs.deployment import applying
from streamjobs.errors import OUT_OF_REACH, BrokerError, DecodeError, SettingsError, StreamjobsError, UsageError

if TYPE_CHECKING:
    from streamjobs.app import App
    from streamjobs.provision import Plan

Status = Literal["ok", "warn", "fail"]

_COLUMNS = (Column("status", "STATUS"), Column("check", "CHECK"), Column("found", "FOUND", fit="words"), Column("advice", "WHAT TO DO", fit="words"))
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
#: A round trip that is longer than this makes every publish slow.
_SLOW_S = 0.5
#: Publishers and workers compare due times with clocks of their own: a delay is off by as much as they differ.
_SKEW_WARNS_S, _SKEW_FAILS_S = 1.0, 60.0
#: KIP-848 takes over so late unless the group's own timeout was set (group.consumer.session.timeout.ms of a broker).
_DEFAULT_TAKEOVER_S = 45.0


@dataclass(frozen=True, slots=True)
class Check:
    check: str
    status: Status
    found: str
    advice: str = ""


_ONE_CLOCK = Check("clock", "ok", "not compared: this broker stamps records with the client's clock")


@click.command(
    cls=Command,
    examples=[
        "streamjobs doctor -A billing:app",
        "streamjobs doctor -A billing:app -o json | jq '.[] | select(.status != \"ok\")'",
    ],
)
@pass_session
def doctor(session: Session, /) -> int:
    """Check settings, job types, schema registry, cluster, group protocol, topics and clocks. The exit code is 1 if something fails.

    It writes one tombstone of its own to the workers topic, to see the broker's clock.
    """
    found: list[Check] = []
    for check in examine(session):
        found.append(check)
        if session.output == "table":
            _print(check)
    if session.output == "json":
        session.show([asdict(check) for check in found], _COLUMNS)
    failed = [check for check in found if check.status == "fail"]
    if failed:
        session.say(f"{counted(len(failed), 'check')} failed")
    return Exit.FAILED if failed else Exit.DONE


def _print(check: Check) -> None:
    """As soon as it is known: the next one may have to wait for a broker."""
    status = f"{check.status:<6}"
    if not os.environ.get("NO_COLOR"):
        status = click.style(status, fg=_COLOURS[check.status])
    click.echo(f"{status}{check.check:<16}{render.clean(check.found)}")
    if check.advice:
        click.echo(f"{'':22}→ {render.clean(check.advice)}")


def examine(session: Session) -> Iterator[Check]:
    """Every check that can be made: what rests on one that failed is left out."""
    settings = _settings(session)
    yield settings
    if settings.status == "fail":
        return
    app = session.app
    yield _job_types(app)
    if app.settings.schemas.registry:
        yield _registry(app)
    began = time.perf_counter()
    try:
        cluster = app.broker.admin().cluster()
    except BrokerError as error:
        yield _unreachable(app, error)
        return
    yield _reached(app, cluster, time.perf_counter() - began)
    yield _version(app, cluster)
    yield from _deployment(app, cluster)


def _deployment(app: App, cluster: Cluster) -> Iterator[Check]:
    from streamjobs import provision

    try:
        plan = provision.plan(app)
    except BrokerError as error:
        yield Check("topics", "fail", f"they can't be read: {error}", "check the broker's log, and what this user may see")
        return
    yield from _topics(plan, applying(app), by_workers=app.settings.provision == "auto" or "topic_admin" in app.broker.lacks)
    yield _protocol(app, cluster, plan)
    if all(change.action != "create" or change.target != app.names.workers for change in plan.changes):
        yield _clock(app)


# --- this side --------------------------------------------------------------------------------------------------------


def _settings(session: Session) -> Check:
    try:
        settings = session.app.settings
    except (SettingsError, UsageError) as error:
        return Check("settings", "fail", str(error), "correct it; `streamjobs config show` shows what was set where")
    changed = sum(value.source not in ("default", "code") for value in settings.values())
    return Check("settings", "ok", f"{session.app_ref}, {counted(changed, 'setting')} from outside the code")


def _job_types(app: App) -> Check:
    if not app.job_types:
        return Check("job types", "fail", "none", "name the modules that declare them: App(…, imports=[…])")
    for job_type in app.job_types.values():
        try:
            _ = job_type.payload.fingerprint
        except StreamjobsError as error:
            return Check("job types", "fail", str(error), f"correct {job_type.name}: its jobs can't be published")
    types, queues = counted(len(app.job_types), "job type"), counted(len(app.queues()), "queue")
    return Check("job types", "ok", f"{types} in {queues}, each with a schema")


def _registry(app: App) -> Check:
    """*Bites*: its client is not installed; no worker starts, and all is well here."""
    try:
        registry = app.registry()
        assert registry is not None
        registry.schema(1)
    except SettingsError as error:
        return Check("schema registry", "fail", str(error), "no worker starts without it: install it, or unset schemas.registry")
    except DecodeError as error:  # any answer will do
        if getattr(error, "transient", False):
            return Check("schema registry", "warn", str(error), "jobs with its schema ids wait: is it running, and registry.* right?")
    return Check("schema registry", "ok", f"{app.settings.schemas.registry} answers")


# --- the cluster ------------------------------------------------------------------------------------------------------


def _unreachable(app: App, error: BrokerError) -> Check:
    if error.code not in OUT_OF_REACH:  # it answered, or was never asked
        return Check("broker", "fail", f"{app.settings.bootstrap}: {error}", "check [kafka] security.protocol, sasl.*, ssl.*, and the user's ACLs")
    advice = "is it running, and reachable from here under that name? Check `bootstrap` and [kafka] security.protocol, sasl.*"
    return Check("broker", "fail", f"{app.settings.bootstrap} does not answer: {error}", advice)


def _reached(app: App, cluster: Cluster, took_s: float) -> Check:
    found = f"{counted(len(cluster.brokers), 'broker')} at {', '.join(cluster.brokers)}, answered in {took_s * 1000:.0f} ms"
    if took_s > _SLOW_S:
        return Check("broker", "warn", found, "every publish waits for at least one round trip: run closer to the cluster")
    return Check("broker", "ok", found)


def _version(app: App, cluster: Cluster) -> Check:
    if app.broker.lacks:
        lacks = ", ".join(sorted(app.broker.lacks))
        found = f"the embedded broker, which lacks {lacks}"
        return Check("version", "warn", found, "use it to try things: it ends with its process")
    version = cluster.version or "(it does not tell its version)"
    return Check("version", "ok", f"Kafka {version}, cluster {cluster.id or 'without an id'}")


def _topics(plan: Plan, command: str, *, by_workers: bool) -> Iterator[Check]:
    """`command` applies the plan. `by_workers`: they apply it themselves when they start."""
    pending = counted(len(plan.changes), "change") + " pending"
    if plan.changes and by_workers:
        yield Check("topics", "ok", f"{pending}, which a worker applies when it starts")
    elif plan.changes:
        targets = [f"{change.action} {change.target}" for change in plan.changes]
        shown = ", ".join(targets[:3]) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
        yield Check("topics", "fail", f"{pending}: {shown}", f"run `{command}`")
    for finding in plan.findings:
        yield Check("topics", "fail" if finding.blocks else "warn", finding.message, "see `streamjobs topic plan`")
    if not plan.changes and not plan.findings:
        yield Check("topics", "ok", "all are there, as they should be")


def _protocol(app: App, cluster: Cluster, plan: Plan) -> Check:
    """Fast join (KIP-848) or fast takeover (classic), which one, and why (DESIGN.md §9)."""
    setting = app.settings.worker.protocol
    speaks = "consumer" in cluster.protocols
    if setting == "consumer" and not speaks:
        advice = 'set worker.protocol = "auto", or use Kafka 4.0 or later'
        return Check("group protocol", "fail", "worker.protocol is consumer, but the cluster does not speak it", advice)
    if setting == "classic" or not speaks:
        why = "as worker.protocol says" if setting == "classic" else "as the cluster speaks no other"
        takeover = render.duration(app.settings.worker.session_timeout)
        found = f"classic, {why}: a worker joins in about 3s, a dead one is replaced after {takeover}"
        return Check("group protocol", "ok", found)
    return _consumer_protocol(app, plan)


def _consumer_protocol(app: App, plan: Plan) -> Check:
    wanted = render.duration(app.settings.worker.session_timeout)
    found = "consumer (KIP-848), as the cluster speaks it: a worker joins in about 0.2s, a dead one is replaced after "
    slow = found + render.duration(_DEFAULT_TAKEOVER_S)
    if "topic_config" in app.broker.lacks:  # the embedded one's groups have no settings either (measured: 30 s)
        return Check("group protocol", "ok", found + "about 30s")
    if any(change.action == "register" for change in plan.changes):  # else it was applied, whatever became of a topic since
        return Check("group protocol", "warn", slow, f"run `{applying(app)}`: it sets the timeout")
    try:  # what `topic apply` has set, set again: whether the cluster allows it can't be read
        for group, config in plan.group_settings.items():
            app.broker.admin().set_group_config(group, config)
    except BrokerError as error:
        advice = (
            f'choose: a fast join (as it is), a fast takeover (worker.protocol = "classic": {wanted}), or both, with '
            "group.consumer.min.session.timeout.ms=6000 on the brokers"
        )
        return Check("group protocol", "warn", f"{slow}, since the cluster refuses less: {error}", advice)
    return Check("group protocol", "ok", found + wanted)


# --- clocks -----------------------------------------------------------------------------------------------------------


def _clock(app: App) -> Check:
    """One tombstone to the workers topic, for a worker that does not exist: its append time is the broker's clock.

    *Bites*: the embedded broker says of any record that it was appended at 1.234 s past the epoch, and this machine is 56 years ahead.
    """
    if "topic_config" in app.broker.lacks:
        return _ONE_CLOCK
    answers: list[tuple[BrokerError | None, Message]] = []
    producer = app.broker.producer()
    try:
        sent = time.time()
        producer.send(Record(app.names.workers, None, b"doctor"), lambda error, message: answers.append((error, message)))
        deadline = time.monotonic() + app.settings.publish_timeout
        while not answers and time.monotonic() < deadline:
            producer.poll(0.05)
        acked = time.time()
    except BrokerError as error:
        return Check("clock", "warn", f"not compared: {error}", f"see whether {app.names.workers} can be written")
    finally:
        with suppress(BrokerError):
            producer.close(0)
    return _compared(app, answers, sent, acked)


def _compared(app: App, answers: list[tuple[BrokerError | None, Message]], sent: float, acked: float) -> Check:
    if not answers or answers[0][0] is not None:
        reason = answers[0][0] if answers else "no acknowledgement came"
        return Check("clock", "warn", f"not compared: {reason}", f"see whether {app.names.workers} can be written")
    kind, appended_ms = answers[0][1].timestamp()
    if kind != 2:
        return _ONE_CLOCK
    return _judged(appended_ms / 1000, sent, acked)


def _judged(appended: float, sent: float, acked: float) -> Check:
    """The broker's clock read between `sent` and `acked`: what lies inside of that is no difference."""
    skew = appended - acked if appended > acked else min(0.0, appended - sent + 0.001)
    ahead = "behind" if skew > 0 else "ahead of"
    found = f"this machine is {render.duration(abs(skew))} {ahead} the broker" if skew else "the same as the broker's"
    status: Status = "fail" if abs(skew) >= _SKEW_FAILS_S else "warn" if abs(skew) >= _SKEW_WARNS_S else "ok"
    advice = "" if status == "ok" else "delays are off by as much: keep time with NTP on all machines"
    return Check("clock", status, found, advice)
