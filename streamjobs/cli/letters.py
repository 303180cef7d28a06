"""Dead letters as the command line shows them: rows, one letter whole, plans and what became of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import click

from streamjobs.cli import render
from streamjobs.cli.command import Exit, counted
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session
from streamjobs.core.failures import SHORT
from streamjobs.core.letters import Kept

if TYPE_CHECKING:
    from streamjobs.core.failures import Group
    from streamjobs.core.letters import Letter
    from streamjobs.dead_letters import DeadLetters, Done, Plan


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"


LIST = (
    Column("id", "LETTER"),
    Column("job_id", "JOB"),
    Column("type", "TYPE", spare=2),
    Column("key", "KEY", spare=4),
    Column("reason", "REASON", spare=3),
    Column("error", "ERROR"),
    Column("message", "MESSAGE", _short, fit="start", spare=1),
    Column("attempt", "ATTEMPT", right=True, spare=5),
    Column("age_s", "AGE", render.duration, right=True),
    Column("state", "STATE"),
)
MORE = (
    Column("tags", "TAGS", ", ".join),
    Column("run", "RUN", right=True),
    Column("replays", "REPLAYS", right=True),
    Column("died", "DIED"),
    Column("published", "PUBLISHED"),
    Column("first_attempt", "FIRST ATTEMPT"),
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
    Column("first", "FIRST"),
    Column("last", "LAST"),
)


# --- letters and groups of them -----------------------------------------------------------------------------------------------


def row(letters: DeadLetters, letter: Letter, now: float) -> dict[str, Any]:
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
        "died": render.instant(letter.died),
        "published": meta.published or None,
        "first_attempt": render.instant(meta.first_attempt),
        "origin": letter.origin,
        "partition": letter.partition,
        "offset": letter.offset,
        "size_bytes": letter.size,
        "fingerprint": letter.fingerprint[:SHORT],
        "problem": letter.problem or None,
    }


def _state(letter: Letter) -> str | None:
    return "parked" if letter.meta.parked else None


_STATS = (
    Column("count", "LETTERS", render.count, right=True),
    Column("first", "FIRST SEEN", spare=2),
    Column("last", "LAST SEEN"),
    Column("kinds", "KINDS", render.count, right=True, spare=3),
    Column("message", "MESSAGE", _short, fit="start", spare=1),
    Column("sample", "SAMPLE"),
)


def stats_columns(fields: list[str]) -> list[Column]:
    return [Column(field, field.upper()) for field in fields] + [column for column in _STATS if column.key not in fields]


def group_row(fields: list[str], group: Group) -> dict[str, Any]:
    facts = {**_span(group), "kinds": len(group.fingerprints), "message": group.message, "sample": group.sample}
    return {**dict(zip(fields, group.by, strict=True)), **facts}


# --- one letter, whole --------------------------------------------------------------------------------------------------------


def full_row(letters: DeadLetters, letter: Letter, now: float) -> dict[str, Any]:
    payload = letters.shown(letter)
    return {
        **row(letters, letter, now),
        "payload": payload.json,
        "payload_problem": payload.problem or None,
        "payload_hex": payload.hex or None,
        "stack": letters.masking.text(letter.meta.error_stack) or None,
        "headers": {name: letters.masking.field(name, _text(value)) for name, value in letter.headers if not _ours(name)},
    }


def _ours(name: str) -> bool:
    return name.startswith(("sj_", "ce_"))


def _text(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"0x{raw.hex()}"


def show_letter(row: Mapping[str, Any]) -> None:
    facts = [column for column in LIST + MORE if row.get(column.key) not in (None, [], "")]
    render.show_one(row, facts, "table")
    _section("PAYLOAD", None if row["payload_problem"] else render.as_json(row["payload"]))
    _section(f"PAYLOAD, in hexadecimal: {row['payload_problem']}", row["payload_hex"] and _hexdump(row["payload_hex"]))
    _section("HEADERS", "\n".join(f"{name}: {value or ''}" for name, value in row["headers"].items()))
    _section("STACK", row["stack"])
    click.echo()


def _section(title: str, text: str | None) -> None:
    if text:
        click.echo(f"\n{render.clean(title)}")
        click.echo("\n".join(f"  {render.clean(line)}" for line in text.splitlines()))


def _hexdump(text: str) -> str:
    return "\n".join(" ".join(re.findall("..", text[at : at + 64])) for at in range(0, len(text), 64))


# --- plans, and what became of them -------------------------------------------------------------------------------------------


def show_plan(session: Session, plan: Plan, what: str, takes_s: float | None) -> None:
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
        session.say(f"{plan.beyond:,} more {'is' if plan.beyond == 1 else 'are'} chosen, behind the limit")
    _say_kept(session, plan, {})


def _span(group: Group) -> dict[str, Any]:
    return {"count": group.count, "first": render.instant(group.first), "last": render.instant(group.last)}


#: Of one letter, and of several.
_STAYS: Mapping[Kept, tuple[str, str]] = {
    Kept.PARKED: (
        "was replayed as often as max_replays allows and stays parked: mend the cause and raise it (STREAMJOBS_MAX_REPLAYS=…), or discard it",
        "were replayed as often as max_replays allows and stay parked: mend the cause and raise it (STREAMJOBS_MAX_REPLAYS=…), or discard them",
    ),
    Kept.EXPIRED: (
        "stays: its expiry has passed, so workers would skip it; discard it",
        "stay: their expiry has passed, so workers would skip them; discard them",
    ),
    Kept.SOURCE_GONE: (
        "stays: it comes from an earlier topic of the queue's name; put it back with --to QUEUE, or discard it",
        "stay: they come from an earlier topic of the queue's name; put them back with --to QUEUE, or discard them",
    ),
    Kept.REFUSED: ("stays: its payload can't be changed so", "stay: their payload can't be changed so"),
    Kept.UNCHANGED: ("is on the table just so", "are on the table just so"),
    Kept.TOO_LARGE: (
        "stays: the topic that it shall go to takes no record of its size",
        "stay: the topic that they shall go to takes no record of their size",
    ),
}


def _say_kept(session: Session, found: Plan | Done, said: Mapping[Kept, int]) -> None:
    """`said`: what the user knows already."""
    for kept, count in found.kept.items():
        if said.get(kept) == count:
            continue
        one, several = _STAYS[kept]
        example = found.why.get(kept, "")
        shown = (f": {example}" if count == 1 else f", such as {example}") if example else ""
        session.say(f"{count:,} {one if count == 1 else several}{shown}")


def report(session: Session, plan: Plan, done: Done) -> int:
    if session.output == "json":
        kept = {kept.value: count for kept, count in done.kept.items()}
        facts = {"action": done.action, "moved": done.moved, "kept": kept, "interrupted": done.interrupted}
        click.echo(render.as_json({**facts, "took_s": round(done.took_s, 3), "batches": done.batches}))
    _say_kept(session, done, {} if session.output == "json" else plan.kept)
    if not done.fenced:
        session.say("this broker has no transactions: jobs were stored before their letters went; a crash would have left both")
    if done.events_dropped:
        session.say(f"{counted(done.events_dropped, 'record')} of events could not be written: whoever reads them does not know of all of it")
    if done.complaint:
        session.say(done.complaint)
    verb = _PAST[done.action]
    session.say(f"{counted(done.moved, 'letter')} {verb} in {render.duration(done.took_s)}{_per_second(done)}")
    if done.interrupted:
        session.say(f"stopped: about {max(0, plan.count - done.moved):,} are left; the same command goes on with them")
        return Exit.INTERRUPTED
    return outcome(done, plan.unknown)


def outcome(found: Plan | Done, unknown: Collection[str]) -> Exit:
    """What a script is told: a change that was refused is no success, nor is a letter that is not there."""
    return Exit.FAILED if found.kept[Kept.REFUSED] or found.kept[Kept.TOO_LARGE] or unknown else Exit.DONE


def unknown(id: str, topic: str) -> str:
    return f"no letter or job {id!r} is on {topic}: it was replayed or discarded, or never there"


_PAST = {"replay": "replayed", "discard": "discarded", "edit": "edited", "import": "imported"}


def _per_second(done: Done) -> str:
    return f" ({done.moved / done.took_s:,.0f}/s)" if done.moved > 1 and done.took_s > 0 else ""
