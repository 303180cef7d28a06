"""The topics, registrations and group settings that an app needs: planned, applied, checked.

`plan` compares what should be with what is; `apply` reads again and does what of the plan is still needed;
`check` is what a worker asks before its first job. Registrations are acknowledged before a partition is
created or grown: a partition that a worker meets has a start offset, as a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

from streamjobs import audit, orders
from streamjobs.broker import Admin, At, Topic, TopicPartition
from streamjobs.core import control
from streamjobs.core.topics import Kind, retry_group, timer_group
from streamjobs.deployment import Deployment, applying, consumed
from streamjobs.errors import BrokerError, ProvisionError

From = Literal["earliest", "now"]

#: What a record takes on between its publish and its dead letter: retry and letter headers, capped (bytes).
HEADROOM = 64 * 1024
LADDER_PARTITIONS = 4

_DAY_MS = 86_400_000
_SYSTEM_PARTITIONS: Mapping[Kind, int] = {"control": 1, "events": 4, "workers": 1, "audit": 1, "schemas": 1}


@dataclass(frozen=True, slots=True)
class CreateTopic:
    topic: Topic
    action = "create"
    warning = ""

    @property
    def target(self) -> str:
        return self.topic.name

    def text(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in sorted(self.topic.config.items()))
        return (
            f"{_count(self.topic.partitions, 'partition')}, replication {self.topic.replication}; {settings}"
        )


@dataclass(frozen=True, slots=True)
class AddPartitions:
    """`keyed`: keys change their partition, so new jobs of a key may overtake waiting ones."""

    target: str
    before: int
    total: int
    keyed: bool
    action = "grow"

    @property
    def warning(self) -> str:
        if not self.keyed:
            return ""
        return "most keys move to another partition: until older jobs are done, the order by key is broken"

    def text(self) -> str:
        return f"from {self.before} to {_count(self.total, 'partition')}"


@dataclass(frozen=True, slots=True)
class AlterConfig:
    """`changes`: key → (value now, "" when it is not set; value wanted)."""

    target: str
    changes: Mapping[str, tuple[str, str]]
    action = "alter"
    warning = ""

    def text(self) -> str:
        return ", ".join(
            f"{key}: {old or 'not set'} → {new}" for key, (old, new) in sorted(self.changes.items())
        )


@dataclass(frozen=True, slots=True)
class Register:
    """Where the group starts in each partition of the topic when it has no commit there."""

    group: str
    topic: str
    starts: Mapping[int, int]
    action = "register"
    warning = ""

    @property
    def target(self) -> str:
        return f"{self.group} on {self.topic}"

    def text(self) -> str:
        if not any(self.starts.values()):
            return f"{_count(len(self.starts), 'partition')} from the beginning"
        return "from " + ", ".join(
            f"{partition}:{offset}" for partition, offset in sorted(self.starts.items())
        )


@dataclass(frozen=True, slots=True)
class DeleteTier:
    """A tier that left the settings and is empty; its registration goes with it."""

    target: str
    group: str
    action = "delete"
    warning = ""

    def text(self) -> str:
        return "this tier of the delay ladder is no longer in the settings and nothing waits in it"


Change = CreateTopic | AddPartitions | AlterConfig | Register | DeleteTier


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference that `apply` leaves alone. `blocks`: no worker may start before someone puts it right."""

    kind: str
    target: str
    message: str
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` would do, in that order. `group_settings` are set at every apply: Kafka keeps them, no one
    can compare them."""

    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]
    group_settings: Mapping[str, Mapping[str, str]]
    from_: From

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """What keeps workers from starting, however often this is applied."""
        return tuple(finding for finding in self.findings if finding.blocks)


@dataclass(slots=True)
class Applied:
    """What became of a plan. `refused`: needs `yes`. `notes`: what did not work and does no harm."""

    done: list[Change] = field(default_factory=list)
    refused: list[Change] = field(default_factory=list)
    failed: list[tuple[Change, BrokerError]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a worker can't start, and the command that mends it. `by_hand`: after somebody did what the message says."""

    message: str
    command: str
    by_hand: bool = False


# --- plan ---------------------------------------------------------------------------------------------------


def plan(app: Deployment, *, from_: From = "earliest") -> Plan:
    """What has to change so that the app's queues and group can work. Raises BrokerError.

    `from_`: where the group starts in partitions of main topics that exist already and in which it is not
    registered.
    """
    state = _State.read(app)
    wanted = wanted_topics(app, brokers=state.brokers)
    changes: list[Change] = []
    findings: list[Finding] = []
    for topic in wanted.values():
        changes += _topic_changes(app, topic, state)
        findings += _topic_findings(app, topic, state)
    changes += _registrations(app, wanted, state, from_)
    for tier in _abandoned_tiers(app, wanted, state):
        (changes if isinstance(tier, DeleteTier) else findings).append(tier)  # type: ignore[arg-type]
    changes.sort(key=lambda change: _order(app, change))
    return Plan(tuple(changes), tuple(findings), _group_settings(app, state), from_)


def wanted_topics(app: Deployment, *, brokers: int) -> dict[str, Topic]:
    """Every topic that the app needs, as it should be, by name."""
    replication = app.settings.replication or min(3, max(1, brokers))
    found: dict[str, Topic] = {}
    for kind, name, partitions in _names(app):
        found[name] = Topic(name, partitions, replication, _config(app, kind))
    return found


def _names(app: Deployment) -> Iterable[tuple[Kind, str, int]]:
    names, partitions = app.names, app.settings.partitions
    for kind, count in _SYSTEM_PARTITIONS.items():
        yield kind, f"{names.system}.{kind}", count
    for queue in sorted(app.queues()):
        yield "main", names.main(queue), partitions
        yield "retry", names.retry(queue, app.group), partitions
        yield "dead", names.dead(queue, app.group), partitions
    for tier in app.settings.delay.tiers:
        yield "delay", names.delay(app.name, tier), LADDER_PARTITIONS


def _config(app: Deployment, kind: Kind) -> dict[str, str]:
    """Append time everywhere: with clients' clocks, a record from 65 minutes ahead is refused."""
    stamp = {"message.timestamp.type": "LogAppendTime"}
    forever = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    size = app.settings.max_message_bytes
    if kind == "main":
        return stamp | forever | {"max.message.bytes": str(size)}
    if kind in ("retry", "delay"):
        return stamp | forever | {"max.message.bytes": str(size + HEADROOM)}
    if kind == "dead":
        return stamp | {"cleanup.policy": "compact", "max.message.bytes": str(size + HEADROOM)}
    if kind in ("events", "audit"):
        days = 7 if kind == "events" else 90
        return stamp | {"cleanup.policy": "delete", "retention.ms": str(days * _DAY_MS)}
    return stamp | {"cleanup.policy": "compact"}


@dataclass(frozen=True, slots=True)
class _State:
    """What is there now."""

    brokers: int
    protocols: frozenset[str]
    topics: Mapping[str, Topic]
    desired: control.Desired
    lacks: frozenset[str]
    admin: Admin

    @classmethod
    def read(cls, app: Deployment) -> _State:
        broker = app.broker
        admin = broker.admin()
        cluster = admin.cluster()
        ours = [name for name in admin.topics() if app.names.role(name)]
        topics = admin.topics(ours, config="topic_config" not in broker.lacks) if ours else {}
        desired = orders.read(broker, app.names)
        return cls(len(cluster.brokers), cluster.protocols, topics, desired, broker.lacks, admin)


def _topic_changes(app: Deployment, topic: Topic, state: _State) -> list[Change]:
    found = state.topics.get(topic.name)
    if found is None:
        return [CreateTopic(_durable(topic))]
    changes: list[Change] = []
    kind = _kind(app, topic.name)
    if (
        found.partitions < topic.partitions
        and kind in ("main", "retry", "delay")
        and "topic_admin" not in state.lacks
    ):
        changes.append(AddPartitions(topic.name, found.partitions, topic.partitions, keyed=kind != "delay"))
    unfit = {} if "topic_config" in state.lacks else _unfit(found.config, topic.config)
    if unfit:
        changes.append(AlterConfig(topic.name, unfit))
    return changes


def _durable(topic: Topic) -> Topic:
    """A new topic with three replicas: an acknowledged job is on two of them. On topics that exist it is the
    owner's choice."""
    if topic.replication < 3:
        return topic
    return replace(topic, config={**topic.config, "min.insync.replicas": "2"})


def _unfit(found: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The settings of ours that don't fit; what others set beside them is theirs."""
    return {
        key: (found.get(key, ""), value)
        for key, value in wanted.items()
        if not _fits(key, found.get(key, ""), value)
    }


def _fits(key: str, found: str, wanted: str) -> bool:
    """A larger size fits (two apps that share a queue would lower each other's for ever), and so does any
    finite retention where a finite one is wanted."""
    if found == wanted:
        return True
    if key == "max.message.bytes":
        return found.isdigit() and int(found) >= int(wanted)
    return key == "retention.ms" and wanted != "-1" and found.isdigit()


def _topic_findings(app: Deployment, topic: Topic, state: _State) -> Iterable[Finding]:
    found = state.topics.get(topic.name)
    if found is None or "topic_admin" in state.lacks:
        return
    kind = _kind(app, topic.name)
    has = f"has {_count(found.partitions, 'partition')}"
    if kind == "control" and found.partitions != 1:
        text = f"{topic.name} {has}: orders need exactly one; stop all workers, delete it, then apply"
        yield Finding("control_partitions", topic.name, text, blocks=True)
    elif kind == "dead" and found.partitions != topic.partitions:
        text = f"{topic.name} {has}, the settings say {topic.partitions}; its count never changes"
        yield Finding("dlt_partitions", topic.name, text)
    elif kind in ("main", "retry") and found.partitions > topic.partitions:
        text = f"{topic.name} {has}, the settings say {topic.partitions}; Kafka can't take partitions away"
        yield Finding("fewer_partitions", topic.name, text)
    if found.replication < topic.replication:
        text = (
            f"{topic.name} has {found.replication} of {topic.replication} replicas: kafka-reassign-partitions"
        )
        yield Finding("replication", topic.name, text)


# --- registrations ------------------------------------------------------------------------------------------


def _registrations(
    app: Deployment, wanted: Mapping[str, Topic], state: _State, from_: From
) -> Iterable[Register]:
    pairs = list(consumed(app))
    existing = [state.topics[name] for _, name in pairs if name in state.topics]
    ends = _offsets(state.admin, existing, "latest")
    fresh = [
        name
        for group, name in pairs
        if name in state.topics and state.desired.registration(group, name) is None
    ]
    begins = _begins(app, state, fresh, from_)
    for group, name in pairs:
        before = state.desired.registration(group, name)
        total = _partitions_to_register(wanted[name], state)
        registered = before.starts if before else {}
        starts = starting_offsets(total, registered, begins.get(name, {}), ends.get(name, {}))
        if before is None or starts != dict(before.starts) or before.app != app.name:
            yield Register(group, name, starts)


def _begins(app: Deployment, state: _State, names: Sequence[str], from_: From) -> dict[str, dict[int, int]]:
    """Where partitions begin that exist and in which the group is new; only main topics follow `now`."""
    late = [name for name in names if from_ == "now" and _kind(app, name) == "main"]
    early = [state.topics[name] for name in names if name not in late]
    found = _offsets(state.admin, early, "earliest")
    return found | _offsets(state.admin, [state.topics[name] for name in late], "latest")


def _partitions_to_register(topic: Topic, state: _State) -> int:
    """Those that are wanted and those that are there; but no more than wanted where nobody can choose."""
    found = state.topics.get(topic.name)
    if found is None or "topic_admin" in state.lacks:
        return topic.partitions
    return max(topic.partitions, found.partitions)


def starting_offsets(
    total: int, registered: Mapping[int, int], begin: Mapping[int, int], ends: Mapping[int, int]
) -> dict[int, int]:
    """The start offset of each of `total` partitions.

    A registered one stays, unless the log ends before it: then the topic was made anew, and what it holds
    starts at 0. One that nobody registered starts where `begin` says; one that is not there yet starts at 0.
    """
    kept = {p: offset for p, offset in registered.items() if offset <= ends.get(p, 0)}
    return {p: kept.get(p, begin.get(p, 0)) for p in range(total)}


def _offsets(admin: Admin, topics: Iterable[Topic], at: At) -> dict[str, dict[int, int]]:
    """By topic and partition, asked for all at once."""
    partitions = [tp for topic in topics for tp in _partitions(topic)]
    found: dict[str, dict[int, int]] = {}
    for tp, offset in (admin.offsets(partitions, at) if partitions else {}).items():
        found.setdefault(tp.topic, {})[tp.partition] = offset
    return found


def _partitions(topic: Topic) -> list[TopicPartition]:
    return [TopicPartition(topic.name, number) for number in range(topic.partitions)]


# --- the ladder's old tiers and the groups' settings --------------------------------------------------------


def _abandoned_tiers(
    app: Deployment, wanted: Mapping[str, Topic], state: _State
) -> Iterable[DeleteTier | Finding]:
    group = timer_group(app.name)
    for name, topic in sorted(state.topics.items()):
        if name in wanted or not _is_own_tier(app, name):
            continue
        waiting = _waiting(state.admin, group, topic)
        if waiting:
            text = f"{name} left the settings; it is deleted when {_count(waiting, 'job')} left it"
            yield Finding("tier_draining", name, text)
        elif "topic_admin" not in state.lacks:
            yield DeleteTier(name, group)


def _waiting(admin: Admin, group: str, topic: Topic) -> int:
    """Records between commits and end; the commits are asked for first, so that it is never too few."""
    partitions = _partitions(topic)
    committed = admin.committed(group, partitions)
    starts = admin.offsets(partitions, "earliest")
    ends = admin.offsets(partitions, "latest", "read_uncommitted")
    return sum(
        ends[tp] - max(starts[tp], committed[tp].offset if tp in committed else 0) for tp in partitions
    )


def _group_settings(app: Deployment, state: _State) -> dict[str, dict[str, str]]:
    """A dead worker's partitions are taken over after the session timeout, and a joining one waits for the
    others' heartbeats."""
    worker = app.settings.worker
    if "consumer" not in state.protocols or worker.protocol == "classic" or "topic_config" in state.lacks:
        return {}
    timeouts = {
        "consumer.heartbeat.interval.ms": "1000",
        "consumer.session.timeout.ms": str(round(worker.session_timeout * 1000)),
    }
    return dict.fromkeys((app.group, retry_group(app.group), timer_group(app.name)), timeouts)


# --- apply --------------------------------------------------------------------------------------------------


def apply(app: Deployment, approved: Plan, *, yes: bool = False, reason: str = "") -> Applied:
    """Does what of the approved plan is still needed, as things are now.

    `yes` also does what breaks the order by key. Raises BrokerError when a registration can't be written:
    nothing that depends on it was created then.
    """
    applied = Applied()
    agreed = {(change.action, change.target) for change in approved.changes}
    changes = [
        item for item in plan(app, from_=approved.from_).changes if (item.action, item.target) in agreed
    ]
    applied.refused = [change for change in changes if change.warning and not yes]
    changes = [change for change in changes if not change.warning or yes]
    for _, stage in groupby(changes, key=lambda change: _order(app, change)[:2]):
        _carry_out(app, list(stage), applied)
    applied.notes += _set_group_settings(app.broker.admin(), approved.group_settings)
    _note(app, applied, reason)
    return applied


def _carry_out(app: Deployment, stage: Sequence[Change], applied: Applied) -> None:
    """Changes of one sort. Registrations fail together and end it all; others fail one by one."""
    if isinstance(stage[0], Register):
        for _, refusal in applied.failed:
            raise refusal  # the control topic's: that it is missing would say nothing of why
        _register(app, [change for change in stage if isinstance(change, Register)])
        applied.done += stage
        return
    created = _create(app, [change.topic for change in stage if isinstance(change, CreateTopic)])
    for change in stage:
        error = created[change.target] if isinstance(change, CreateTopic) else _failure(app, change)
        if error is None:
            applied.done.append(change)
        else:
            applied.failed.append((change, error))


def _create(app: Deployment, topics: Sequence[Topic]) -> dict[str, BrokerError | None]:
    """Who made it first, when two apply at once, doesn't matter."""
    errors = app.broker.admin().create_topics(topics) if topics else {}
    return {
        name: error if error and error.code != "TOPIC_ALREADY_EXISTS" else None
        for name, error in errors.items()
    }


def _failure(app: Deployment, change: Change) -> BrokerError | None:
    admin = app.broker.admin()
    try:
        match change:
            case AddPartitions(target, total=total):
                admin.add_partitions(target, total)
            case AlterConfig(target, changes):
                admin.alter_topic_config(target, {key: new for key, (_, new) in changes.items()})
            case DeleteTier(target, group):
                _delete_tier(app, target, group)
    except BrokerError as error:
        return error
    return None


def _register(app: Deployment, changes: Iterable[Register]) -> None:
    now, actor = app.clock.now(), audit.actor()
    records = {
        control.registration_key(change.group, change.topic): control.registration_value(
            app=app.name, starts=change.starts, actor=actor, at=now
        )
        for change in changes
    }
    orders.write(app.broker, app.names, records)


def _delete_tier(app: Deployment, name: str, group: str) -> None:
    """The registration goes first: a topic that is left without one is found again, and deleted."""
    admin = app.broker.admin()
    found = admin.topics([name]).get(name)
    if found is not None and _waiting(admin, group, found):
        raise BrokerError("TOPIC_NOT_EMPTY", f"a job entered {name} in the meantime", retriable=True)
    orders.write(app.broker, app.names, {control.registration_key(group, name): None})
    admin.delete_topics([name])


def _set_group_settings(admin: Admin, settings: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """One by one: a cluster that refuses the short session (its minimum is 45 s by default) may take the
    short heartbeat."""
    refused: dict[str, str] = {}
    for group, config in settings.items():
        for key, value in config.items():
            try:
                admin.set_group_config(group, {key: value})
            except BrokerError as error:
                refused[f"{key}={value}"] = str(error)
    return [f"the cluster refuses {setting} for the groups: {error}" for setting, error in refused.items()]


def _note(app: Deployment, applied: Applied, reason: str) -> None:
    if not applied.done:
        return
    result = f"{len(applied.failed)} failed" if applied.failed else "ok"
    what = "; ".join(f"{change.action} {change.target}" for change in applied.done)
    complaint = audit.record(app, audit.Entry("topic apply", what, len(applied.done), result, reason))
    if complaint:
        applied.notes.append(complaint)


# --- check --------------------------------------------------------------------------------------------------


def check(app: Deployment) -> list[Problem]:
    """What keeps a worker of this app from starting, each with the command that mends it. Raises
    BrokerError."""
    return _problems(plan(app), applying(app))


def require(app: Deployment) -> Applied:
    """What a worker does before its first job: nothing but look, or with `provision = "auto"` apply what
    harms nobody. On the embedded broker always: nobody else could.

    Raises ProvisionError with everything that is missing or unfit, BrokerError when the cluster can't be
    asked.
    """
    current = plan(app)
    applied = Applied()
    by_itself = app.settings.provision == "auto" or "topic_admin" in app.broker.lacks
    if by_itself and current.changes:
        applied = apply(app, current, reason="a worker started with provision = auto")
        current = plan(app)
    problems = _problems(current, applying(app))
    if problems:
        raise ProvisionError(_told(problems))
    return applied


def _problems(current: Plan, command: str) -> list[Problem]:
    found = [
        Problem(_missing(change), f"{command} --yes" if change.warning else command)
        for change in current.changes
        if change.action != "delete"
    ]
    return found + [Problem(item.message, command, by_hand=True) for item in current.blocking]


def _missing(change: Change) -> str:
    match change:
        case CreateTopic(topic):
            return f"topic {topic.name} is missing"
        case AddPartitions(target, before, total):
            return f"topic {target} has {_count(before, 'partition')}, the settings say {total}"
        case AlterConfig(target):
            return f"topic {target} is configured wrongly: {change.text()}"
        case Register(group, topic):
            return f"group {group} is not registered on {topic} with a start offset per partition"
    return f"{change.target}: {change.text()}"


def _told(problems: Sequence[Problem]) -> str:
    shown = [f"  - {problem.message}" for problem in problems[:10]]
    if len(problems) > 10:
        shown.append(f"  - and {len(problems) - 10} more")
    commands = sorted({problem.command for problem in problems}, key=len)
    first = "when that is done, " if any(problem.by_hand for problem in problems) else ""
    return "\n".join(["the cluster is not ready for this app:", *shown, f"{first}run: {commands[-1]}"])


# --- list ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listed:
    """A topic as it is. `records`: offsets from its start to its end; `groups`: who is registered; `state`:
    "ok", or what is wrong with it."""

    topic: Topic
    kind: Kind
    records: int
    groups: tuple[str, ...]
    state: str


def listed(app: Deployment, *, everything: bool = False) -> list[Listed]:
    """The app's topics, missing ones included; with `everything` all under its prefixes. Raises
    BrokerError."""
    state = _State.read(app)
    wanted = wanted_topics(app, brokers=state.brokers)
    names = {*wanted, *(name for name in state.topics if everything or _is_own_tier(app, name))}
    present = [state.topics[name] for name in names if name in state.topics]
    records = _records(state.admin, present)
    return [_as_listed(app, state, name, wanted.get(name), records.get(name, 0)) for name in sorted(names)]


def _as_listed(app: Deployment, state: _State, name: str, wanted: Topic | None, records: int) -> Listed:
    groups = sorted(state.desired.registered_topics().get(name, ()))
    kind = _kind(app, name)
    assert kind is not None, name
    is_, told = state.topics.get(name), "ok"
    if wanted is not None:
        problems = [_missing(change) for change in _topic_changes(app, wanted, state)]
        told = "; ".join(problems + [item.message for item in _topic_findings(app, wanted, state)]) or "ok"
    return Listed(
        is_ or replace(wanted or Topic(name, 0), partitions=0, replication=0),
        kind,
        records,
        tuple(groups),
        told,
    )


def _records(admin: Admin, topics: Sequence[Topic]) -> dict[str, int]:
    starts = _offsets(admin, topics, "earliest")
    ends = _offsets(admin, topics, "latest")
    return {name: sum(ends[name].values()) - sum(starts[name].values()) for name in ends}


def _is_own_tier(app: Deployment, name: str) -> bool:
    role = app.names.role(name)
    return role is not None and role.kind == "delay" and role.app == app.name


# --- words --------------------------------------------------------------------------------------------------


def _kind(app: Deployment, topic: str) -> Kind | None:
    role = app.names.role(topic)
    return role.kind if role else None


_STAGES = ("create", "register", "grow", "alter", "delete")


def _order(app: Deployment, change: Change) -> tuple[int, int, str]:
    """The control topic first, then every registration, and only then what a worker could meet."""
    if isinstance(change, CreateTopic):
        return (0 if change.target == app.names.control else 2, 0, change.target)
    return (1 if isinstance(change, Register) else 3, _STAGES.index(change.action), change.target)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
