"""How a value that one schema wrote is read with another (Avro specification, "Schema Resolution").

Worked out once per pair of schemas: `Resolution.convert` then only converts, and `problems` says what can't be, which is all
that `compatibility` has to tell. Where it departs from the specification, it is so that fewer queued jobs break, or that
none is read wrongly:

- names of records and enums don't matter, except to choose between a union's members: a renamed Python class changes nothing;
- an enum reads as a string and a string as an enum;
- what the reader fills in for a field that the writer did not know is Python's own default;
- a number never changes its meaning: where only one side has a logical type of a number (`long` and `timestamp-micros`), the
  specification reads the bare number, and seconds become microseconds. Here it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from streamjobs.avro.logical import reader_of
from streamjobs.avro.schema import NAMED, Schema, kind_of
from streamjobs.avro.shapes import COMPUTED

Convert = Callable[[Any], Any]

_PROMOTED: dict[tuple[str, str], Convert | None] = {
    ("int", "long"): None,
    ("int", "float"): float,
    ("int", "double"): float,
    ("long", "float"): float,
    ("long", "double"): float,
    ("float", "double"): None,
    ("string", "bytes"): str.encode,
    ("bytes", "string"): bytes.decode,
}
_INSTANTS = frozenset({"timestamp-millis", "timestamp-micros"})
_LOCAL = frozenset({"local-timestamp-millis", "local-timestamp-micros"})
_TIMES = frozenset({"time-millis", "time-micros"})
_TEXT = frozenset({"uuid", "decimal-text", ""})
_ALIKE = (_INSTANTS, _LOCAL, _TIMES, _TEXT)


class Mismatch(ValueError):
    """A value of the writer's that the reader's schema does not take."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What can't be read. `certain`: no value of the field can be; otherwise some."""

    path: str
    text: str
    certain: bool


class Resolution:
    """From values that `writer` wrote, as `reader.reader(…, branches=True)` gives them, to values of `reader`.

    `fill`: a field's default in the schema is filled in; otherwise the field is left out, for Python's default.
    """

    def __init__(self, writer: Schema, reader: Schema, *, fill: bool = False) -> None:
        self._writer = writer
        self._reader = reader
        self._fill = fill
        self._records: dict[tuple[str, str], list[Convert | None]] = {}
        self.problems: list[Problem] = []
        self._convert = self._of(writer.parsed, reader.parsed, "")

    def convert(self, value: Any) -> Any:
        """Raises Mismatch (a ValueError) where the schemas do not agree."""
        return self._convert(value) if self._convert else value

    def _of(self, w: Any, r: Any, path: str) -> Convert | None:
        w, r = self._writer.named.get(w, w) if isinstance(w, str) else w, self._named(r)
        if isinstance(w, list):
            return self._from_union(w, r, path)
        if isinstance(r, list):
            return self._to_union(w, r, path)
        pair = (kind_of(w), kind_of(r))
        if "error" in pair:
            pair = ("record", "record") if set(pair) <= {"error", "record"} else pair
        known = _COMPLEX.get(pair)
        return known(self, w, r, path) if known else self._primitive(w, r, pair, path)

    def _named(self, schema: Any) -> Any:
        return self._reader.named.get(schema, schema) if isinstance(schema, str) else schema

    def _wrong(self, path: str, text: str) -> Convert:
        """A pair that can't be: said once, and raised when a value comes."""
        self.problems.append(Problem(path, text, certain=True))
        message = f"{path or 'the payload'} {text}"

        def refuse(value: Any) -> Any:
            raise Mismatch(message)

        return refuse

    def _primitive(self, w: Any, r: Any, pair: tuple[str, str], path: str) -> Convert | None:
        logical = (_logical(w), _logical(r))
        if pair[0] != pair[1] and (pair not in _PROMOTED or (any(logical) and not _alike(*logical))):
            return self._wrong(path, f"was {_said(w)} and is now {_said(r)}")
        if not _alike(*logical):
            return self._wrong(path, f"was {_said(w)} and is now {_said(r)}, which gives its number another meaning")
        if logical[0] in ("uuid", "decimal-text") and logical[0] != logical[1]:
            return str
        return None if pair[0] == pair[1] or any(logical) else _PROMOTED[pair]

    def _enum(self, w: Any, r: Any, path: str) -> Convert | None:
        symbols, default = frozenset(r["symbols"]), r.get("default")
        gone = [symbol for symbol in w["symbols"] if symbol not in symbols]
        if not gone:
            return None
        if default is None:
            self.problems.append(Problem(path, f"no longer has {', '.join(gone)}", certain=False))

        def known(symbol: Any) -> Any:
            if symbol in symbols:
                return symbol
            if default is None:
                raise Mismatch(f"{path} was {symbol}, which it no longer has")
            return default

        return known

    def _text_to_enum(self, w: Any, r: Any, path: str) -> Convert | None:
        self.problems.append(Problem(path, f"was any text and is now one of {', '.join(r['symbols'])}", certain=False))
        return _member_of(frozenset(r["symbols"]), path)

    def _enum_to_text(self, w: Any, r: Any, path: str) -> Convert | None:
        return None

    def _fixed(self, w: Any, r: Any, path: str) -> Convert | None:
        if w["size"] != r["size"] or not _alike(_logical(w), _logical(r)):
            return self._wrong(path, f"was {_said(w)} and is now {_said(r)}")
        return None

    def _array(self, w: Any, r: Any, path: str) -> Convert | None:
        item = self._of(w["items"], r["items"], f"{path}[]")
        return None if item is None else lambda values: [item(value) for value in values]

    def _map(self, w: Any, r: Any, path: str) -> Convert | None:
        inner = self._of(w["values"], r["values"], f"{path}{{}}")
        return None if inner is None else lambda values: {key: inner(value) for key, value in values.items()}

    def _record(self, w: Any, r: Any, path: str) -> Convert | None:
        pair = (w["name"], r["name"])
        if pair in self._records:
            cell = self._records[pair]
            return lambda value: cell[0](value) if cell[0] else value
        cell = self._records[pair] = [None]
        cell[0] = self._fields(w, r, path)
        return cell[0]

    def _fields(self, w: Any, r: Any, path: str) -> Convert:
        theirs = {field["name"]: field for field in w["fields"]}
        pairs: list[tuple[str, str, Convert | None]] = []
        filled: dict[str, Any] = {}
        lacking: list[Convert] = []
        for field in r["fields"]:
            name = field["name"]
            inner = f"{path}.{name}" if path else name
            known = next((each for each in (name, *field.get("aliases", ())) if each in theirs), None)
            if known is not None:
                pairs.append((known, name, self._of(theirs[known]["type"], field["type"], inner)))
            elif "default" in field and self._fill:
                filled[name] = default_of(self._reader, field["type"], field["default"])
            elif "default" not in field and COMPUTED not in field:
                lacking.append(self._wrong(inner, "is new and has no default"))
        if lacking:
            return lacking[0]

        def convert(value: Any) -> Any:
            found = {new: each(value[old]) if each else value[old] for old, new, each in pairs}
            return found | filled if filled else found

        return convert

    def _from_union(self, w: list[Any], r: Any, path: str) -> Convert:
        """The writer's branches, each with what becomes of it. One that finds no place is a problem only if it comes."""
        before = self.problems
        self.problems = []
        branches = [self._of(branch, r, path) for branch in w]
        found, self.problems = self.problems, before
        certain = len(found) == len(w) and all(problem.path == path for problem in found)
        self.problems += [Problem(each.path, each.text, certain) for each in found]

        def convert(value: Any) -> Any:
            number, inner = value
            branch = branches[number]
            return branch(inner) if branch else inner

        return convert

    def _to_union(self, w: Any, r: list[Any], path: str) -> Convert | None:
        for fits in (_same, _same_kind, _promotes):
            for branch in map(self._named, r):
                if fits(w, branch):
                    return self._tagged(branch, self._of(w, branch, path))
        return self._wrong(path, f"was {_said(w)} and is now one of {', '.join(map(_said, map(self._named, r)))}")

    def _tagged(self, branch: Any, convert: Convert | None) -> Convert | None:
        """A union's value of a named type says which one it is (see `reader.reader`)."""
        if kind_of(branch) not in NAMED:
            return convert
        name = branch["name"]
        return lambda value: (name, convert(value) if convert else value)


_COMPLEX: dict[tuple[str, str], Callable[[Resolution, Any, Any, str], Convert | None]] = {
    ("enum", "enum"): Resolution._enum,
    ("string", "enum"): Resolution._text_to_enum,
    ("enum", "string"): Resolution._enum_to_text,
    ("fixed", "fixed"): Resolution._fixed,
    ("array", "array"): Resolution._array,
    ("map", "map"): Resolution._map,
    ("record", "record"): Resolution._record,
}


def default_of(schema: Schema, kind: Any, given: Any) -> Any:
    """A default's JSON as the value that a reader of its type gives (and a writer takes)."""
    kind = schema.named.get(kind, kind) if isinstance(kind, str) else kind
    if isinstance(kind, list):
        first = schema.named.get(kind[0], kind[0]) if isinstance(kind[0], str) else kind[0]
        value = default_of(schema, first, given)
        return (first["name"], value) if kind_of(first) in NAMED else value
    if kind_of(kind) in ("record", "error"):
        fields = {field["name"]: field for field in kind["fields"]}
        return {
            name: default_of(schema, field["type"], given[name] if name in given else field["default"])
            for name, field in fields.items()
        }
    if kind_of(kind) == "array":
        return [default_of(schema, kind["items"], each) for each in given]
    if kind_of(kind) == "map":
        return {key: default_of(schema, kind["values"], each) for key, each in given.items()}
    raw = given.encode("latin-1") if kind_of(kind) in ("bytes", "fixed") else given
    logical = reader_of(kind)
    return logical(raw) if logical else raw


def _member_of(symbols: frozenset[str], path: str) -> Convert:
    def known(text: Any) -> Any:
        if text not in symbols:
            raise Mismatch(f"{path} is not one of {', '.join(sorted(symbols))}")
        return text

    return known


def _logical(schema: Any) -> str:
    return str(schema.get("logicalType", "")) if isinstance(schema, Mapping) else ""


def _alike(w: str, r: str) -> bool:
    """Whether two logical types mean the same, so that a value of one is a value of the other."""
    return w == r or any(w in family and r in family for family in _ALIKE)


def _short(schema: Any) -> str:
    return str(schema["name"]).rpartition(".")[2]


def _same(w: Any, r: Any) -> bool:
    if kind_of(w) != kind_of(r) or not _alike(_logical(w), _logical(r)):
        return False
    return kind_of(w) not in NAMED or _short(w) == _short(r) or w["name"] in r.get("aliases", ())


def _same_kind(w: Any, r: Any) -> bool:
    return kind_of(w) == kind_of(r)


def _promotes(w: Any, r: Any) -> bool:
    pair = (kind_of(w), kind_of(r))
    return pair in _PROMOTED or pair in _COMPLEX


def _said(schema: Any) -> str:
    """A schema in a few words."""
    if isinstance(schema, list):
        return " or ".join(map(_said, schema))
    if isinstance(schema, str):
        return schema
    kind = schema["type"]
    if kind in ("record", "error", "enum", "fixed"):
        return f"the {kind} {_short(schema)}"
    return f"{kind} ({schema['logicalType']})" if "logicalType" in schema else kind
