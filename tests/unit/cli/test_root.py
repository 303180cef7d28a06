"""The root: what every command has in common."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import Result

from streamjobs.app import App
from streamjobs.cli import COMMANDS, render, root
from streamjobs.cli.command import Command, Exit, Group, approved, pass_session, plan_options
from streamjobs.cli.session import Session
from streamjobs.errors import BrokerError, PayloadError, PublishError

Run = Callable[..., Result]

REPOSITORY = Path(__file__).parents[3]


def every_command(group: Group = root, path: str = "streamjobs") -> Iterator[tuple[str, click.Command]]:
    yield path, group
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        lazy = group.lazy.get(name)
        if lazy is not None and importlib.util.find_spec(lazy.module) is None:
            continue
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, Group):
            yield from every_command(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


ALL = dict(every_command())


def program(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamjobs", *args]
    environ = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environ)


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL)
def test_every_help_ends_with_two_examples_that_call_that_command(path: str, run: Run) -> None:
    result = run(*path.split()[1:], "--help")

    assert result.exit_code == 0
    _, found, examples = result.stdout.partition("\nExamples:\n")
    lines = [line for line in examples.splitlines() if line.strip()]
    assert found, "no section Examples"
    assert len(lines) >= 2
    assert any(path in line for line in lines)


@pytest.mark.parametrize("path", ALL)
def test_every_command_and_option_says_what_it_is_for(path: str) -> None:
    command = ALL[path]

    assert command.help
    assert all(param.help for param in command.params if isinstance(param, click.Option))


@pytest.mark.parametrize("path", [path for path, command in ALL.items() if isinstance(command, Group)])
def test_a_summary_is_a_whole_sentence(path: str, run: Run) -> None:
    summaries = run(*path.split()[1:], "--help").stdout.partition("\nCommands:\n")[2].partition("\nExamples:\n")[0]

    assert summaries
    assert "..." not in summaries


@pytest.mark.parametrize("name", COMMANDS)
def test_every_lazy_command_exists(name: str) -> None:
    context = click.Context(root)

    assert root.get_command(context, name) is not None


def test_help_imports_no_client_and_nothing_heavy() -> None:
    code = (
        "import sys; from streamjobs.cli import root\n"
        "try: root.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'confluent_kafka', 'fastavro', 'rich', 'pydantic', 'asyncio', 'streamjobs.app', 'streamjobs.cli.worker'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)

    assert done.returncode == 0, done.stderr


def test_version(run: Run) -> None:
    result = run("--version")

    assert result.exit_code == 0
    assert result.stdout.startswith("streamjobs ")


def test_the_shell_completes_verbs_and_the_names_of_the_app(shop: str, directory: Path) -> None:
    def completed(line: str, word: str) -> str:
        env = {"_STREAMJOBS_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - bool(word))}
        code = "from streamjobs.cli import root; root.main(prog_name='streamjobs')"
        command = [sys.executable, "-c", code]
        environ = {**os.environ, **env, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environ).stdout

    assert "plain,worker" in completed("streamjobs wor", "wor")
    assert completed(f"streamjobs worker -A {shop}:app inv", "inv") == "plain,invoices\n"
    assert completed(f"streamjobs publish -A {shop}:app send_m", "send_m") == "plain,send_mail\n"
    assert completed("streamjobs worker -A nowhere:app inv", "inv").strip() == ""


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_wrong_verb_is_answered_with_the_right_one(run: Run) -> None:
    result = run("wroker")

    assert result.exit_code == Exit.USAGE
    assert result.stderr == "error: no command 'wroker': did you mean 'worker'? (see 'streamjobs --help')\n"
    assert result.stdout == ""


def test_a_wrong_verb_of_a_noun_is_answered_too(run: Run) -> None:
    assert "did you mean 'show'? (see 'streamjobs config --help')" in run("config", "shwo").stderr


def test_a_wrong_option_is_one_line(run: Run) -> None:
    result = run("worker", "--slotz", "3")

    assert result.exit_code == Exit.USAGE
    assert len(result.stderr.splitlines()) == 1
    assert "--slots" in result.stderr


def interrupted_in_the_client() -> SystemError:
    """As CPython reports a C function that returns a result with an exception set."""
    error = SystemError("<built-in method …> returned a result with an exception set")
    error.__cause__ = KeyboardInterrupt()
    return error


def failing(error: Exception) -> Command:
    def fail() -> None:
        raise error

    return Command("fail", callback=fail)


@pytest.fixture
def with_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[click.Command], None]:
    def add(command: click.Command) -> None:
        monkeypatch.setitem(root.commands, command.name or "", command)

    return add


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BrokerError("_TRANSPORT", "no broker"), Exit.FAILED, "error: no broker (_TRANSPORT); `streamjobs doctor` looks for the cause\n"),
        (PayloadError("customer_id is missing"), Exit.USAGE, "error: customer_id is missing\n"),
        (KeyError("x"), Exit.FAILED, "error: KeyError: 'x'; this was not foreseen: -v shows where\n"),
        (BrokerError("X", "\x1b[2Jof a record"), Exit.FAILED, "error: of a record (X)\n"),
        (OSError(errno.ENOSPC, "No space left on device"), Exit.FAILED, "error: the output can't be written: No space left on device\n"),
        (KeyboardInterrupt(), Exit.INTERRUPTED, None),
        (interrupted_in_the_client(), Exit.INTERRUPTED, "interrupted\n"),
        (SystemError("of another sort"), Exit.FAILED, None),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: Exception, code: int, line: str | None, run: Run, with_command: Callable[[click.Command], None]
) -> None:
    with_command(failing(error))

    result = run("fail")

    assert result.exit_code == code
    assert "Traceback" not in result.stderr
    assert line is None or result.stderr == line
    assert result.stdout == ""


def test_a_job_that_found_no_broker_sends_its_publisher_to_the_doctor(run: Run, with_command: Callable[[click.Command], None]) -> None:
    error = PublishError("job 7 was not stored")
    error.__cause__ = BrokerError("_MSG_TIMED_OUT", "time is up")
    with_command(failing(error))

    assert run("fail").stderr == "error: job 7 was not stored; `streamjobs doctor` looks for the cause\n"


def test_what_the_client_logs_is_for_those_who_ask(run: Run, with_command: Callable[[click.Command], None]) -> None:
    """The command says what failed; without -v nobody reads of a connection that was made at the second try."""

    def chatter() -> None:
        logging.getLogger("streamjobs.kafka").warning("GETPID [app#producer-3]: Failed to acquire transactional PID")

    with_command(Command("chatter", callback=chatter))
    shown: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        assert run("chatter").exit_code == 0
        assert shown == []
        run("-v", "chatter")
        assert len(shown) == 1
        chatter()
        assert len(shown) == 2
    finally:
        logging.getLogger().removeHandler(handler)


def test_an_error_shows_its_traceback_when_asked_to(run: Run, with_command: Callable[[click.Command], None]) -> None:
    with_command(failing(BrokerError("_TRANSPORT", "no broker")))

    for args in (["-v", "fail"], ["fail", "-v"]):
        result = run(*args)
        assert "Traceback" in result.stderr
        assert result.stderr.endswith("error: no broker (_TRANSPORT); `streamjobs doctor` looks for the cause\n")
        assert result.exit_code == Exit.FAILED


def test_a_number_that_a_command_returns_is_its_exit_code(run: Run, with_command: Callable[[click.Command], None]) -> None:
    with_command(Command("four", callback=lambda: 4))
    with_command(Command("yes", callback=lambda: True))

    assert run("four").exit_code == 4
    assert run("yes").exit_code == 0


def test_an_error_while_the_app_is_closed_is_one_line_too(
    run: Run, with_command: Callable[[click.Command], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(session: Session) -> None:
        raise BrokerError("_TRANSPORT", "no broker")

    monkeypatch.setattr(Session, "close", fail)
    with_command(Command("fine", callback=lambda: None))

    result = run("fine")

    assert (result.exit_code, result.stderr) == (Exit.FAILED, "error: no broker (_TRANSPORT); `streamjobs doctor` looks for the cause\n")


def test_the_app_s_connections_are_closed_at_the_end(run: Run, app: App, shop: str) -> None:
    closed: list[str] = []
    app.close = lambda: closed.append("closed")  # type: ignore[method-assign]

    run("worker", "-A", f"{shop}:app", "no_such_queue")

    assert closed == ["closed"]


def test_python_m_streamjobs_is_the_same_program() -> None:
    done = program("wroker")

    assert done.returncode == 2
    assert done.stderr.startswith("error: no command 'wroker'")


# --- common options ---------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(with_command: Callable[[click.Command], None]) -> list[tuple[str, str, str, bool]]:
    """What the common options said, as the verb of a noun sees it."""
    found: list[tuple[str, str, str, bool]] = []
    noun = Group("noun")

    @noun.command("verb")
    @pass_session
    def verb(session: Session, /) -> None:
        found.append((session.app_option, session.config, session.output, session.verbose))

    with_command(noun)
    return found


GIVEN = ["-A", "a:b", "--config", "x.toml", "-o", "json", "-v"]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_common_options_stand_before_and_after_every_verb(
    place: int, run: Run, seen: list[tuple[str, str, str, bool]]
) -> None:
    words = ["noun", "verb"]

    result = run(*words[:place], *GIVEN, *words[place:])

    assert result.exit_code == 0, result.stderr
    assert seen == [("a:b", "x.toml", "json", True)]


def test_the_option_nearest_to_the_verb_wins(run: Run, seen: list[tuple[str, str, str, bool]]) -> None:
    run("-A", "a:b", "noun", "-A", "c:d", "verb", "-A", "e:f")

    assert seen[0][0] == "e:f"


# --- plan and apply ---------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(with_command: Callable[[click.Command], None]) -> list[str]:
    """A verb that plans as many changes as it is told, and acts if it may."""
    done: list[str] = []

    @click.command(cls=Command)
    @click.argument("changes", type=int)
    @plan_options
    def plan(changes: int, apply: bool, yes: bool) -> None:
        if approved(changes, apply=apply, yes=yes):
            done.append("applied")

    with_command(plan)
    return done


def test_a_plan_needs_apply(run: Run, planned: list[str]) -> None:
    result = run("plan", "2")

    assert result.exit_code == Exit.PENDING
    assert result.stderr == "2 changes pending: run again with --apply\n"
    assert planned == []


def test_apply_without_a_terminal_acts(run: Run, planned: list[str]) -> None:
    assert run("plan", "1", "--apply").exit_code == 0
    assert planned == ["applied"]


def test_a_command_whose_streams_are_closed_works_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a scheduler starts it, or `<&- >&- 2>&-`: Python has None there. It was "'NoneType' object has no attribute 'isatty'" instead of a
    replay."""
    for stream in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)

    render.show([{"a": 1}], [render.Column("a", "A")], "table")
    with render.progress("moved") as bar:
        bar.advance()
    assert approved(1, apply=True, yes=False)


def test_nothing_to_do_is_said_and_is_a_success(run: Run, planned: list[str]) -> None:
    result = run("plan", "0", "--apply")

    assert (result.exit_code, result.stderr, planned) == (0, "nothing to do\n", [])


class Terminal:
    """Standard input that is a terminal, for code that asks whether it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from click.testing import _NamedTextIOWrapper

        monkeypatch.setattr(_NamedTextIOWrapper, "isatty", lambda stream: stream.name == "<stdin>", raising=False)


@pytest.mark.parametrize(
    ("args", "answer", "code", "acts"),
    [
        (["--apply"], "y\n", 0, True),
        (["--apply"], "n\n", Exit.PENDING, False),
        (["--apply"], "\n", Exit.PENDING, False),
        (["--apply", "--yes"], "", 0, True),
        (["--yes"], "", Exit.PENDING, False),
    ],
)
def test_on_a_terminal_apply_asks_and_yes_answers(
    args: list[str], answer: str, code: int, acts: bool, run: Run, planned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Terminal(monkeypatch)

    result = run("plan", "1", *args, stdin=answer)

    assert result.exit_code == code
    assert planned == (["applied"] if acts else [])
    assert result.stdout == ""


def test_json_stays_clean_when_there_is_talk(run: Run, shop: str) -> None:
    result = run("config", "show", "-A", f"{shop}:app", "-o", "json")

    assert json.loads(result.stdout) == []
    assert result.stderr == "every setting has its default: --all shows them\n"
