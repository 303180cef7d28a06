"""The picture of the house (DESIGN.md §1), held against the code: who imports whom, which package has which owner, what `core`
may know, what the public names are, and what an import costs."""

from __future__ import annotations

import ast
import inspect
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "streamjobs"

#: Lowest first. A unit may import units of lower layers; those of one layer are siblings that don't know each other. A unit is a
#: package, or a module where one module has a place of its own.
LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the tree of errors", ("errors",)),
    ("decisions, pure", ("core",)),
    ("formats", ("telemetry.wire", "telemetry.ended")),
    ("ports", ("broker", "clock", "settings", "telemetry.catalogue")),
    ("jobs, and what is told of them", ("job", "telemetry.events")),
    ("what a cluster is asked for in common", ("deployment", "tables")),
    ("orders and notes", ("orders", "audit")),
    ("backlogs", ("backlog",)),
    ("adapters and shell", ("kafka", "avro", "telemetry", "publish", "provision", "admin", "worker", "dead_letters")),
    ("the broker in memory", ("testing",)),
    ("composition", ("app",)),
    ("the sample application", ("demo",)),
    ("people's side", ("cli", "pytest_plugin")),
    ("the program", ("__main__",)),
)

#: Imports against the picture: (importing module, imported unit) → why it stands.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("job", "avro"): "JobType.payload is derived at its first use, so that declaring a job type loads no pydantic",
    ("job", "publish"): "type only: App hands the publisher in",
    ("publish", "app"): "type only: App hands itself in",
    ("worker.decode", "avro"): "type only: App hands the schema store in",
    ("worker.process", "avro"): "type only: App hands the schema store in",
    ("testing.app", "app"): "type only: App makes it",
}

#: A package of somebody else's → the only modules (or packages of ours) that import it.
OWNERS: dict[str, tuple[str, ...]] = {
    "confluent_kafka": ("kafka", "avro.registry"),
    "fastavro": ("avro",),
    "pydantic": ("avro", "settings"),
    "pydantic_settings": ("settings",),
    "typing_extensions": ("avro",),  # comes with pydantic, which tells its TypedDict from typing's
    "prometheus_client": ("telemetry.metrics", "monitor"),
    "opentelemetry": ("telemetry.tracing",),
    "click": ("cli",),
    "rich": ("cli",),
    "pytest": ("pytest_plugin",),
}
#: Comes with another package, and is not declared for that reason.
BROUGHT_ALONG = {"typing_extensions": "pydantic"}

#: All that `core` may import besides itself and `errors`: nothing with a thread, a clock, randomness, a file or a log in it.
PURE = frozenset(
    {
        "__future__", "binascii", "bisect", "collections", "dataclasses", "datetime", "difflib", "enum", "fnmatch", "functools",
        "hashlib", "heapq", "itertools", "json", "math", "operator", "re", "types", "typing", "urllib.parse", "zlib",
    }
)  # fmt: skip

#: What `import streamjobs` and declaring job types must not load.
HEAVY = (
    "confluent_kafka", "fastavro", "pydantic", "pydantic_settings", "prometheus_client", "opentelemetry", "click", "rich", "asyncio",
)  # fmt: skip

PUBLIC = {
    "App", "Backoff", "BrokerError", "Cancel", "Crashed", "DecodeError", "Job", "JobCancelled", "JobType", "JobTypeError", "PayloadError",
    "ProvisionError", "PublishError", "Receipt", "Reject", "ReplayError", "Retry", "RetryAfter", "SettingsError", "Snooze",
    "StreamjobsError", "Timeout", "UsageError", "__version__",
}  # fmt: skip


class Import(NamedTuple):
    """`module` imports `target`, both without the leading `streamjobs.`."""

    module: str
    target: str
    ours: bool
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


# --- reading the code -----------------------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__") if name != "__init__" else ""] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def imports() -> tuple[Import, ...]:
    """Every import of the package, those inside functions and under TYPE_CHECKING too."""
    return tuple(found for name, path in modules().items() for found in imports_of(name, path))


def imports_of(module: str, path: Path) -> Iterator[Import]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield _import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for name in _targets(node):
                yield _import(module, name, node.lineno)


def _targets(node: ast.ImportFrom) -> Iterator[str]:
    """`from streamjobs import orders` and `from streamjobs.telemetry import wire` import modules, the rest names of one."""
    known = modules()
    module = node.module or ""
    below = "" if module == "streamjobs" else module.removeprefix("streamjobs.") + "."
    for alias in node.names:
        is_module = module.partition(".")[0] == "streamjobs" and below + alias.name in known
        yield f"{module}.{alias.name}" if is_module else module


def _import(module: str, name: str, line: int) -> Import:
    ours = name.partition(".")[0] == "streamjobs"
    return Import(module, name.removeprefix("streamjobs").removeprefix(".") if ours else name, ours, line)


def within(module: str, unit: str) -> bool:
    return module == unit or module.startswith(unit + ".")


def unit_of(module: str) -> str:
    """The unit with the longest name that has this module."""
    units = [unit for _, layer in LAYERS for unit in layer if within(module, unit)]
    return max(units, key=len, default="")


def level_of(unit: str) -> int:
    return next(level for level, (_, layer) in enumerate(LAYERS) if unit in layer)


# --- layers ---------------------------------------------------------------------------------------------------------------


def against_the_picture() -> list[Import]:
    return [found for found in imports() if found.ours and found.module and _is_upward(found)]


def _is_upward(found: Import) -> bool:
    importer, imported = unit_of(found.module), unit_of(found.target)
    if importer == imported or not found.target:
        return False
    return level_of(imported) >= level_of(importer)


def test_every_module_has_a_place_in_the_picture() -> None:
    homeless = [name for name in modules() if name and not unit_of(name)]

    assert not homeless, f"say in LAYERS where they belong: {homeless}"


def test_imports_go_down_the_layers() -> None:
    """Shell and adapters are siblings that meet only in `app.py` and `cli/`."""
    wrong = [found for found in against_the_picture() if (found.module, unit_of(found.target)) not in EXCEPTIONS]

    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_no_exception_has_outlived_its_reason() -> None:
    used = {(found.module, unit_of(found.target)) for found in against_the_picture()}

    assert EXCEPTIONS.keys() <= used, f"no longer needed: {EXCEPTIONS.keys() - used}"


@pytest.mark.parametrize(("module", "unit"), [pair for pair, why in EXCEPTIONS.items() if why.startswith("type only")])
def test_what_is_imported_for_types_only_is_not_loaded(module: str, unit: str) -> None:
    """Each of these imports stands under `if TYPE_CHECKING:`."""
    guarded = {
        inner.lineno
        for node in ast.walk(tree_of(modules()[module]))
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom)
    }
    lines = {found.line for found in imports() if found.module == module and unit_of(found.target) == unit}

    assert lines <= guarded


def test_the_package_itself_imports_only_when_asked() -> None:
    """`streamjobs/__init__.py` has the names, and loads each when it is first used."""
    heads = [node for node in tree_of(PACKAGE / "__init__.py").body if isinstance(node, ast.Import | ast.ImportFrom)]
    loaded = {node.module for node in heads if isinstance(node, ast.ImportFrom)}

    assert loaded == {"__future__", "importlib", "typing"}


# --- packages of others ---------------------------------------------------------------------------------------------------


def foreign() -> list[Import]:
    return [f for f in imports() if not f.ours and f.target.partition(".")[0] not in sys.stdlib_module_names]


def test_each_package_has_one_owner() -> None:
    wrong = [
        found
        for found in foreign()
        if not any(within(found.module, owner) for owner in OWNERS.get(found.target.partition(".")[0], ()))
    ]

    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_each_package_is_declared() -> None:
    """What is imported is installed: pyproject.toml names it, and names nothing that nobody imports."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {_name(requirement) for requirement in project["dependencies"]}
    optional = {_name(requirement) for requirement in project["optional-dependencies"]["otel"]}
    imported = {found.target.partition(".")[0] for found in foreign()} - {"pytest"}
    wanted = {BROUGHT_ALONG.get(name, name) for name in imported}

    assert wanted == {*required, *("opentelemetry" if name == "opentelemetry_sdk" else name for name in optional)}


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_-]+", requirement)
    assert match
    return match[0].replace("-", "_")


# --- core is pure ---------------------------------------------------------------------------------------------------------


def test_core_imports_nothing_that_acts() -> None:
    allowed = {*PURE, "collections.abc"}
    wrong = [
        found
        for found in imports()
        if within(found.module, "core") and not found.ours and found.target not in allowed
    ]

    assert not wrong, "\n" + "\n".join(map(str, wrong))


def test_core_knows_no_now() -> None:
    """`now` is an argument: no clock is read, in whatever way (datetime has one too), nothing is opened or printed."""
    forbidden = {"now", "today", "utcnow", "fromtimestamp", "urandom"}
    calls = [
        f"{path.name}:{node.lineno}: {ast.unparse(node.func)}"
        for name, path in modules().items()
        if within(name, "core")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and (_is_clock(node.func, forbidden) or _is_builtin_io(node.func))
    ]

    assert not calls


def _is_clock(function: ast.expr, forbidden: set[str]) -> bool:
    """`datetime.now(…)`, and anything else that is called so: core is given instants, it asks nobody for them."""
    return isinstance(function, ast.Attribute) and function.attr in forbidden


def _is_builtin_io(function: ast.expr) -> bool:
    return isinstance(function, ast.Name) and function.id in {"open", "print", "input"}


# --- public names, and what an import loads -------------------------------------------------------------------------------


def test_public_names_are_exactly_these() -> None:
    import streamjobs

    assert set(streamjobs.__all__) == PUBLIC
    assert list(streamjobs.__all__) == sorted(streamjobs.__all__)
    assert dir(streamjobs) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    import streamjobs

    thing = getattr(streamjobs, name)

    if inspect.isclass(thing):
        assert inspect.getdoc(thing), f"{name} has no docstring"


def test_every_public_error_and_signal_is_public() -> None:
    """An error that a user may catch, or a signal that a handler may raise, needs no other import."""
    from streamjobs import errors, job

    inner = {"HeaderError", "UnknownSchemaError"}  # kinds of DecodeError that become dead letters, never a user's exception
    raised = {name for name, thing in vars(errors).items() if inspect.isclass(thing)} - inner
    signals = {thing.__name__ for thing in job.Signal.__subclasses__()}

    assert raised | signals <= PUBLIC


LOADS = """
import sys
{statement}
print(*(name for name in {heavy!r} if name in sys.modules))
"""
DECLARING = """
from streamjobs import App, Backoff, Job, Reject, Retry
app = App("billing", imports=["billing.jobs"], partitions=4)
@app.job(queue="invoices", key="customer_id", timeout="30s", retry=Retry(attempts=8, backoff=Backoff.exponential("5s", max="1h")))
def send_invoice(job: Job, invoice_id: int, customer_id: str) -> None: ...
send_invoice(invoice_id=7, customer_id="acme")
"""


@pytest.mark.parametrize("statement", ["import streamjobs", DECLARING], ids=["import", "declaring job types"])
def test_importing_and_declaring_load_nothing_heavy(statement: str) -> None:
    """A web process that only declares job types pays for no broker client, no schema library and no event loop."""
    code = LOADS.format(statement=statement, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    assert run.stderr == ""
    assert run.stdout.split() == []


def test_the_command_line_connects_nothing_to_show_its_help() -> None:
    code = LOADS.format(statement="from streamjobs.cli import root\nroot.get_help(root.make_context('streamjobs', [], "
                        "resilient_parsing=True))", heavy=(*HEAVY[:6], "asyncio"))  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)

    assert run.stderr == ""
    assert run.stdout.split() == []


# --- the tree of errors ---------------------------------------------------------------------------------------------------


def drawn_errors() -> dict[str, str]:
    """Class → its base, as the docstring of `streamjobs.errors` draws them."""
    from streamjobs import errors

    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}(?P<lines>[│├└─ ]*)(?P<name>[A-Z]\w+Error)\b", line)
        if match:
            depth = len(match["lines"]) // 4
            del above[depth:]
            drawn[match["name"]] = above[-1] if above else "Exception"
            above.append(match["name"])
    return drawn


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    from streamjobs import errors

    real = {name: thing.__bases__[0].__name__ for name, thing in vars(errors).items() if inspect.isclass(thing)}

    assert drawn_errors() == real


def test_every_error_of_ours_is_in_the_tree() -> None:
    """No module has an error of its own that a caller would have to know. What is raised and caught inside is no such error."""
    inside = {
        "avro.reader.Malformed", "avro.resolution.Mismatch", "avro.shapes.Unfit",  # become DecodeError, JobTypeError
        "worker.Stopped",  # ends a process with exit code 75
        "worker.executors.exceptions.ChildTraceback",  # shows where in a child process it happened
        "job.Timeout", "job.Crashed",  # what a run is said to have failed with: it took too long, or its process died
    }  # fmt: skip
    elsewhere = {name: path for name, path in modules().items() if unit_of(name) not in {"errors", "demo"}}
    strangers = {f"{name}.{node.name}" for name, path in elsewhere.items() for node in ast.walk(tree_of(path)) if _is_error(node)}

    assert strangers <= inside


def _is_error(node: ast.AST) -> bool:
    """A class of errors that others can see."""
    if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
        return False
    bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    return any(base.endswith("Error") or base == "Exception" for base in bases)


def test_every_error_says_who_is_at_fault() -> None:
    from streamjobs import errors

    for name in drawn_errors():
        assert getattr(errors, name).__doc__, name


# --- functions, and what has no place in the tree -------------------------------------------------------------------------

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Functions that are long and straight: one argument or branch a line, nothing nested. The others stay below LONGEST.
LONGEST = 80


def function_lengths() -> dict[str, int]:
    """Lines per function without its docstring, signature and decorators included as the code bases we compare with count them."""
    lengths = {}
    for name, path in modules().items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, FUNCTIONS):
                lengths[f"{name}:{node.lineno} {node.name}"] = _lines(node)
    return lengths


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return max(total, 1)


def test_functions_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Half of them have at most 8 lines, nine of ten at most 31: the figures of the code bases we admire."""
    lengths = function_lengths()
    ordered = sorted(lengths.values())
    median, p90 = statistics.median(ordered), ordered[int(len(ordered) * 0.9)]
    longest = sorted(lengths, key=lengths.__getitem__)[-3:]
    with capsys.disabled():
        print(f"\n{len(ordered)} functions: median {median:g} lines, p90 {p90}, longest {lengths[longest[-1]]} ({longest[-1]})")

    assert median <= 8
    assert p90 <= 31
    assert not [name for name, length in lengths.items() if length > LONGEST]


def test_no_module_is_a_drawer() -> None:
    """A module is found by its name: there is no `utils`, no `helpers`, no `common`, no `base`."""
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "base", "lib"}

    assert not [name for name in modules() if name.rpartition(".")[2] in drawers]


def test_modules_print_and_set_up_nothing_when_they_are_imported() -> None:
    found = []
    for name, path in modules().items():
        for node in tree_of(path).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                found.append(f"{name}: {ast.unparse(node.value)}")

    allowed = {
        "app: os.register_at_fork(after_in_child=_after_fork)",  # a forked child needs locks that nobody holds
        "publish: os.register_at_fork(after_in_child=_after_fork)",  # a forked child needs a producer of its own
        "kafka.forks: os.register_at_fork(after_in_child=_after_fork)",  # and an admin client, and frees none of its parent's
        "worker.executors: os.register_at_fork(after_in_child=_after_fork)",  # and runs nothing of its parent's
        "publish: atexit.register(_flush_all)",  # interpreter exit flushes
    }
    assert not [call for call in found if call not in allowed and not call.startswith("__main__")]


def test_nothing_prints_but_the_command_line() -> None:
    printing = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        if unit_of(name) not in {"cli", "demo"}
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert not printing


def texts() -> Iterator[tuple[str, int, str]]:
    """Every line of every text file that git keeps."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file() or path.suffix in {".png", ".ico", ".woff2"}:
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            yield name, number, line


#: Written with a hole in each, so that this file does not accuse itself.
UNDONE = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")
MACHINE = re.compile(rf"(?<![\w.}}*])/(work|root)/\w|{re.escape(str(Path.home()))}/|{re.escape(str(ROOT))}\b")
HOST = re.compile(r"https?://([A-Za-z0-9.-]+\.[A-Za-z]{2,})")
#: Hosts that may be named: where a specification, a source or the licence lies, or examples. None from which packages come.
HOSTS = {
    "avro.apache.org", "maven.apache.org", "www.apache.org", "kafka.apache.org", "cloudevents.io", "cwiki.apache.org",
    "github.com", "json-schema.org", "keepachangelog.com", "opentelemetry.io", "semver.org", "www.rfc-editor.org", "www.w3.org",
}  # fmt: skip


def test_nothing_is_left_undone() -> None:
    found = [f"{name}:{number}: {line.strip()}" for name, number, line in texts() if UNDONE.search(line)]

    assert not found


def test_the_tree_names_no_machine() -> None:
    """No path of the machine that it was written on, and no host but those of public specifications."""
    paths = [f"{name}:{number}: {line.strip()}" for name, number, line in texts() if MACHINE.search(line)]
    hosts = {(name, host) for name, _, line in texts() for host in HOST.findall(line) if host not in HOSTS and "example" not in host}

    assert not paths
    assert not hosts


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_no_module_counts_on_another_one_being_imported_first(order: str) -> None:
    names = sorted((f"streamjobs.{name}" for name in modules() if name not in {"", "__main__"}), reverse=order == "backwards")
    script = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    run = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)

    assert run.returncode == 0, run.stderr
