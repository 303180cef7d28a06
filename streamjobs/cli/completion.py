"""What the shell may complete: names that only the app knows. A completion never fails: it finds nothing."""

from __future__ import annotations

from collections.abc import Iterable

import click

from streamjobs.cli.session import Session
from streamjobs.errors import StreamjobsError


def queues(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    try:
        return _starting(incomplete, ctx.ensure_object(Session).app.queues())
    except StreamjobsError:
        return []


def job_types(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    try:
        return _starting(incomplete, ctx.ensure_object(Session).app.job_types)
    except StreamjobsError:
        return []


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in sorted(names) if name.startswith(incomplete)]
