"""One run of the command line: which app, which settings file, how to print; and the app, loaded when it is first needed."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from streamjobs.cli import render
from streamjobs.cli.render import Column, Output
from streamjobs.errors import StreamjobsError, UsageError

if TYPE_CHECKING:
    from streamjobs.app import App
    from streamjobs.settings import Settings


class Session:
    """What the common options said. `output` is `table` or `json`."""

    def __init__(self) -> None:
        self.app_option = ""
        self.output: Output = "table"
        self.verbose = False

    @property
    def config(self) -> str:
        """The settings file in force, if one was named."""
        return os.environ.get("STREAMJOBS_CONFIG", "")

    @config.setter
    def config(self, path: Path | str) -> None:
        """In the environment, so that the app's own module and the processes that it starts read the same file."""
        os.environ["STREAMJOBS_CONFIG"] = str(path)

    @property
    def app_ref(self) -> str:
        """The app as MODULE:ATTR, from `--app`, STREAMJOBS_APP or streamjobs.toml. Raises UsageError if nobody said it."""
        found = self.app_option or self._configured_app()
        if not found:
            raise UsageError("which app? Name it with -A MODULE:ATTR, STREAMJOBS_APP, or `app` in streamjobs.toml")
        return found

    @app_ref.setter
    def app_ref(self, value: str) -> None:
        self.app_option = value

    def _configured_app(self) -> str:
        from streamjobs.settings import load

        return load().app

    @cached_property
    def app(self) -> App:
        """The app with all its job types declared. Raises UsageError that says what is wrong with it."""
        return load_app(self.app_ref)

    @property
    def settings(self) -> Settings:
        """The app's settings, or those outside of any code when there is no app."""
        if self.app_option or self._configured_app():
            return self.app.settings
        from streamjobs.settings import load

        return load()

    def show(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> None:
        """Prints data on stdout, as `--output` says."""
        render.show(rows, columns, self.output)

    def say(self, text: str) -> None:
        """Talk: on stderr, so that data stays clean."""
        click.echo("\n".join(map(render.clean, text.splitlines())), err=True)

    def close(self) -> None:
        """Closes the app's connections, if it was loaded."""
        if "app" in self.__dict__:
            self.app.close()


def load_app(ref: str) -> App:
    """The App that MODULE:ATTR names. The working directory is importable, as it is for `python -m`."""
    from streamjobs.app import App

    name, colon, attribute = ref.partition(":")
    if not (name and colon and attribute):
        raise UsageError(f"app {ref!r} is not MODULE:ATTR: write it such as {name or 'billing'}:app")
    module = _imported(name, ref)
    found = _attribute(module, attribute, ref)
    if not isinstance(found, App):
        raise UsageError(f"{ref} is of type {type(found).__name__}, not a streamjobs.App{_apps_in(module, attribute)}")
    found.ref = ref
    return _with_job_types(found, ref)


def _imported(name: str, ref: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"app {ref!r}: no module named {error.name!r} in {here} nor in Python's path: "
                "run this where it can be imported, or correct the name"
            ) from error
        raise _broken(ref, error) from error
    except StreamjobsError:
        raise
    except Exception as error:
        raise _broken(ref, error) from error


def _attribute(module: ModuleType, attribute: str, ref: str) -> object:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"app {ref!r}: {module.__name__} has no {attribute!r}{_apps_in(module, attribute)}")
        found = getattr(found, part)
    return found


def _with_job_types(app: App, ref: str) -> App:
    try:
        return app.load()
    except StreamjobsError:
        raise
    except Exception as error:
        raise _broken(ref, error) from error


def _broken(ref: str, error: Exception) -> UsageError:
    """The user's own code failed while it was imported: say where, in their terms."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THEIRS)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ref
    return UsageError(f"app {ref!r} can't be imported: {type(error).__name__}: {error} ({where}); -v shows the way there")


#: Where no line of a user's is: Python's importing, and this package.
_NOT_THEIRS = ("<frozen", f"{Path(__file__).parents[1]}{os.sep}")


def _apps_in(module: ModuleType, attribute: str) -> str:
    from streamjobs.app import App

    names = [name for name, value in vars(module).items() if isinstance(value, App) and name != attribute]
    return f": did you mean {module.__name__}:{names[0]}?" if names else ""
