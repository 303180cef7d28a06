"""`streamjobs worker`: runs jobs until it is told to stop."""

from __future__ import annotations

import faulthandler
import functools
import gc
import logging
import os
import sys
import threading
import traceback
import uuid
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

import click

from streamjobs import __version__
from streamjobs.cli import completion
from streamjobs.cli.command import Command, did_you_mean, pass_session
from streamjobs.cli.session import Session, load_app
from streamjobs.errors import StreamjobsError, UsageError

if TYPE_CHECKING:
    from streamjobs.app import App
    from streamjobs.worker.marks import Legacy
    from streamjobs.worker.process import Process

logger = logging.getLogger(__name__)

#: So many more objects than before are alive when a worker process looks for cycles.
GARBAGE = 50_000
#: What is done at the end of a process, and threads of pools that handlers use, may take so long.
POOLS_S = 5.0


@click.command(
    cls=Command,
    examples=[
        "streamjobs worker -A billing:app invoices mails --slots 64",
        "streamjobs worker -A billing:app --processes 4 --drain 60s --listen 0.0.0.0:9464",
        "streamjobs worker -A billing:app --provision auto      # creates what is missing: for a first try",
    ],
)
@click.argument("queues", nargs=-1, shell_complete=completion.queues)
@click.option("--slots", type=int, help="def jobs that one process runs at the same time, and as many async ones; default: 32.")
@click.option("--processes", type=int, help="Worker processes; default: 1.")
@click.option("--group", help="Consumer group; default: the app's name.")
@click.option("--instance", help="Static membership: a name that is unique in the group.")
@click.option("--drain", metavar="DURATION", help="How long running jobs may go on when the worker is told to stop; default: 25s.")
@click.option("--listen", metavar="HOST:PORT", help="Address of /metrics, /healthz and /readyz; 'off': none; default: 127.0.0.1:9464.")
@click.option("--provision", type=click.Choice(["check", "auto"]), help="Missing topics: refuse to start, or create them; default: check.")
@pass_session
def worker(session: Session, /, queues: tuple[str, ...], provision: str | None, **options: Any) -> int:
    """Run the jobs of QUEUES; of all queues of the app when none is named.

    SIGTERM and Ctrl-C let running jobs end (see --drain); a second one ends at once. Exit codes: 0 all was finished, 4 work was
    abandoned at the end of the drain (others will run it again), 1 failed, 2 wrong usage, 130 or 143 ended at once.
    """
    flags = {f"worker.{name}": value for name, value in options.items()} | {"provision": provision}
    given = {path: value for path, value in flags.items() if value is not None}
    session.app.configure(given)
    _check(session, queues)
    return _supervise(session, given, queues)


def _supervise(session: Session, given: Mapping[str, Any], queues: Iterable[str]) -> int:
    """The supervisor and its endpoint; what its processes need is made in each of them."""
    from streamjobs.telemetry.http import Endpoint
    from streamjobs.telemetry.metrics import Metrics, Totals, exposition, merge
    from streamjobs.worker.process import marks_of
    from streamjobs.worker.supervise import Supervisor

    app, settings = session.app, session.app.settings
    _log(app)
    if settings.bootstrap == "embedded":
        _ = app.broker  # started by this process, so that it lives as long as the worker does
    own, totals = Metrics(app.group), Totals()
    own.count("worker_process_deaths_total", app.group, by=0)  # or the first one would not be seen as an increase
    entry = functools.partial(run_process, session.app_ref, dict(given), list(queues), session.verbose, member=uuid.uuid4().hex)
    supervisor = Supervisor(
        entry,
        settings.worker.processes,
        settings.worker.drain,
        totals,
        marks_of(settings),
        died=lambda: own.count("worker_process_deaths_total", app.group),
    )
    endpoint = None
    if settings.worker.address() is not None:
        source = lambda: merge([totals.snapshot(), own.snapshot()])  # noqa: E731
        endpoint = Endpoint(settings.worker.listen, lambda accept: exposition(source, accept), supervisor.healthy, supervisor.ready)
        endpoint.start()
        logger.info("metrics and health at %s/metrics", endpoint.url)
    try:
        return supervisor.run()
    finally:
        if endpoint is not None:
            endpoint.close()


def run_process(
    app_ref: str,
    given: Mapping[str, Any],
    queues: list[str],
    verbose: bool,
    slot: int,
    connection: Connection,
    legacy: Legacy,
    *,
    member: str,
) -> None:
    """What a worker process runs, from its start to its exit code; called in the process itself."""
    from streamjobs.telemetry.metrics import merge
    from streamjobs.worker.supervise import LATE_S, RESTART_ME, Report, Reporting, await_broker, may_pass, spared_interrupts

    spared_interrupts()
    try:
        app = load_app(app_ref).configure(given)
        _log(app)
        if not await_broker(lambda: app.broker.admin().cluster(), connection, merge([])):
            sys.exit(0)
        process = app.process(queues, slot=slot, member=member, prepare_child=_log, legacy=legacy)
        report = lambda: Report(merge(process.snapshots()), process.sick(), process.unready(), process.suspects_told)  # noqa: E731
        reporting = Reporting(connection, report, lambda: _stop(process, app.settings.worker.drain + LATE_S - 1))
        process.start()
    except StreamjobsError as error:
        if verbose:
            traceback.print_exc()
        click.echo(f"error: {error}", err=True)
        if may_pass(error):
            sys.exit(RESTART_ME)  # it went away again
        sys.exit(2 if isinstance(error, UsageError) else 1)
    _collect_rarely()
    reporting.run(lambda: process.alive)
    code = process.join(timeout=10.0)
    if process.recycling:
        os._exit(code)  # whatever hangs in it
    end(code)


def end(code: int) -> NoReturn:
    """Ends the process, for whose threads Python waits: those of pools, too, whatever hangs in them.

    *Bites*: an async handler that waited for `asyncio.to_thread(…)` had its timeout, and was settled; its thread goes on. All is committed
    then, and the process stays until it is killed for being late: exit code 1, for a worker that had nothing left to do.
    """
    late = threading.Timer(POOLS_S, os._exit, (code,))
    late.daemon = True
    late.start()
    sys.exit(code)


def _stop(process: Process, seconds: float) -> None:
    """Ends the process after so many seconds, come what may, with what each of its threads did then.

    *Bites*: its supervisor is killed, and it hangs while it drains; nobody is left to kill it, it keeps its membership alive, and its
    partitions stand still for ever. Nor is one that makes room for another by itself sure to end.
    """
    if not process.told:
        faulthandler.dump_traceback_later(seconds, exit=True)
    process.tell_to_stop()


def _log(app: App) -> None:
    """Logging as the app's settings want it: in the supervisor, in a worker's processes and in their children."""
    from streamjobs.telemetry import log

    how = app.settings
    log.configure(how.log.format, how.log.level, service=app.name, version=__version__, group=app.group, mask=how.mask.patterns)


def _collect_rarely() -> None:
    """Jobs hold no cycles, and thousands of them are alive: looked through every 700 objects, they cost a third of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 10, 10)


def _check(session: Session, queues: Iterable[str]) -> None:
    """Here once, rather than in every process: a worker that can't start would be started again and again."""
    known = session.app.queues()
    _ = session.app.group
    if not known:
        raise UsageError(f"{session.app_ref} declares no job types: does imports=[…] name the modules with @app.job in them?")
    for queue in queues:
        if queue not in known:
            raise UsageError(f"{session.app_ref} has no job type in a queue {queue!r}: {did_you_mean(queue, known)}")
