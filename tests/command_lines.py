"""Command lines as they stand in documents, compose files and messages: do they name commands, options and arguments that exist?"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

import click

from streamjobs.cli import root
from streamjobs.cli.session import Session

_FENCE = re.compile(r"^```(?:sh|console|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`(?:\$ )?(streamjobs(?: [^`\n]*)?)`")
_WHERE = re.compile(r"(?:^|[|;(]|&&|\bexec [a-z0-9-]+|bin/| )\s*(streamjobs) ")


def fault(words: Sequence[str]) -> str | None:
    """What is wrong with the words after `streamjobs`; None: click takes them."""
    command: click.Command = root
    context: click.Context | None = None
    rest = list(words)
    try:
        while True:
            context = command.make_context(command.name, rest, parent=context, obj=Session())
            if not isinstance(command, click.Group):
                return None
            rest = [*context._protected_args, *context.args]
            _, below, rest = command.resolve_command(context, rest)
            assert below is not None
            command = below
    except click.exceptions.Exit:
        return None  # --help, --version
    except click.ClickException as error:
        message = error.format_message()
        return None if message.endswith("No such file or directory") else message  # an example's file is the reader's


def resolves(words: Sequence[str]) -> str | None:
    """As `fault` for a command that is only named (`streamjobs group seek`), its options and arguments left out."""
    command: click.Command = root
    for word in words:
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        below = command.get_command(click.Context(command), word)
        if below is None:
            return f"there is no {word!r} below {command.name!r}"
        command = below
    return None if not words or command is not root or words[0].startswith("-") else f"{words[0]!r} is no command"


def in_fences(text: str) -> Iterator[list[str]]:
    """Complete command lines in shell blocks: the words after `streamjobs`."""
    for block in _FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from _of_line(line)


def _of_line(line: str) -> Iterator[list[str]]:
    line = line.removeprefix("$ ")
    match = _WHERE.search(line)
    if match and not line.startswith("#") and "eval" not in line:
        lexer = shlex.shlex(line[match.end(1) :], posix=True, punctuation_chars="|;&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word in {"|", ";", "&&", ">", "&"}:
                break
            words.append(word)
        yield words


def in_backticks(text: str) -> Iterator[list[str]]:
    """Commands that are named in running text: the words after `streamjobs`, up to what is not said of them."""
    for command in _INLINE.findall(_FENCE.sub("", text)):
        words = command.split()[1:]
        yield [word for word in words if not word.isupper() and "…" not in word and "{" not in word]
