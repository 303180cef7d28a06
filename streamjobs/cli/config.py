"""`streamjobs config`: the settings in force, and where each was set."""

from __future__ import annotations

from typing import Any

import click

from streamjobs.cli.command import Group, pass_session
from streamjobs.cli.render import Column
from streamjobs.cli.session import Session

_COLUMNS = (Column("path", "SETTING"), Column("value", "VALUE"), Column("source", "SET BY"))
_ALL_COLUMNS = (*_COLUMNS, Column("env", "ENVIRONMENT"), Column("meaning", "MEANING", fit="words"))


@click.group(
    cls=Group,
    examples=["streamjobs config show -A billing:app", "streamjobs config show --all -o json"],
)
def config() -> None:
    """Show the settings in force: code < streamjobs.toml < STREAMJOBS_* < flags."""


@config.command(
    examples=["streamjobs config show -A billing:app", "streamjobs config show --all | grep worker"],
)
@click.option("--all", "everything", is_flag=True, help="Also those that nobody set, with what each means.")
@pass_session
def show(session: Session, everything: bool) -> None:
    """Show each setting that was set, its value, and where it was set. Secrets are masked."""
    rows = _rows(session)
    if everything:
        session.show(rows, _ALL_COLUMNS)
        return
    chosen = [row for row in rows if row["source"] != "default"]
    if not chosen:
        session.say("every setting has its default: --all shows them")
    session.show(chosen, _COLUMNS)


def _rows(session: Session) -> list[dict[str, Any]]:
    from streamjobs.settings import documented, env_name

    known = {setting.path: setting for setting in documented()}
    described = {path: {"env": setting.env, "meaning": setting.meaning} for path, setting in known.items()}
    return [
        {**value._asdict(), **described.get(value.path, {"env": env_name(value.path), "meaning": "Passed on."})}
        for value in session.settings.values()
    ]
