"""Finding the app: where it may be named, and what is said when it can't be had."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from streamjobs.app import App
from streamjobs.cli.session import Session, load_app
from streamjobs.errors import JobTypeError, SettingsError, UsageError

Module = Callable[[str], str]


def refusal(ref: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_app(ref)
    return str(caught.value)


def test_the_app_is_imported_from_the_working_directory(shop: str, directory: Path) -> None:
    app = load_app(f"{shop}:app")

    assert isinstance(app, App)
    assert app.queues() == ["invoices", "mails"]
    assert sys.path[0] == str(directory)


def test_the_modules_that_declare_job_types_are_imported_too(module: Module) -> None:
    jobs = module("import __main__\n")
    main = module(f"from streamjobs.app import App\napp = App('a', imports=['{jobs}'])\n")

    load_app(f"{main}:app")

    assert jobs in sys.modules


def test_the_app_may_be_an_attribute_of_something(module: Module) -> None:
    name = module("from streamjobs.app import App\nclass Site:\n    jobs = App('a')\n")

    assert load_app(f"{name}:Site.jobs").name == "a"


@pytest.mark.parametrize("ref", ["shop", "shop:", ":app", ""])
def test_what_is_no_module_and_attribute_is_refused_with_an_example(ref: str) -> None:
    assert "is not MODULE:ATTR: write it such as" in refusal(ref)


def test_a_module_that_is_not_there_is_named_with_where_it_was_looked_for(directory: Path) -> None:
    message = refusal("nowhere.shop:app")

    assert message.startswith("app 'nowhere.shop:app': no module named 'nowhere'")
    assert str(directory) in message


def test_a_module_that_the_app_itself_lacks_is_another_mistake(module: Module) -> None:
    name = module("import not_installed\n")

    message = refusal(f"{name}:app")

    assert "No module named 'not_installed'" in message
    assert f"{name}.py:1" in message


def test_an_app_that_fails_while_it_is_imported_says_where(module: Module) -> None:
    name = module("x = 1\n\nx.y\n")

    message = refusal(f"{name}:app")

    assert "AttributeError" in message
    assert f"{name}.py:3" in message


def test_a_job_module_that_fails_says_where(module: Module) -> None:
    jobs = module("1 / 0\n")
    main = module(f"from streamjobs.app import App\napp = App('a', imports=['{jobs}'])\n")

    assert f"{jobs}.py:1" in refusal(f"{main}:app")


def test_a_job_type_that_is_declared_wrongly_says_so_itself(module: Module) -> None:
    name = module("from streamjobs.app import App\napp = App('a')\n@app.job(key='nope')\ndef f(x: int) -> None: ...\n")

    with pytest.raises(JobTypeError, match="nope"):
        load_app(f"{name}:app")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("colour='red'", r"@app.job has no option 'colour' \(.*{name}\.py:4\): there is name, queue, key, order, timeout, retry, "),
        ("time_out='1m'", r"@app.job has no option 'time_out' \(.*{name}\.py:4\): did you mean timeout\?"),
        ("publisher=None", "@app.job has no option 'publisher'"),
    ],
)
def test_an_option_that_there_is_not_is_told_where_it_is_written(option: str, says: str, module: Module) -> None:
    name = module(f"from streamjobs.app import App\napp = App('a')\n\n@app.job({option})\ndef f(x: int) -> None: ...\n")

    with pytest.raises(JobTypeError, match=says.format(name=name)):
        load_app(f"{name}:app")


def test_a_value_that_fails_in_this_package_is_told_where_it_is_written(module: Module) -> None:
    name = module("from streamjobs.app import App\napp = App('a')\n\n@app.job(timeout='soon')\ndef f(x: int) -> None: ...\n")

    message = refusal(f"{name}:app")

    assert "'soon' is not a duration" in message and f"{name}.py:4" in message


def test_a_missing_attribute_is_answered_with_the_app_that_is_there(shop: str) -> None:
    assert refusal(f"{shop}:application") == (
        f"app '{shop}:application': {shop} has no 'application': did you mean {shop}:app?"
    )


def test_what_is_no_app_is_refused(shop: str) -> None:
    assert refusal(f"{shop}:number") == f"{shop}:number is of type int, not a streamjobs.App: did you mean {shop}:app?"


# --- where it is named ------------------------------------------------------------------------------------------------


def test_the_option_wins_over_the_environment_over_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    with pytest.raises(UsageError, match="which app\\?"):
        _ = session.app_ref

    (directory / "streamjobs.toml").write_text('app = "in_file:app"\n')
    assert session.app_ref == "in_file:app"

    monkeypatch.setenv("STREAMJOBS_APP", "in_env:app")
    assert session.app_ref == "in_env:app"

    session.app_ref = "option:app"
    assert session.app_ref == "option:app"


def test_the_settings_file_that_was_named_reaches_the_app(shop: str, directory: Path) -> None:
    (directory / "other.toml").write_text("partitions = 5\n")
    session = Session()
    session.app_ref = f"{shop}:app"

    session.config = directory / "other.toml"

    assert session.app.settings.partitions == 5
    assert session.settings is session.app.settings


def test_settings_can_be_read_without_an_app(directory: Path) -> None:
    (directory / "streamjobs.toml").write_text("partitions = 5\n")

    assert Session().settings.partitions == 5


def test_a_broken_settings_file_is_told_before_the_app_is_missed(directory: Path) -> None:
    (directory / "streamjobs.toml").write_text("partitoins = 5\n")

    with pytest.raises(SettingsError, match="did you mean partitions"):
        _ = Session().app_ref
