"""How every command behaves: common options on both sides of the verb, examples, errors of one line, exit codes."""

from __future__ import annotations

import errno
import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import click

from streamjobs.cli.render import clean, is_terminal
from streamjobs.cli.session import Session
from streamjobs.core.duration import seconds
from streamjobs.errors import OUT_OF_REACH, BrokerError, StreamjobsError, UsageError


class Exit(IntEnum):
    """What a command's exit code says (docs/commands.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PENDING = 3
    """Changes are pending, or a threshold is exceeded."""
    ABANDONED = 4
    """Work was abandoned at drain."""
    INTERRUPTED = 130


#: What writing to stdout may fail with: its disk is full, or broken.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

pass_session = click.make_pass_decorator(Session, ensure=True)
"""Hands the Session to a command as its first argument."""


class Lazy(NamedTuple):
    """A command that is imported when it is used: `module` has it under the command's name."""

    module: str
    summary: str


class Polite(click.Command):
    """What Command and Group share."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own parameters and the common ones, unless it has one of that name itself."""
        own: list[click.Parameter] = super().get_params(ctx)
        taken = {name for param in own for name in param.opts}
        common = [param for param in _common() if not taken & set(param.opts)]
        return [param for param in own if param.name != "help"] + common + [param for param in own if param.name == "help"]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")

    def main(  # type: ignore[override]  # click's has two overloads for one keyword
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Runs the command and, unless told otherwise, ends the process. A whole number that it returns is its exit code."""
        session = extra.setdefault("obj", Session())
        if not standalone_mode:
            return super().main(args=args, standalone_mode=False, **extra)
        try:
            with _client_kept_quiet(session):
                try:
                    code = super().main(args=args, standalone_mode=False, **extra)
                finally:
                    session.close()
        except Exception as error:  # noqa: BLE001 (the one place where every error becomes a line and an exit code)
            code = report(error, verbose=session.verbose)
        sys.exit(code if type(code) in (int, Exit) else Exit.DONE)


@contextmanager
def _client_kept_quiet(session: Session) -> Iterator[None]:
    """What librdkafka logs is shown with -v only: a person is told of what failed by the command, in its words.

    *Bites*: a replay succeeds, and `GETPID […] Failed to acquire transactional PID` stands above its result.
    """
    log = logging.getLogger("streamjobs.kafka")
    shown: Callable[[logging.LogRecord], bool] = lambda _: session.verbose  # noqa: E731
    log.addFilter(shown)
    try:
        yield
    finally:
        log.removeFilter(shown)


class Command(Polite):
    """A verb. `examples`: at least two real command lines, shown at the end of its help."""


class Group(Polite, click.Group):
    """A noun with its verbs. `lazy`: those that are imported only when they are used."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *(name for name in self.commands if name not in self.lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy and cmd_name not in self.commands:
            module = importlib.import_module(self.lazy[cmd_name].module)
            self.add_command(getattr(module, cmd_name.replace("-", "_")), cmd_name)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in self.list_commands(ctx):
            raise click.UsageError(f"no command {name!r}: {did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, without importing a lazy command for the sake of its summary."""
        rows = [(name, self._summary(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _summary(self, ctx: click.Context, name: str) -> str:
        if name in self.lazy:
            return self.lazy[name].summary
        command = self.get_command(ctx, name)
        return command.get_short_help_str(limit=1000) if command else ""  # a sentence: it is wrapped, not cut


def report(error: BaseException, *, verbose: bool) -> int:
    """Says on stderr what went wrong, in one line (a traceback only if asked for), and returns the exit code."""
    if _is_interrupt(error):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    if _is_help(error):
        return _shown(error)
    if verbose and not isinstance(error, click.ClickException):
        traceback.print_exception(error, file=sys.stderr)
    click.echo("\n".join(map(clean, f"error: {_message(error)}".splitlines())), err=True)
    usage = isinstance(error, UsageError | click.UsageError)
    return Exit.USAGE if usage else Exit.FAILED


def _is_interrupt(error: BaseException) -> bool:
    """Ctrl-C inside the Kafka client comes out as a SystemError: the client returns a result although it was interrupted."""
    raised = error.__cause__ if isinstance(error, SystemError) else error
    return isinstance(raised, click.Abort | KeyboardInterrupt)


def _is_help(error: BaseException) -> bool:
    return type(error).__name__ == "NoArgsIsHelpError"  # click ≥ 8.2: `streamjobs dlt` shows what there is


def _shown(error: BaseException) -> int:
    assert isinstance(error, click.ClickException)
    error.show()
    return Exit.USAGE


def _message(error: BaseException) -> str:
    if isinstance(error, click.UsageError):
        where = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return error.format_message() + where
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, StreamjobsError):
        return f"{error}; `streamjobs doctor` looks for the cause" if _is_far(error) else str(error)
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN and error.filename is None:
        return f"the output can't be written: {error.strerror}"
    return f"{type(error).__name__}: {error}; this was not foreseen: -v shows where"


def _is_far(error: BaseException | None) -> bool:
    """Whether it says, or rests on one that says, that no broker answered."""
    if isinstance(error, BrokerError):
        return error.code in OUT_OF_REACH
    return isinstance(error, StreamjobsError) and _is_far(error.__cause__)


# --- options that every command takes, on either side of the verb -----------------------------------------------------

_APP = "The app, as MODULE:ATTR; else STREAMJOBS_APP, else `app` in streamjobs.toml."
_PATH = click.Path(path_type=Path)


def _common() -> list[click.Parameter]:
    return [
        _option(("-A", "--app"), "app_ref", _APP, metavar="MODULE:ATTR"),
        _option(("--config",), "config", "Settings file instead of streamjobs.toml.", metavar="FILE", type=_PATH),
        _option(("-o", "--output"), "output", "How data is printed.", type=click.Choice(["table", "json"])),
        _option(("-v", "--verbose"), "verbose", "Say more; show tracebacks.", is_flag=True),
    ]


def _option(names: tuple[str, ...], attribute: str, help: str, **kwargs: Any) -> click.Option:
    return click.Option([*names, attribute], help=help, expose_value=False, callback=_keep(attribute), **kwargs)


def _keep(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value:
            setattr(ctx.ensure_object(Session), attribute, value)

    return keep


def as_seconds(ctx: click.Context, param: click.Parameter, value: Any) -> float | None:
    """The callback of an option that takes a duration such as "10m": float seconds, or None."""
    try:
        return None if value is None else seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


# --- what writes offsets, topics or dead letters ----------------------------------------------------------------------


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--apply` and `--yes` for a verb that writes: its arguments `apply` and `yes`, to be handed to `approved`."""
    function = click.option("--yes", is_flag=True, help="Don't ask before applying.")(function)
    return click.option("--apply", is_flag=True, help="Do what the plan says; without it, only the plan is shown.")(function)


def approved(changes: int, *, apply: bool, yes: bool, question: str = "Apply?") -> bool:
    """After the plan was shown: whether to act on it. False: there is nothing to do.

    Without `--apply`, or with a "no" on the terminal, the command ends here with exit code 3: changes are pending.
    """
    if not changes:
        click.echo("nothing to do", err=True)
        return False
    if not apply:
        pending(f"{counted(changes, 'change')} pending: run again with --apply")
    if not yes and is_terminal(sys.stdin) and not click.confirm(question, err=True):
        pending("nothing was changed")
    return True


def pending(message: str) -> None:
    """Ends the command with exit code 3, saying why."""
    click.echo(message, err=True)
    raise click.exceptions.Exit(Exit.PENDING)


def counted(count: int, noun: str) -> str:
    """`1 change`, `1,200 changes`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that was probably meant, or what there is."""
    names = sorted(known)
    with suppress(IndexError):
        return f"did you mean {get_close_matches(word, names, n=1, cutoff=0.5)[0]!r}?"
    return f"there is {', '.join(names)}" if names else "there is none"
