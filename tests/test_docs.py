"""The documentation tells the truth: what is made from the code is up to date, and every command, setting, metric, header, link,
promise and example in it exists."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import Field

from streamjobs import App, Job
from streamjobs.broker import Broker, TopicPartition
from streamjobs.cli.command import Exit
from streamjobs.core.partitioner import partition_of
from streamjobs.core.record import FIXED, Meta
from streamjobs.settings import documented, env_name
from streamjobs.telemetry.catalogue import METRICS, series_of
from streamjobs.telemetry.events import KINDS
from tests.command_lines import fault, in_backticks, in_fences, resolves
from tests.documentation import FILES, PARTS, ROOT, parts_of, renewed, walk

DOCS = [*FILES, ROOT / "CHANGELOG.md", ROOT / "schemas/README.md"]
SOURCES = sorted((ROOT / "streamjobs").rglob("*.py"))
each_file = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


@cache
def text_of(path: Path) -> str:
    return path.read_text("utf-8")


# --- what is made from the code -------------------------------------------------------------------------------------------


@each_file
def test_generated_parts_are_up_to_date(path: Path) -> None:
    """Settings, commands, metrics, events, states, errors, defaults: `make docs` writes them."""
    assert renewed(text_of(path)) == text_of(path), "run `make docs`"


def test_every_generated_part_stands_somewhere() -> None:
    assert {name for path in DOCS for name in parts_of(text_of(path))} == PARTS.keys()


def test_every_setting_metric_event_and_command_is_documented() -> None:
    """The parts hold all there is: nothing is left out of the tables that `make docs` writes."""
    settings, metrics, commands = (text_of(ROOT / "docs" / f"{name}.md") for name in ("settings", "metrics", "commands"))

    assert [s.path for s in documented() if f"| `{s.path}` |" not in settings] == []
    assert [m.full_name for m in METRICS.values() if f"| `{m.full_name}` |" not in metrics] == []
    assert [kind for kind in KINDS if f"| `{kind}` |" not in metrics] == []
    assert [path for path, *_ in walk() if f"### `{path}`\n" not in commands] == []


def test_every_command_has_help_and_two_examples_that_work() -> None:
    for path, command, _ in walk():
        assert command.help, path
        examples = getattr(command, "examples", ())
        assert len(examples) >= 2, path
        for words in in_fences("```sh\n" + "\n".join(examples) + "\n```"):
            assert fault(words) is None, f"{path}: {words}"


def test_no_command_and_no_setting_counts_on_what_is_not_there_yet() -> None:
    """What bit: "the monitor does this by itself", of `topic trim`; job topics keep all records for ever, and nobody trimmed them."""
    not_yet = re.findall(r"^\| .+ \|(.+)\|$", text_of(ROOT / "README.md").partition("| not yet |")[2], re.MULTILINE)
    assert any("the monitor" in line for line in not_yet), "it is there: this test is done"

    assert [path for path, command, _ in walk() if "monitor" in (command.help or "")] == []
    assert [s.path for s in documented() if "monitor" in s.meaning] == []


def test_every_exit_code_is_documented_and_is_one_that_some_command_ends_with() -> None:
    """What bit: 75, "start me again", which a worker's processes say to their supervisor, and no command to whoever started it."""
    table = text_of(ROOT / "docs/commands.md").partition("| exit code |")[2].partition("\n\n")[0]
    listed = {int(code) for codes in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in codes.split(",")}
    code = "\n".join(text_of(path) for path in SOURCES)

    assert listed == {*Exit, 128 + signal.SIGTERM}
    assert [exit.name for exit in Exit if exit is not Exit.ABANDONED and f"Exit.{exit.name}" not in code] == []


def test_every_setting_is_read() -> None:
    """A setting that nobody reads is a promise that nobody keeps."""
    code = "\n".join(text_of(path) for path in SOURCES if path.name != "settings.py")
    unread = {s.path for s in documented() if not re.search(rf"\b{_as_read(s.path)}\b", code)}

    assert unread == set()


def _as_read(path: str) -> str:
    """`settings.partitions`; a section may have a name of its own: `worker.tick`."""
    path = path.removesuffix(".<key>")
    return re.escape(path if "." in path else f"settings.{path}")


# --- commands, settings, metrics and headers that are spoken of -----------------------------------------------------------


@each_file
def test_command_lines_work(path: Path) -> None:
    """Every line of a shell block: command, options, and kinds of arguments."""
    wrong = {" ".join(words): fault(words) for words in in_fences(text_of(path))}

    assert {line: why for line, why in wrong.items() if why} == {}


@pytest.mark.parametrize("path", [*DOCS, *SOURCES], ids=lambda path: path.name)
def test_commands_that_are_named_exist(path: Path) -> None:
    """In running text, and in the messages that tell a user what to run."""
    wrong = {" ".join(words): resolves(words) for words in in_backticks(text_of(path))}

    assert {line: why for line, why in wrong.items() if why} == {}


@each_file
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(path), re.MULTILINE))

    assert named <= targets


@each_file
def test_environment_names_are_settings(path: Path) -> None:
    known = {env_name(s.path) for s in documented()} | {"STREAMJOBS_CONFIG", "STREAMJOBS_TEST_BOOTSTRAP"}
    named = set(re.findall(r"\bSTREAMJOBS_[A-Z_]*[A-Z]\b", text_of(path)))

    assert {name for name in named if not name.startswith("STREAMJOBS_KAFKA")} <= known


@each_file
def test_settings_that_are_named_exist(path: Path) -> None:
    paths = {s.path for s in documented()}
    sections = {s.partition(".")[0] for s in paths if "." in s} - {"kafka"}
    named = set(re.findall(rf"`((?:{'|'.join(sorted(sections))})\.[a-z_]+)(?: = [^`]+)?`", text_of(path)))

    files = {name for name in named if (ROOT / "streamjobs" / name.replace(".py", "")).exists() or (path.parent / name).exists()}

    assert named - files <= paths


@each_file
def test_metrics_that_are_named_exist(path: Path) -> None:
    known = {series for metric in METRICS.values() for series in (*series_of(metric), metric.full_name)}
    named = set(re.findall(r"`(streamjobs_[a-z_]+)`", text_of(path)))

    assert named - {"streamjobs_testing"} <= known


#: Begin like headers and are none: a name in generated code.
NO_HEADERS = {"sj_computed"}


def test_headers_are_documented_and_none_is_made_up() -> None:
    """Those that are read, and those that are written, are those of docs/wire-format.md."""
    in_code = {name for path in SOURCES for name in re.findall(r"\"((?:sj|ce)_[a-z_]+)\"", text_of(path))}
    in_docs = set(re.findall(r"`((?:sj|ce)_[a-z_]+)`", text_of(ROOT / "docs/wire-format.md")))

    assert in_code - NO_HEADERS == in_docs - {"ce_", "sj_"}
    assert {*FIXED} <= in_docs | {"content-type"}
    assert Meta("x").run == Meta("x").attempt == 1


# --- links and promises ---------------------------------------------------------------------------------------------------


@each_file
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(text_of(file)), target


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_file
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"`((?:streamjobs|tests|docs|deploy|schemas)/[A-Za-z0-9_./-]+)(?:::\w+)?`", text_of(path))

    assert [name for name in named if not (ROOT / name).exists()] == []


def promises() -> dict[str, list[str]]:
    """Promise → the tests that hold it."""
    rows = re.findall(r"^\| (.+?) \| (.*?) ?\|$", text_of(ROOT / "docs/promises.md"), re.MULTILINE)
    return {promise: re.findall(r"`([^`]+::\w+)`", tests) for promise, tests in rows if promise not in ("promise", "---")}


def test_every_promise_is_held_by_a_test() -> None:
    section = text_of(ROOT / "README.md").partition("## What it promises")[2].partition("\n## ")[0]
    made = re.findall(r"^- \*\*(.+?)\*\*", section, re.MULTILINE)

    assert made == list(promises())


@pytest.mark.parametrize("promise", list(promises()))
def test_the_tests_that_hold_a_promise_exist(promise: str) -> None:
    tests = promises()[promise]

    assert tests, "nothing holds it"
    for test in tests:
        file, _, name = test.partition("::")
        assert name in functions_of(ROOT / file), test


@cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


# --- examples -------------------------------------------------------------------------------------------------------------


def blocks(path: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(path), re.DOTALL | re.MULTILINE)


@each_file
def test_python_examples_compile(path: Path) -> None:
    for block in blocks(path):
        compile(block, path.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_readme_has_its_example_in_the_first_lines() -> None:
    first = next(number for number, line in enumerate(text_of(ROOT / "README.md").splitlines(), 1) if line == "```python")

    assert first <= 12


def test_the_example_of_the_readme_runs(
    streamjobs_testing: Callable[[App], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Declared and published as it stands there; a void invoice is a dead letter, the others are sent."""
    declares, publishes = blocks(ROOT / "README.md")
    billing = ModuleType("billing")
    monkeypatch.setitem(sys.modules, "billing", billing)
    exec(compile(declares, "README.md", "exec", flags=0, dont_inherit=True), vars(billing))

    t = streamjobs_testing(billing.app)
    exec(compile(publishes, "README.md", "exec", flags=0, dont_inherit=True), {})
    t.run()

    sent = re.findall(r"invoice (\d+) goes to acme, idempotency key (\S+)", capsys.readouterr().out)
    assert sorted(int(invoice) for invoice, _ in sent) == sorted([7, 7, 7, *range(13), *range(14, 100)])
    assert {("7", "inv-7"), ("7", "local")} <= set(sent)
    assert [letter.error_message for letter in t.dead_letters("invoices")] == ["invoice is void"]


def test_the_example_of_the_readme_runs_as_its_reader_runs_it(
    embedded_url: str, tmp_path: Path, prefix: str, wait_until: Callable[..., None]
) -> None:
    """Pasted into the file that it names, with nothing beside it: by the worker and the command that stand below it."""
    declares, publishes = blocks(ROOT / "README.md")
    (tmp_path / declares.splitlines()[0].removeprefix("# ")).write_text(declares)
    short = prefix.rpartition("-")[2]  # a prefix has up to 60 characters
    names = {"JOBS_PREFIX": f"{short}.jobs", "SYSTEM_PREFIX": f"{short}.sys", "BOOTSTRAP": embedded_url, "WORKER__LISTEN": "off"}
    env = {**os.environ, **{f"STREAMJOBS_{name}": value for name, value in names.items()}, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    works, _, lists, _ = in_fences(text_of(ROOT / "README.md"))
    output = tmp_path / "output"

    def ends_well(*words: str) -> bool:
        return subprocess.run([sys.executable, *words], check=False, cwd=tmp_path, env=env, capture_output=True).returncode == 0

    def sent() -> set[int]:
        return {int(invoice) for invoice in re.findall(r"^invoice (\d+) goes to acme", output.read_text(), re.MULTILINE)}

    with output.open("w") as file, subprocess.Popen([sys.executable, "-m", "streamjobs", *works], cwd=tmp_path, env=env, stdout=file) as worker:
        try:
            wait_until(lambda: ends_well("-m", "streamjobs", "topic", "plan", "-A", "billing:app"), 60)
            assert ends_well("-c", publishes)
            wait_until(lambda: sent() == set(range(100)) - {13}, 60)
        finally:
            worker.terminate()
    letters = subprocess.run([sys.executable, "-m", "streamjobs", *lists], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "invoice is void" in letters.stdout


def test_the_tests_of_the_page_on_testing_pass(tmp_path: Path) -> None:
    """Beside the README's app, in a project that has no settings of its own."""
    for path in (ROOT / "README.md", ROOT / "docs/testing.md"):
        (block, *_) = blocks(path)
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    tested = subprocess.run([sys.executable, "-m", "pytest", "-q"], check=False, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "4 passed" in tested.stdout, tested.stdout


def wire_example() -> str:
    """The block behind `<!-- example: bare -->`."""
    found = re.search(r"<!-- example: bare -->\n```python\n(.*?)^```", text_of(ROOT / "docs/wire-format.md"), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.broker)])
def cluster(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(request.param)
    return found


def test_a_bare_producer_publishes_a_job_that_runs(cluster: Broker, prefix: str, wait_until: Callable[..., None]) -> None:
    """The page's example, on a broker: it runs with its arguments and its id, in the partition in which the key belongs."""
    app = App("billing", jobs_prefix=prefix, system_prefix=f"{prefix}-s", partitions=4, provision="auto")
    app._broker = cluster
    seen: list[tuple[str, int, str, int]] = []

    @app.job(queue="invoices", key="customer_id")
    def send_invoice(job: Job, invoice_id: int, customer_id: str) -> None:
        seen.append((job.id, invoice_id, customer_id, job.partition))

    process = app.process()
    process.start()
    try:
        example = wire_example().replace("jobs.invoices", f"{prefix}.invoices")
        exec(compile(example, "wire-format.md", "exec", dont_inherit=True), {"BOOTSTRAP": cluster.bootstrap})  # type: ignore[attr-defined]
        wait_until(lambda: seen, 30)
    finally:
        process.stop()
        process.join(30)

    count = cluster.admin().topics([f"{prefix}.invoices"])[f"{prefix}.invoices"].partitions
    assert seen == [("inv-7", 7, "acme", partition_of(b"acme", count))]


def test_the_bytes_of_the_kcat_and_go_examples_are_that_job(streamjobs_testing: Callable[[App], Any]) -> None:
    """`0E 08 61 63 6D 65` without framing."""
    from streamjobs.core.record import CONTENT_TYPE_UNFRAMED, Record

    page = text_of(ROOT / "docs/wire-format.md")
    assert "0E 08 61 63 6D 65" in page
    assert "content-type=" + CONTENT_TYPE_UNFRAMED.decode() in page
    app = App("billing")
    seen: list[tuple[int, str]] = []

    @app.job(queue="invoices", key="customer_id")
    def send_invoice(invoice_id: int, customer_id: str) -> None:
        seen.append((invoice_id, customer_id))

    t = streamjobs_testing(app)
    producer = t.broker.producer()
    headers = [("ce_type", b"send_invoice"), ("ce_id", b"inv-7"), ("content-type", CONTENT_TYPE_UNFRAMED)]
    producer.send(Record("jobs.invoices", bytes.fromhex("0E 08 61 63 6D 65"), b"acme", headers))
    producer.flush(1)
    t.run()

    assert seen == [(7, "acme")]


def schema_table() -> Iterator[tuple[str, str]]:
    page = text_of(ROOT / "docs/wire-format.md")
    for python, avro in re.findall(r"^\| `(int.*?)` \| `(long.*?)` \|$", page, re.MULTILINE):
        yield from zip(python.split("`, `"), avro.split("`, `"), strict=True)


@pytest.mark.parametrize(("python", "avro"), list(schema_table()))
def test_python_types_become_these_avro_types(python: str, avro: str) -> None:
    from streamjobs.avro.codec import Payload

    def job(value: Any) -> None: ...

    job.__annotations__["value"] = {"int": int, "float": float, "bool": bool, "str": str, "bytes": bytes}[python]

    assert Payload(job, name="job").schema["fields"] == [{"name": "value", "type": avro}]


@pytest.mark.parametrize(
    "python", [datetime, date, time, UUID, timedelta, Decimal, Annotated[Decimal, Field(max_digits=12, decimal_places=2)]], ids=str
)
def test_logical_types_are_told_to_those_who_write_them(python: Any) -> None:
    """A row of the table has the type and its logical type as the schema has them: a publisher in Java can't guess that a `Decimal` is text."""
    from streamjobs.avro.codec import Payload

    def job(value: Any) -> None: ...

    job.__annotations__["value"] = python
    (schema,) = (field["type"] for field in Payload(job, name="job").schema["fields"])
    name = python.__name__ if isinstance(python, type) else "Annotated[Decimal, Field(max_digits=12, decimal_places=2)]"

    (row,) = (line for line in text_of(ROOT / "docs/wire-format.md").splitlines() if line.startswith("| ") and f"`{name}`" in line.split("|")[1])
    assert f"`{schema['logicalType']}`" in row
    assert schema["type"] in ("int", "long") or f"`{schema['type']}`" in row


def test_partitions_named_here_are_real(memory: Broker) -> None:
    """`TopicPartition` and the origin in the header table have the shape that the code gives them."""
    from streamjobs.core.record import origin_of

    tp = TopicPartition("jobs.invoices", 3)
    origin = origin_of(tp.topic, bytes.fromhex("1f2e3d4c"), tp.partition, 70012)

    assert f"`{origin}`" in text_of(ROOT / "docs/wire-format.md")
