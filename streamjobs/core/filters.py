"""Filters over dead letters, as people write them: `error=Timeout`, `message~=refused`, `age>2h`, `attempt>=5`.

The same words everywhere: in Python, on the command line, in a search box. Conditions are joined by *and*. There are no regular
expressions: a pattern that takes minutes on one message would stop whoever asked.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from streamjobs.core import duration
from streamjobs.core.failures import SHORT
from streamjobs.core.letters import Letter
from streamjobs.core.lifecycle import Reason
from streamjobs.errors import UsageError

#: What letters can be grouped by, and their text compared. Empty where a letter has none.
TEXTS: Mapping[str, Callable[[Letter], str]] = {
    "error": lambda letter: letter.meta.error_type,
    "type": lambda letter: letter.meta.job_type,
    "reason": lambda letter: letter.meta.reason,
    "key": lambda letter: letter.key or "",
    "message": lambda letter: letter.meta.error_message,
    "tag": lambda letter: letter.meta.tags,
    "id": lambda letter: letter.meta.job_id,
    "origin": lambda letter: letter.origin,
    "fingerprint": lambda letter: letter.fingerprint[:SHORT],
}
_NUMBERS: Mapping[str, Callable[[Letter], float]] = {
    "attempt": lambda letter: letter.meta.attempt,
    "run": lambda letter: letter.meta.run,
    "replays": lambda letter: letter.meta.replays,
    "size": lambda letter: letter.size,
}
_ORDER: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
#: Fields that name something: with `=` and no value they would choose by what is not there, and mostly by mistake.
_NAMES = ("tag", "id", "origin", "fingerprint")
_CONDITION = re.compile(r"\s*([a-z]+)\s*(~=|!=|>=|<=|=|>|<)(.*)", re.DOTALL)

Test = Callable[[Letter, float], bool]

FIELDS = (*TEXTS, *_NUMBERS, "age", "parked")


@dataclass(frozen=True, slots=True)
class Filter:
    """Letters for which every condition holds, and that have one of these letter or job ids. `ids` None: they may have any; of an
    empty set no letter has one."""

    conditions: tuple[str, ...] = ()
    ids: frozenset[str] | None = None
    _tests: tuple[Test, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def of(cls, conditions: Iterable[str] = (), ids: str | Iterable[str] | None = None) -> Filter:
        """Raises UsageError for a condition or an id that is none."""
        texts = tuple(text.strip() for text in conditions)
        return cls(texts, None if ids is None else _ids(ids), tuple(map(_test, texts)))

    def matches(self, letter: Letter, now: float) -> bool:
        """`now` is what `age` counts from: the instant of the plan, so that what was shown and what is done are the same."""
        if self.ids is not None and letter.id not in self.ids and letter.meta.job_id not in self.ids:
            return False
        return all(test(letter, now) for test in self._tests)

    def and_(self, other: Filter) -> Filter:
        """Both."""
        ids = other.ids if self.ids is None else self.ids if other.ids is None else self.ids & other.ids
        return Filter(self.conditions + other.conditions, ids, self._tests + other._tests)

    def __bool__(self) -> bool:
        return bool(self.conditions) or self.ids is not None

    def __str__(self) -> str:
        return " and ".join([*self.conditions, *self._named()]) or "all"

    def _named(self) -> list[str]:
        if self.ids is None:
            return []
        return [f"id in ({', '.join(sorted(self.ids)[:3])}{', …' if len(self.ids) > 3 else ''})"]


ALL = Filter()


def _ids(given: str | Iterable[str]) -> frozenset[str]:
    """*Bites*: `--id "$ID"`, and the shell knows no ID: it would choose every letter whose job has no id."""
    found = frozenset([given] if isinstance(given, str) else given)
    if "" in found:
        raise UsageError("an id is empty: name a letter or a job; a shell variable that is not set is empty, too")
    return found


def _test(text: str) -> Test:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no condition: write FIELD=VALUE, FIELD~=PART, age>2h or attempt>=5; fields: {', '.join(FIELDS)}")
    name, sign, value = found[1], found[2], found[3].strip()
    if name in TEXTS:
        return _of_text(name, sign, value, text)
    if name in _NUMBERS:
        return _of_number(_NUMBERS[name], sign, _number(value, text), text)
    if name == "age":
        return _of_age(sign, _seconds(value, text), text)
    if name == "parked":
        return _of_parked(sign, value, text)
    near = get_close_matches(name, FIELDS, n=1)
    raise UsageError(f"letters have no {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"there is {', '.join(FIELDS)}"))


def _of_text(name: str, sign: str, value: str, text: str) -> Test:
    if sign not in ("=", "!=", "~="):
        raise UsageError(f"{text!r}: {name} is text, so compare it with =, != or ~= (has this part)")
    if not value:
        _check_empty(name, sign, text)
    if name == "reason" and sign != "~=":
        _check_reason(value)
    if name == "tag" and sign != "~=":
        return lambda letter, _: (value in letter.tags) is (sign == "=")
    of = TEXTS[name]
    if name == "fingerprint" and sign != "~=":
        return lambda letter, _: letter.fingerprint.startswith(value.lower()) is (sign == "=")
    if sign == "~=":
        part = value.casefold()
        return lambda letter, _: part in of(letter).casefold()
    return lambda letter, _: (of(letter) == value) is (sign == "=")


def _check_empty(name: str, sign: str, text: str) -> None:
    """`key=` and `error!=` tell letters that have none from those that have one. *Bites*: `fingerprint=$KIND`, and the shell knows no
    KIND: every text begins with, and has, the empty one, so that all letters are chosen."""
    if sign == "~=" or name in _NAMES:
        why = "every letter would do" if sign == "~=" else f"no {name} is empty"
        raise UsageError(f"{text!r} has no value, and {why}: write one behind {sign}; a shell variable that is not set is empty, too")


def _check_reason(value: str) -> None:
    known = [reason.value for reason in Reason]
    if value not in known:
        near = get_close_matches(value, known, n=1)
        raise UsageError(f"reason {value!r}: " + (f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}"))


def _of_number(of: Callable[[Letter], float], sign: str, wanted: float, text: str) -> Test:
    compare = _comparison(sign, text)
    return lambda letter, _: compare(of(letter), wanted)


def _of_age(sign: str, wanted: float, text: str) -> Test:
    compare = _comparison(sign, text)
    return lambda letter, now: compare(now - letter.died, wanted)


def _of_parked(sign: str, value: str, text: str) -> Test:
    if sign != "=" or value not in ("yes", "no"):
        raise UsageError(f"{text!r}: write parked=yes or parked=no")
    return lambda letter, _: letter.meta.parked is (value == "yes")


def _comparison(sign: str, text: str) -> Callable[[float, float], bool]:
    if sign not in _ORDER:
        raise UsageError(f"{text!r}: compare a number with =, !=, >, >=, < or <=")
    return _ORDER[sign]


def _number(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"{text!r}: {value!r} is no number") from None


def _seconds(value: str, text: str) -> float:
    try:
        return duration.seconds(value)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from None
