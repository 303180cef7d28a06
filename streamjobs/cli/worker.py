"""`streamjobs worker`: runs jobs until it is told to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from streamjobs.cli import completion
from streamjobs.cli.command import Command, did_you_mean, pass_session
from streamjobs.cli.session import Session
from streamjobs.errors import UsageError


@click.command(
    cls=Command,
    examples=[
        "streamjobs worker -A billing:app invoices mails --slots 64",
        "streamjobs worker -A billing:app --processes 4 --drain 60s --listen 0.0.0.0:9464",
        "streamjobs worker -A billing:app --provision auto      # creates what is missing: for a first try",
    ],
)
@click.argument("queues", nargs=-1, shell_complete=completion.queues)
@click.option("--slots", type=int, help="Jobs that one process runs at the same time.")
@click.option("--processes", type=int, help="Worker processes.")
@click.option("--group", help="Consumer group; default: the app's name.")
@click.option("--instance", help="Static membership: a name that is unique in the group.")
@click.option("--drain", metavar="DURATION", help="How long running jobs may go on when the worker is told to stop.")
@click.option("--listen", metavar="HOST:PORT", help="Address of /metrics, /healthz and /readyz; 'off': none.")
@click.option("--provision", type=click.Choice(["check", "auto"]), help="Missing topics: refuse to start, or create them.")
@pass_session
def worker(session: Session, /, queues: tuple[str, ...], provision: str | None, **options: Any) -> int:
    """Run the jobs of QUEUES; of all queues of the app when none is named.

    SIGTERM and Ctrl-C let running jobs end (see --drain); a second one ends at once. Exit codes: 0 all was finished, 4 work was
    abandoned at the end of the drain (others will run it again), 75 start me again, 1 failed, 2 wrong usage.
    """
    flags = {f"worker.{name}": value for name, value in options.items()} | {"provision": provision}
    given = {path: value for path, value in flags.items() if value is not None}
    session.app.configure(given)
    _check(session, queues)

    from streamjobs.worker import supervise

    return int(supervise.run(session.app_ref, given, list(queues)))


def _check(session: Session, queues: Iterable[str]) -> None:
    """Here once, rather than in every process: a worker that can't start would be started again and again."""
    known = session.app.queues()
    _ = session.app.group
    if not known:
        raise UsageError(f"{session.app_ref} declares no job types: does imports=[…] name the modules with @app.job in them?")
    for queue in queues:
        if queue not in known:
            raise UsageError(f"{session.app_ref} has no job type in a queue {queue!r}: {did_you_mean(queue, known)}")
