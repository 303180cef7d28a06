"""Exceptions on their way between processes: class, message, attributes and the text of the traceback survive.

Pickle alone does not do: a class whose `__init__` takes other arguments than `args` holds is pickled and can't be unpickled, an
attribute may be a lock, a class may be known to the child alone. None of that may break the pipe, or hide what went wrong.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

from streamjobs.errors import text_of
from streamjobs.job import stack_of


class Packed(NamedTuple):
    """An exception as it travels. `whole`: a pickle of it, or of its class, arguments and attributes (`parts`)."""

    whole: bytes | None
    parts: bytes | None
    module: str
    qualname: str
    text: str
    trace: str


class ChildTraceback(Exception):
    """The traceback of a child process, as text: the cause of an exception that came from there."""

    def __init__(self, trace: str) -> None:
        super().__init__(trace)
        self.trace = trace

    def __str__(self) -> str:
        return f"\n{self.trace}"


def pack(error: BaseException) -> Packed:
    text = text_of(error)
    kind = type(error)
    whole = _pickled(error)
    if whole is not None and not _survives(whole, text):
        whole = None
    parts = None if whole else _pickled((kind, error.args, vars(error))) or _pickled((kind, (text,), {}))
    return Packed(whole, parts, kind.__module__, kind.__qualname__, text, stack_of(error))


def unpack(packed: Packed) -> BaseException:
    """Never raises: a class that is not known here is stood in for by one of the same name."""
    try:
        error: BaseException = pickle.loads(packed.whole) if packed.whole else _assembled(packed.parts or b"")
    except Exception:  # noqa: BLE001 (whatever a stranger's class does when it is unpickled)
        error = _stand_in(packed, Exception)
    if not isinstance(error, BaseException) or text_of(error) != packed.text:
        error = _stand_in(packed, type(error) if isinstance(error, BaseException) else Exception)
    _set(error, "__cause__", ChildTraceback(packed.trace))
    return error


def _pickled(thing: object) -> bytes | None:
    try:
        return pickle.dumps(thing)
    except Exception:  # noqa: BLE001 (pickle raises what it likes)
        return None


def _survives(whole: bytes, text: str) -> bool:
    try:
        return text_of(pickle.loads(whole)) == text
    except Exception:  # noqa: BLE001
        return False


def _assembled(parts: bytes) -> BaseException:
    """Without `__init__`, which may want other arguments."""
    kind, args, state = pickle.loads(parts)
    error: BaseException = kind.__new__(kind, *args)
    _set(error, "args", args)
    vars(error).update(state)
    return error


def _set(error: BaseException, name: str, value: object) -> None:
    """Also of a frozen dataclass, which lets nobody set its attributes."""
    vars(BaseException)[name].__set__(error, value)


def _stand_in(packed: Packed, base: type[BaseException]) -> BaseException:
    """An exception of that name which says that text; still one of its own class, where that is known and lets it."""
    try:
        return _named(packed, base)
    except Exception:  # noqa: BLE001 (a class may want other arguments, or forbid classes of its own)
        return _named(packed, Exception)


def _named(packed: Packed, base: type[BaseException]) -> BaseException:
    content: dict[str, Any] = {
        "__qualname__": packed.qualname, "__module__": packed.module, "__str__": lambda _: packed.text,
    }  # fmt: skip
    kind: type[BaseException] = type(packed.qualname.rpartition(".")[2], (base,), content)
    error = kind.__new__(kind, packed.text)
    _set(error, "args", (packed.text,))
    return error
