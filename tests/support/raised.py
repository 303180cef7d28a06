"""Exceptions that don't let themselves be handled as others: users write such, mostly by mistake."""

from __future__ import annotations

from dataclasses import dataclass


class NoText(Exception):
    """Its `__str__` fails."""

    def __str__(self) -> str:
        return f"order {self.order}"  # type: ignore[attr-defined]


class Interrupting(Exception):
    """Its `__str__` fails with what is no `Exception`."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class NotTrue(Exception):
    """Nobody may ask whether it is true, as of an array."""

    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


@dataclass(frozen=True)
class Frozen(Exception):
    """Nobody may set its attributes: its traceback and its cause neither."""

    code: int


class Varying(ExceptionGroup[ValueError]):
    """Says something else each time, and can't be made of a text alone."""

    said = 0

    def __str__(self) -> str:
        type(self).said += 1
        return f"for the {self.said}th time"


def hostile() -> list[BaseException]:
    return [NoText(), Interrupting(), NotTrue("neither"), Frozen(7), Varying("two", [ValueError(1), ValueError(2)])]
