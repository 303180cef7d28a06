"""Readers and writers made as Python source, once per schema, and compiled: faster than fastavro, and stricter.

A generated reader takes the whole value of a record and the position where the payload begins. It raises for everything
that no writer writes: numbers beyond 64 bits (32 for int), negative lengths and branches, booleans other than 0 and 1,
nesting deeper than `MAX_DEPTH`, and bytes left over.

Why not fastavro alone. *Bites*: a schema that contains itself and a megabyte of `02`: fastavro recurses in C until the
process dies of a segmentation fault; an array of nulls of length 2**60 fills the memory; a branch of -1 reads as the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from struct import Struct
from typing import Any

from streamjobs.avro.logical import raw_of, reader_of
from streamjobs.avro.schema import MAX_DEPTH, NAMED, Schema, kind_of

Read = Callable[..., Any]
Written = tuple[bytes, Sequence[Any]]
"""A record's bytes, and its fields in the order of the parameters."""
WriteRows = Callable[[Iterable[Any], Callable[[int, Any], Written]], tuple[list[bytes], list[Sequence[Any]]]]

#: Items of an array whose items take no bytes: nothing else bounds their number.
MAX_EMPTY_ITEMS = 65_536

_FLOAT, _DOUBLE = Struct("<f"), Struct("<d")
_FALSE_TRUE = (False, True)
#: Of a zigzag varint, what its first three bytes come to, without the bit that says whether another one follows: looked up, for to shift and
#: to mask takes three times as long.
_FIRST = tuple(~(byte >> 1 & 63) if byte & 1 else byte >> 1 & 63 for byte in range(256))
_SECOND = tuple((byte & 127) << 6 for byte in range(256))
_THIRD = tuple(byte << 13 for byte in range(128))
#: Of a length the first byte, if it is all; else -1.
_SHORT = tuple(byte >> 1 if byte < 128 and not byte & 1 else -1 for byte in range(256))


class Malformed(ValueError):
    """Bytes that no writer of this schema has written."""


def long_at(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint and the position behind it."""
    byte = data[at]
    number, shift = byte & 127, 7
    at += 1
    while byte > 127:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if shift > 63 and (byte > 1 or shift > 70):
            raise Malformed("a number of more than 64 bits")
    return (number >> 1) ^ -(number & 1), at


def _int_at(data: bytes, at: int) -> tuple[int, int]:
    number, at = long_at(data, at)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise Malformed("an int of more than 32 bits")
    return number, at


def _length_at(data: bytes, at: int) -> tuple[int, int]:
    length, at = long_at(data, at)
    if length < 0:
        raise Malformed("a negative length")
    return length, at


def _count_at(data: bytes, at: int) -> tuple[int, int]:
    """The items in the next block of an array or map; a negative count is followed by the block's size."""
    count, at = long_at(data, at)
    if count < 0:
        _, at = long_at(data, at)
    return abs(count), at


def reader(
    schema: Schema,
    convert: Mapping[str, Callable[[Any], Any]] | None = None,
    *,
    as_dict: bool = False,
    branches: bool = False,
) -> Read:
    """`read(data, at)`: the fields of a record as a tuple in the schema's order (or a dict), up to the last byte.

    `convert`: what becomes of single fields' values. Any other schema than a record reads as its value. A value of a named
    type in a union is (name, value), as fastavro's `return_named_type` has it; with `branches` every union's value is (number
    of its branch, value). Raises ValueError, IndexError, OverflowError
    or struct.error for bytes that are no such record; whatever `convert` raises passes.
    """
    return _ReaderSource(schema, branches).compiled(convert or {}, as_dict)


class _ReaderSource:
    """Source text of a reader, gathered function by function; complex types have a function each."""

    def __init__(self, schema: Schema, branches: bool) -> None:
        self._schema = schema
        self._branches = branches
        self._lines: list[str] = []
        self._functions: dict[str, str] = {}
        self._names: dict[str, Any] = {
            "long_at": long_at,
            "int_at": _int_at,
            "length_at": _length_at,
            "count_at": _count_at,
            "float_at": _FLOAT.unpack_from,
            "double_at": _DOUBLE.unpack_from,
            "false_true": _FALSE_TRUE,
            "first": _FIRST,
            "second": _SECOND,
            "third": _THIRD,
            "short": _SHORT,
            "Malformed": Malformed,
        }

    def compiled(self, convert: Mapping[str, Callable[[Any], Any]], as_dict: bool) -> Read:
        parsed = self._schema.parsed
        if kind_of(parsed) in ("record", "error"):
            body, result = self._fields(parsed, "1"), self._result(parsed, convert, as_dict)
        else:
            body, result = self._value(parsed, "v", "0"), "v"
        end = ["if at != len(data): raise Malformed(f'{len(data)} bytes where the payload ends at {at}')"]
        self._define("read", "data, at=0", [*body, *end, f"return {result}"])
        exec(compile("\n".join(self._lines), "<avro reader>", "exec"), self._names)  # noqa: S102
        read: Read = self._names["read"]
        return read

    def _result(self, record: Mapping[str, Any], convert: Mapping[str, Callable[[Any], Any]], as_dict: bool) -> str:
        parts = []
        for number, field in enumerate(record["fields"]):
            name = field["name"]
            value = f"{self._constant(convert[name])}(v{number})" if name in convert else f"v{number}"
            parts.append(f"{name!r}: {value}" if as_dict else f"{value},")
        return f"{{{', '.join(parts)}}}" if as_dict else f"({' '.join(parts)})"

    def _fields(self, record: Mapping[str, Any], depth: str) -> list[str]:
        return [
            line
            for number, field in enumerate(record["fields"])
            for line in self._value(field["type"], f"v{number}", depth)
        ]

    def _value(self, schema: Any, into: str, depth: str) -> list[str]:
        """Lines that read a value at `at` into a variable."""
        if isinstance(schema, list):
            return self._union(schema, into, depth)
        kind = kind_of(schema)
        if kind in _PRIMITIVE:
            lines = [line.replace("$", into) for line in _PRIMITIVE[kind]]
        elif kind == "enum":
            lines = self._enum(schema, into)
        elif kind == "fixed":
            lines = self._fixed(schema, into)
        else:
            return [f"{into}, at = {self._function(schema)}(data, at, {depth})"]
        logical = reader_of(schema)
        return [*lines, f"{into} = {self._constant(logical)}({into})"] if logical else lines

    def _enum(self, schema: Mapping[str, Any], into: str) -> list[str]:
        symbols = self._constant(tuple(schema["symbols"]))
        return [
            f"{into}, at = long_at(data, at)",
            f"if {into} < 0: raise Malformed('a negative symbol')",
            f"{into} = {symbols}[{into}]",
        ]

    def _fixed(self, schema: Mapping[str, Any], into: str) -> list[str]:
        size = schema["size"]
        return [
            f"{into} = data[at:at + {size}]",
            f"if len({into}) < {size}: raise Malformed('a fixed value is cut off')",
            f"at += {size}",
        ]

    def _union(self, branches: Sequence[Any], into: str, depth: str) -> list[str]:
        lines = ["n = data[at]; at += 1", "if n > 127: n, at = long_at(data, at - 1); n *= 2"]
        word = "if"
        for number, branch in enumerate(branches):
            lines.append(f"{word} n == {number * 2}:")
            lines += [f"    {line}" for line in self._branch(number, branch, into, depth)]
            word = "elif"
        return [*lines, "else: raise Malformed('a branch that the union does not have')"]

    def _branch(self, number: int, branch: Any, into: str, depth: str) -> list[str]:
        lines = self._value(branch, into, depth)
        tag = number if self._branches else self._name_of(branch)
        return lines if tag == "" else [*lines, f"{into} = ({tag!r}, {into})"]

    def _name_of(self, branch: Any) -> str:
        if isinstance(branch, Mapping):
            return branch["name"] if branch["type"] in NAMED else ""
        return branch if branch in self._schema.named else ""

    def _function(self, schema: Any) -> str:
        """The function that reads a record, array or map (or a named type that was defined before)."""
        known = schema if isinstance(schema, str) else schema.get("name", "")
        if known in self._functions:
            return self._functions[known]
        if isinstance(schema, str):
            schema = self._schema.named[schema]
        function = f"f{len(self._functions)}"
        self._functions[known or function] = function
        inner = [f"if depth > {MAX_DEPTH}: raise Malformed('nested too deeply')", *self._body(schema)]
        self._define(function, "data, at, depth", [*inner, "return v, at"])
        return function

    def _body(self, schema: Mapping[str, Any]) -> list[str]:
        kind = schema["type"]
        if kind in ("record", "error"):
            names = ", ".join(f"{field['name']!r}: v{number}" for number, field in enumerate(schema["fields"]))
            return [*self._fields(schema, "depth + 1"), f"v = {{{names}}}"]
        if kind == "array":
            return self._array(schema)
        if kind == "map":
            return self._map(schema)
        return self._value(schema, "v", "depth")

    def _array(self, schema: Mapping[str, Any]) -> list[str]:
        item = self._value(schema["items"], "item", "depth + 1")
        bound = [f"    if count + len(v) > {MAX_EMPTY_ITEMS}: raise Malformed('too many empty items')"]
        return [
            "v = []",
            "count, at = count_at(data, at)",
            "while count:",
            *(bound if self._takes_no_bytes(schema["items"]) else []),
            "    for _ in range(count):",
            *(f"        {line}" for line in item),
            "        v.append(item)",
            "    count, at = count_at(data, at)",
        ]

    def _map(self, schema: Mapping[str, Any]) -> list[str]:
        item = [*(line.replace("$", "key") for line in _PRIMITIVE["string"]), *self._value(schema["values"], "v[key]", "depth + 1")]
        return [
            "v = {}",
            "count, at = count_at(data, at)",
            "while count:",
            "    for _ in range(count):",
            *(f"        {line}" for line in item),
            "    count, at = count_at(data, at)",
        ]

    def _takes_no_bytes(self, schema: Any, inside: tuple[str, ...] = ()) -> bool:
        """Whether a value is written in no bytes at all. (A record that contains itself without end is never written.)"""
        if isinstance(schema, str) and schema in self._schema.named:
            if schema in inside:
                return False
            schema = self._schema.named[schema]
        kind = kind_of(schema)
        if kind == "fixed":
            return bool(schema["size"] == 0)
        if kind not in ("record", "error"):
            return kind == "null"
        inside = (*inside, schema["name"])
        kinds = [field["type"] for field in schema["fields"]]
        return all(self._takes_no_bytes(each, inside) for each in kinds)

    def _define(self, name: str, parameters: str, body: Iterable[str]) -> None:
        self._lines += [f"def {name}({parameters}):", *(f"    {line}" for line in body)]

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._names)}"
        self._names[name] = value
        return name


_SIZED = ["n = short[data[at]]; at += 1", "if n < 0: n, at = length_at(data, at - 1)", "end = at + n"]
#: One to three bytes, which is up to a million, without a call. What the later ones add has the sign of the first.
_NUMBER = [
    "n = data[at]; at += 1; $ = first[n]",
    "if n > 127:",
    "    n = data[at]",
    "    if n < 128: at += 1; $ = $ + second[n] if $ >= 0 else $ - second[n]",
    "    elif (m := data[at + 1]) < 128: at += 2; n = second[n] + third[m]; $ = $ + n if $ >= 0 else $ - n",
    "    else: $, at = {}(data, at - 1)",
]

#: Lines that read a primitive into `$`. A slice beyond the end is short and moves `at` there, which the end notices.
_PRIMITIVE: dict[str, list[str]] = {
    "null": ["$ = None"],
    "boolean": ["$ = false_true[data[at]]; at += 1"],
    "int": [line.format("int_at") for line in _NUMBER],
    "long": [line.format("long_at") for line in _NUMBER],
    "float": ["$ = float_at(data, at)[0]; at += 4"],
    "double": ["$ = double_at(data, at)[0]; at += 8"],
    "bytes": [*_SIZED, "$ = data[at:end]; at = end"],
    "string": [*_SIZED, "$ = data[at:end].decode(); at = end"],
}


# Writing -----------------------------------------------------------------------------------------------------------------

#: Seven bits as the last byte of a varint, and as one that more follow.
_ONE = tuple(bytes((number,)) for number in range(128))
_MORE = tuple(bytes((number | 128,)) for number in range(128))


def long_bytes(number: int) -> bytes:
    """A zigzag varint. Raises OverflowError beyond 64 bits."""
    zigzag = number << 1 if number >= 0 else ~(number << 1)
    if zigzag < 128:
        return _ONE[zigzag]
    if zigzag < 16384:
        return _MORE[zigzag & 127] + _ONE[zigzag >> 7]
    if zigzag < 2097152:
        return _MORE[zigzag & 127] + _MORE[zigzag >> 7 & 127] + _ONE[zigzag >> 14]
    if zigzag >> 64:
        raise OverflowError("a whole number has at most 64 bits")
    parts = bytearray()
    while zigzag > 127:
        parts.append(zigzag & 127 | 128)
        zigzag >>= 7
    parts.append(zigzag)
    return bytes(parts)


def int_bytes(number: int) -> bytes:
    """As `long_bytes`. Raises OverflowError beyond 32 bits: other readers cut such a number."""
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise OverflowError("an int has at most 32 bits")
    return long_bytes(number)


def writer(schema: Schema, head: bytes, convert: Mapping[str, Callable[[Any], Any]]) -> Callable[[Mapping[str, Any]], bytes] | None:
    """`write(arguments)`: the record's bytes behind a head, for records of primitives, enums and optional ones.

    None: the schema has more than that (fastavro writes it). Takes what fastavro takes after `convert`.
    """
    return _WriterSource(schema, head).one(convert)


def rows_writer(schema: Schema, head: bytes, takes: Mapping[str, Sequence[type]]) -> WriteRows | None:
    """`write(rows, other)`: the bytes and the fields, as tuples in the order of `takes`, of many records at once.

    `takes`: of each field the exact types that need no validation. A row is a tuple, a list or a dict with all of these fields;
    one that is not, holds another type, or can't be written goes to `other(number, row)`, which gives its bytes and fields.
    None: as `writer`.
    """
    return _WriterSource(schema, head).many(takes)


def binder(takes: Mapping[str, Sequence[type]]) -> Callable[[tuple[Any, ...], Mapping[str, Any]], dict[str, Any] | None]:
    """`bind(args, kwargs)`: a call's arguments by name, where all are given by their places, or all by their names, and each is of just a
    type that it takes as it is; None: not so.

    `takes`: of each parameter these types.
    """
    values = [f"v{number}" for number in range(len(takes))]
    exact = " and ".join(f"type({value}) in kinds_{value}" for value in values)
    source = "\n    ".join(
        (
            "def bind(args, kwargs):",
            "if not kwargs:",
            f"    if len(args) != {len(takes)}: return None",
            f"    {', '.join(values)}, = args",
            "else:",
            f"    if args or len(kwargs) != {len(takes)} or type(kwargs) is not dict: return None",
            f"    try: {', '.join(values)}, = {', '.join(f'kwargs[{name!r}]' for name in takes)},",
            "    except KeyError: return None",
            f"if {exact}: return {{{', '.join(f'{name!r}: {value}' for name, value in zip(takes, values, strict=True))}}}",
        )
    )
    names: dict[str, Any] = {f"kinds_{value}": tuple(kinds) for value, kinds in zip(values, takes.values(), strict=True)}
    exec(compile(source, "<binder>", "exec"), names)  # noqa: S102
    bind: Callable[[tuple[Any, ...], Mapping[str, Any]], dict[str, Any] | None] = names["bind"]
    return bind


class _WriterSource:
    def __init__(self, schema: Schema, head: bytes) -> None:
        self._types = {field["name"]: field["type"] for field in schema.parsed["fields"]}
        self._names: dict[str, Any] = {
            "head": head,
            "long_bytes": long_bytes,
            "int_bytes": int_bytes,
            "double": _DOUBLE.pack,
            "float_": _FLOAT.pack,
            "one": _ONE,
            "more": _MORE,
        }

    def one(self, convert: Mapping[str, Callable[[Any], Any]]) -> Callable[[Mapping[str, Any]], bytes] | None:
        lines = []
        for number, name in enumerate(self._types):
            lines.append(f"v{number} = a[{name!r}]")
            if name in convert:
                lines.append(f"v{number} = {self._constant(convert[name])}(v{number})")
        written = self._record({name: f"v{number}" for number, name in enumerate(self._types)})
        if written is None:
            return None
        write: Callable[[Mapping[str, Any]], bytes] = self._compiled("write(a)", [*lines, *written, "return value"])
        return write

    def many(self, takes: Mapping[str, Sequence[type]]) -> WriteRows | None:
        values = {name: f"v{number}" for number, name in enumerate(takes)}
        written = self._record(values)
        if written is None:
            return None
        into = "".join(f"{value}, " for value in values.values())
        named = "".join(f"row[{name!r}], " for name in takes)
        exact = " and ".join(self._is_exactly(values[name], kinds) for name, kinds in takes.items())
        write: WriteRows = self._compiled(
            "write(rows, other)",
            [
                "done, fields = [], []",
                "for number, row in enumerate(rows):",
                "    value, kind = None, type(row)",
                "    try:",
                f"        if kind is dict and len(row) == {len(takes)}: {into}= row = {named}",
                f"        elif kind is tuple or kind is list: {into}= row",
                "        else: raise TypeError",
                f"        if {exact}:",
                *(f"            {line}" for line in written),
                "    except Exception: pass",
                "    if value is None: value, row = other(number, row)",
                "    done.append(value); fields.append(row)",
                "return done, fields",
            ],
        )
        return write

    def _is_exactly(self, value: str, kinds: Sequence[type]) -> str:
        return f"type({value}) is {self._constant(kinds[0])}" if len(kinds) == 1 else f"type({value}) in {self._constant(kinds)}"

    def _compiled(self, head: str, body: Iterable[str]) -> Any:
        source = "\n    ".join((f"def {head}:", *body))
        exec(compile(source, "<avro writer>", "exec"), self._names)  # noqa: S102
        return self._names["write"]

    def _record(self, values: Mapping[str, str]) -> list[str] | None:
        """Lines that turn the variables of these fields into the record's bytes, `value`."""
        lines = []
        for name, schema in self._types.items():
            written = self._written(schema, values[name])
            if written is None:
                return None
            lines += written
        parts = ["head", *(part.replace("$", values[name]) for name, schema in self._types.items() for part in _parts(schema))]
        return [*lines, f"value = b''.join(({', '.join(parts)},))"]

    def _written(self, schema: Any, value: str) -> list[str] | None:
        """Lines that turn a variable's value into its bytes; None: not by this writer."""
        if isinstance(schema, list):
            return self._optional(schema, value)
        kind = kind_of(schema)
        if kind == "enum":
            known = {symbol: long_bytes(number) for number, symbol in enumerate(schema["symbols"])}
            return [f"{value} = {self._constant(known)}[{value}]"]
        if kind not in _WRITTEN:
            return None
        raw = raw_of(schema)
        first = [f"{value} = {self._constant(raw)}({value})"] if raw else []
        return [*first, *(line.replace("$", value) for line in _WRITTEN[kind])]

    def _optional(self, schema: Sequence[Any], value: str) -> list[str] | None:
        if len(schema) != 2 or "null" not in schema:
            return None
        null = schema.index("null")
        inner = self._written(schema[1 - null], value)
        if inner is None:
            return None
        return [
            f"if {value} is None: {value} = {long_bytes(null)!r}",
            "else:",
            *(f"    {line}" for line in inner),
            f"    {value} = {' + '.join([repr(long_bytes(1 - null)), *_parts(schema[1 - null])]).replace('$', value)}",
        ]

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._names)}"
        self._names[name] = value
        return name


#: Up to three bytes are put together here: a call takes twice as long.
_WHOLE = [
    "if 0 <= $ < 64: $ = one[$ << 1]",
    "elif 64 <= $ < 8192: $ = more[$ << 1 & 127] + one[$ >> 6]",
    "elif 8192 <= $ < 1048576: $ = more[$ << 1 & 127] + more[$ >> 6 & 127] + one[$ >> 13]",
    "else: $ = {}($)",
]
#: Lines that turn `$` into its bytes.
_WRITTEN: dict[str, list[str]] = {
    "null": ["$ = b''"],
    "boolean": ["$ = b'\\1' if $ else b'\\0'"],
    "int": [line.format("int_bytes") for line in _WHOLE],
    "long": [line.format("long_bytes") for line in _WHOLE],
    "float": ["$ = float_($)"],
    "double": ["$ = double($)"],
    "bytes": ["n = len($); n$ = one[n << 1] if n < 64 else long_bytes(n)"],
    "string": ["$ = $.encode(); n = len($); n$ = one[n << 1] if n < 64 else long_bytes(n)"],
}


def _parts(schema: Any) -> tuple[str, ...]:
    """The variables in which these lines leave the bytes."""
    return ("n$", "$") if not isinstance(schema, list) and kind_of(schema) in ("bytes", "string") else ("$",)
