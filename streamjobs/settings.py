"""Settings: code < streamjobs.toml < `STREAMJOBS_*` < flags, and for each value where it was set.

`load` is the only door. It reads each layer into a flat table of `path → value` (`worker.slots → 8`), refuses what is no
setting, and lets pydantic-settings lay the layers over each other and pydantic check the result. The models below are the
one list of settings: `documented()` reads the tables of the documentation and of `streamjobs config show` off them.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from streamjobs.core import client_keys
from streamjobs.core.delay import Ladder
from streamjobs.core.duration import seconds, text
from streamjobs.core.topics import checked_name
from streamjobs.errors import SettingsError

FILE = "streamjobs.toml"
PREFIX = "STREAMJOBS_"
#: Names another settings file, as `--config` does; not a setting itself.
FILE_VARIABLE = "STREAMJOBS_CONFIG"
#: What begins like a setting and is none: ours, and what Kubernetes sets in every pod for a Service called streamjobs…
_NOT_SETTINGS = re.compile(
    rf"{FILE_VARIABLE}|{PREFIX}TEST_.*"
    rf"|{PREFIX}([A-Z0-9]+_)*(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

MASKED = "********"
#: Keys of librdkafka whose values are secrets, whatever `mask.patterns` says.
_SECRETS = (
    "*password*", "*secret*", "*token*", "*.key.pem", "*private.key*", "sasl.oauthbearer.config", "*jaas*", "*passphrase*", "*user.info*",
)  # fmt: skip
#: Who somebody is, and with which password, in an address: refused, and not to be told on.
_USER = re.compile(r"//\S*@")

#: Sections whose keys are passed on to another library, whose own names they are.
_PASSED_ON = {"kafka": ["kafka.security.protocol", "kafka.sasl.mechanism", "…"], "registry": ["registry.basic.auth.user.info", "…"]}
#: Keys of the registry's client that `schemas.registry` stands for, or that its reader needs as they are.
_OF_THE_REGISTRY = {"url": "set schemas.registry", "timeout": "the thread that decodes waits for it", "max.retries": "the job is tried again"}

#: One server as librdkafka reads it, which takes a name without a port for one at 9092, and a port that is no number for 0.
_SERVER = r"\s*((?i:(?:SASL_)?(?:PLAINTEXT|SSL))://)?(\[[0-9a-fA-F:.%\w]+\]|[^:/,\s\[\]]+):\d{1,5}\s*"
_BROKERS = re.compile(rf"embedded|(embedded:)?{_SERVER}(,{_SERVER})*,?")

#: The one key of librdkafka that a user may want and that is written with an underscore.
_WITH_UNDERSCORE = ("log_level",)


#: What the client takes of a record at most, less what retries and letters add to a job.
MOST_BYTES = 1_000_000_000 - 65_536
MAX_PORT = 65_535


def _whole(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("give a whole number")  # noqa: TRY004 (pydantic reports ValueErrors)
    return value


def _kafka_value(value: object) -> str:
    """As librdkafka reads it: text, booleans as `true` and `false`."""
    if not isinstance(value, str | int | float):
        raise ValueError("give text, a number or true/false")  # noqa: TRY004 (pydantic reports ValueErrors)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _name(value: str) -> str:
    try:
        return checked_name("the name", value) if value else value
    except SettingsError as error:
        raise ValueError(str(error)) from None


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", value) or len(value) > 60:
        raise ValueError("use up to 60 letters, digits, '-', '_' and single dots: it begins the names of topics")
    return value


def _brokers(value: str) -> str:
    if value != "memory" and not (_BROKERS.fullmatch(value) and all(map(_is_port, re.findall(r":(\d+)\s*(?:,|$)", value)))):
        raise ValueError('give HOST:PORT[,HOST:PORT…] such as "localhost:9092", or "embedded"')
    return value


def _is_port(text: str) -> bool:
    """*Bites*: of one that is too large the client takes the last 16 bits, and asks another port."""
    return int(text) <= MAX_PORT


def _address(value: str) -> str:
    found = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[^:\s]+):(\d{1,5})", value)
    if value not in ("", "off") and not (found and _is_port(found[1])):
        raise ValueError('give HOST:PORT such as "127.0.0.1:9464", or "off"')
    return value


def _url(value: str) -> str:
    if value and not re.fullmatch(r"https?://[^\s@/]+(/[^\s@]*)?", value):
        raise ValueError('give an address such as "https://registry:8081", and the user as registry.basic.auth.user.info')
    return value


def _listed(value: object) -> object:
    """Text from the environment: a JSON array, or items between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def _tiers(tiers: list[str]) -> list[str]:
    try:
        return list(Ladder(tuple(tiers)).tiers)
    except SettingsError as error:
        raise ValueError(str(error)) from None


_LOWER = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
_AS_SECONDS = BeforeValidator(seconds)
Duration = Annotated[float, _AS_SECONDS, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1)]
Natural = Annotated[Whole, Field(ge=0)]
Name = Annotated[str, AfterValidator(_name)]
Prefix = Annotated[str, AfterValidator(_prefix)]
PassedOn = dict[str, Annotated[str, BeforeValidator(_kafka_value)]]
Texts = Annotated[list[str], BeforeValidator(_listed)]


def _between(least: str, most: str) -> AfterValidator:
    """What a broker or the client takes; a worker that is started with anything else would only find out that it can't work."""

    def check(value: float) -> float:
        if not seconds(least) <= value <= seconds(most):
            raise ValueError(f"give a duration from {least} to {most}")
        return value

    return AfterValidator(check)


def _setting(default: Any, meaning: str, **limits: Any) -> Any:
    return Field(default=default, description=meaning, validate_default=True, **limits)


class Section(BaseModel):
    """A table of streamjobs.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Worker(Section):
    """[worker]"""

    group: Name = _setting("", "Consumer group; empty: the app's name.")
    slots: Annotated[Count, Field(le=100_000)] = _setting(
        32, "def jobs that one process runs at the same time, in any of its threads, even if it is one; and so many async ones beside them."
    )
    processes: Annotated[Count, Field(le=1_000)] = _setting(1, "Worker processes that the supervisor keeps alive.")
    children: Annotated[Natural, Field(le=1_000)] = _setting(
        0, "Child processes of one process for jobs with executor='processes'; 0: one a processor."
    )
    zombies: Natural = _setting(0, "Threads past their timeouts with which a process makes room for another; 0: a quarter of slots, two at least.")
    max_rss: Natural = _setting(0, "Bytes of memory with which a process ends its work and makes room for another; 0: no limit.")
    drain: Annotated[Duration, _between("1ms", "365d")] = _setting("25s", "How long a stopping worker waits for running jobs.")
    transactional: bool = _setting(
        False, "Each run's retry, letter, child jobs, events and offset are one Kafka transaction (docs/transactions.md)."
    )
    listen: Annotated[str, AfterValidator(_address)] = _setting(
        "127.0.0.1:9464", 'Address of /metrics, /healthz and /readyz; "off": none.'
    )
    protocol: Literal["auto", "consumer", "classic"] = _setting(
        "auto", "Group protocol: consumer (KIP-848, joins fast), classic (takes over fast), auto (what the cluster allows)."
    )
    session_timeout: Annotated[Duration, _between("1s", "1h")] = _setting("10s", "A worker that is silent for so long has lost its partitions.")
    max_poll_interval: Annotated[Duration, _between("1s", "1d")] = _setting("5m", "A worker whose loop is stuck for so long has lost its partitions.")
    instance: Name = _setting("", "Static membership: a name that is unique in the group; empty: dynamic.")
    tick: Duration = _setting("500ms", "How often a loop commits and looks at the clock; the precision of delays.")
    window: Count = _setting(10_000, "Unfinished jobs that a worker holds per partition at most.")
    window_bytes: Count = _setting(64 * 1024 * 1024, "Bytes of unfinished jobs that a worker holds per loop at most.")
    credit: Count = _setting(1_000, "Jobs that a loop has admitted and not yet settled at most.")
    window_span: Count = _setting(10_000_000, "Offsets between a partition's oldest unfinished job and its newest at most.")

    def address(self) -> tuple[str, int] | None:
        """Where to listen, as (host, port); None: nowhere."""
        if self.listen in ("", "off"):
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @model_validator(mode="after")
    def _intervals_fit(self) -> Self:
        if self.max_poll_interval < self.session_timeout:
            raise ValueError("max_poll_interval is shorter than session_timeout, which Kafka refuses: raise it")
        return self


class Delay(Section):
    """[delay]"""

    tiers: Annotated[Texts, AfterValidator(_tiers)] = _setting(
        ["5s", "15s", "1m", "4m", "15m", "1h", "4h", "12h", "1d", "7d"],
        "Steps of the delay ladder: one topic each, shortest first.",
    )
    hold: Duration = _setting("5s", "The last part of a delay, which is waited in the memory of the loop that runs the job.")

    @model_validator(mode="after")
    def _no_gap_below_the_ladder(self) -> Self:
        try:
            Ladder(tuple(self.tiers)).check_hold(self.hold)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return self


class Events(Section):
    """[events]"""

    mode: Literal["all", "failures", "off"] = _setting("all", "Which lifecycle events are published.")


class Log(Section):
    """[log]"""

    format: Annotated[Literal["text", "json"], _LOWER] = _setting("text", "Shape of log lines.")
    level: Annotated[Literal["debug", "info", "warning", "error", "critical"], _LOWER] = _setting(
        "info", "Least level that is logged."
    )


class Mask(Section):
    """[mask]"""

    patterns: Texts = _setting(
        ["*password*", "*secret*", "*token*", "*authorization*"],
        "Names of arguments and settings whose values are never shown or logged.",
    )


class Tracing(Section):
    """[tracing]"""

    propagation: Literal["auto", "link", "child"] = _setting(
        "auto", "How a run's span hangs on its publisher's: child, link, or auto (link when it waited)."
    )


class Schemas(Section):
    """[schemas]"""

    registry: Annotated[str, AfterValidator(_url)] = _setting(
        "", "Address of a Confluent-compatible schema registry, for jobs that carry its schema ids (extra `registry`); empty: none."
    )


class Settings(BaseSettings):
    """Every setting, checked. Durations are float seconds. Made by `load` only."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    app: str = _setting("", "The app that commands work on, MODULE:ATTR.")
    bootstrap: Annotated[str, AfterValidator(_brokers)] = _setting(
        "localhost:9092", 'Brokers, HOST:PORT[,HOST:PORT…]; "embedded": one inside the process, gone with it.'
    )
    provision: Literal["check", "auto"] = _setting(
        "check",
        "Topics that a starting worker misses: check refuses to start and says what to run, auto creates them (so on the embedded broker)."
        " For workers only.",
    )
    jobs_prefix: Prefix = _setting("jobs", "Begins the names of topics that hold jobs.")
    system_prefix: Prefix = _setting("streamjobs", "Begins the names of topics that all queues share.")
    partitions: Annotated[Count, Field(le=100_000)] = _setting(8, "Partitions of a new queue's topic.")
    replication: Whole = _setting(0, "Copies of each topic; 0: three, or as many as there are brokers.", ge=0)
    max_message_bytes: Whole = _setting(1024 * 1024, "Largest record of a queue's topic; a job may have 32 kB less.", ge=65_536, le=MOST_BYTES)
    history: Duration = _setting("7d", "How old finished jobs are when `topic trim` deletes them.")
    max_delay: Annotated[Duration, _between("1ms", "365000d")] = _setting("90d", "The longest delay that a publisher may ask for.")
    publish_timeout: Duration = _setting("10s", "How long publish waits for the broker's acknowledgement.")
    max_replays: Whole = _setting(3, "Replays of one job, after which its letter stays parked.", ge=0)
    worker: Worker = Worker()
    delay: Delay = Delay()
    events: Events = Events()
    log: Log = Log()
    mask: Mask = Mask()
    tracing: Tracing = Tracing()
    schemas: Schemas = Schemas()
    registry: PassedOn = _setting({}, "Keys of the schema registry's client, passed through: basic.auth.user.info, ssl.ca.location, …")
    kafka: PassedOn = _setting({}, "Keys of librdkafka, passed through: security.protocol, sasl.mechanism, ssl.ca.location, …")

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Our layers, the strongest first: those of pydantic-settings neither say where a value stands nor refuse strangers."""
        return tuple(init_settings()["layers"])

    @model_validator(mode="after")
    def _prefixes_are_apart(self) -> Self:
        jobs, system = self.jobs_prefix + ".", self.system_prefix + "."
        if jobs.startswith(system) or system.startswith(jobs):
            raise ValueError("jobs_prefix and system_prefix begin alike, so that a topic could be both: change one")
        return self

    @cached_property
    def ladder(self) -> Ladder:
        """The app's delay ladder, as `delay.tiers` says."""
        return Ladder(tuple(self.delay.tiers))

    def source(self, path: str) -> str:
        """Where a value was set: `default`, `code`, `streamjobs.toml:worker.slots`, `env STREAMJOBS_…` or `flag`."""
        return self._sources.get(path, "default")

    def values(self) -> Iterator[Value]:
        """Every setting as text, with its source; secrets are masked."""
        for path, field in _fields():
            if path not in _PASSED_ON:
                value = MASKED if self.secret(path) else _written(_at(self, path), field)
                yield Value(path, value, self.source(path))
        for section in _PASSED_ON:
            for key, setting in sorted(_at(self, section).items()):
                path = f"{section}.{key}"
                yield Value(path, MASKED if self.secret(path) else setting, self.source(path))

    def secret(self, path: str) -> bool:
        """Whether the value at this path is one that is never shown."""
        return _is_secret(path, self.mask.patterns)


class Value(NamedTuple):
    path: str
    value: str
    source: str


class Documented(NamedTuple):
    """One setting as the documentation shows it."""

    path: str
    type: str
    default: str
    env: str
    meaning: str


def documented() -> list[Documented]:
    """Every setting, in the order of the models: what README, docs and `config show` are made from and held to."""
    return [_described(path, field) for path, field in _fields()]


def load(
    app_defaults: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force: code < streamjobs.toml < `STREAMJOBS_*` < flags.

    `app_defaults` and `flags` may be nested (`{"worker": {"slots": 8}}`) or dotted (`{"worker.slots": 8}`); a flag that is
    None was not given. `file`: another one than `streamjobs.toml` in the working directory (or `STREAMJOBS_CONFIG`).
    Raises SettingsError, one line for each thing that is wrong.
    """
    environ = os.environ if environ is None else environ
    given = {path: value for path, value in _flat(flags or {}).items() if value is not None}
    layers = (
        Layer(given, dict.fromkeys(given, "flag")),
        _environment(environ),
        _file(file, environ),
        _code(app_defaults or {}),
    )
    _refuse([fault for layer in layers for fault in layer.faults()])
    return _merged(layers)


class Layer(PydanticBaseSettingsSource):
    """One place where settings stand: dotted path → value, and dotted path → what to call that place."""

    def __init__(self, found: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        super().__init__(Settings)
        self.found, self.origins = found, origins

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        nested: dict[str, Any] = {}
        for path, value in self.found.items():
            section, _, rest = path.partition(".")
            if rest:
                nested.setdefault(section, {})[rest] = value
            else:
                nested[path] = value
        return nested

    def faults(self) -> list[str]:
        """What stands here and is no setting, or none that a user may set."""
        return [fault for path in self.found if (fault := self._fault(path))]

    def _fault(self, path: str) -> str | None:
        section, _, key = path.partition(".")
        if section in _PASSED_ON and key:
            reason = client_keys.refused(key) if section == "kafka" else _OF_THE_REGISTRY.get(key)
            return reason and f"{path} ({self.origins[path]}) can't be set: {reason}"
        if path in _PATHS:
            return None
        if path in _SECTIONS:
            return f"{path} ({self.origins[path]}) is a section, not a value: set one of {', '.join(_SECTIONS[path])}"
        return f"{path} ({self.origins[path]}) is no setting{_did_you_mean(path, self.origins[path])}"


def env_name(path: str) -> str:
    """`worker.slots` → `STREAMJOBS_WORKER__SLOTS`; `kafka.security.protocol` → `STREAMJOBS_KAFKA__SECURITY_PROTOCOL`."""
    section, _, rest = path.partition(".")
    return PREFIX + (f"{section}__{rest.replace('.', '_')}" if rest else section).upper()


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)


# --- the layers -------------------------------------------------------------------------------------------------------


def _code(given: Mapping[str, Any]) -> Layer:
    flat = _flat(given)
    return Layer(flat, dict.fromkeys(flat, "code"))


def _file(named: Path | None, environ: Mapping[str, str]) -> Layer:
    path = named or Path(environ.get(FILE_VARIABLE) or FILE)
    if not path.exists():
        if named or environ.get(FILE_VARIABLE):
            raise SettingsError(f"the settings file {path} does not exist: check --config and {FILE_VARIABLE}")
        return Layer({}, {})
    flat = _flat(_parsed(path))
    return Layer(flat, {key: f"{path.name}:{key}" for key in flat})


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"the settings file {path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SettingsError(f"the settings file {path} is not valid TOML: {error}") from error


def _environment(environ: Mapping[str, str]) -> Layer:
    """An empty variable is one that isn't set: compose files pass `${NAME:-}` on."""
    found, origins = {}, {}
    for name, value in environ.items():
        if name.startswith(PREFIX) and value and not _NOT_SETTINGS.fullmatch(name):
            path = _path_of(name)
            found[path], origins[path] = value, f"env {name}"
    return Layer(found, origins)


def _path_of(name: str) -> str:
    section, _, rest = name.removeprefix(PREFIX).lower().partition("__")
    if section in _PASSED_ON and rest and rest not in _WITH_UNDERSCORE:
        rest = rest.replace("__", ".").replace("_", ".")
    return f"{section}.{rest.replace('__', '.')}" if rest else section


def _flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested tables as dotted paths; so `[kafka] security.protocol = …` is what it looks like, not a table in a table."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


def _merged(layers: tuple[Layer, ...]) -> Settings:
    sources: dict[str, str] = {}
    for layer in reversed(layers):
        sources |= layer.origins
    try:
        settings = Settings(layers=layers)  # type: ignore[call-arg]  # not a field: read by settings_customise_sources
    except ValidationError as error:
        found = {path: value for layer in reversed(layers) for path, value in layer.found.items()}
        raise SettingsError("\n".join(_explained(error, sources, found))) from None
    settings._sources.update(sources)
    if settings.bootstrap == "memory" and sources["bootstrap"] != "flag":
        raise SettingsError(f'bootstrap ({sources["bootstrap"]}) is "memory": only app.testing() has that; use "embedded"')
    return settings


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _refuse(faults: list[str]) -> None:
    if faults:
        raise SettingsError("\n".join(faults))


def _did_you_mean(path: str, origin: str) -> str:
    guess = _guess(path)
    if guess is None:
        return ": `streamjobs config show --all` lists them"
    return f": did you mean {env_name(guess) if origin.startswith('env ') else guess}?"


def _guess(path: str) -> str | None:
    """`slots`, `worker_slots` and `worker.slotz` all mean `worker.slots`; `kafka_sasl_username`, a key that is passed on."""
    section, _, key = path.partition("_")
    if section in _PASSED_ON and key:
        return f"{section}.{key.replace('_', '.')}"
    unified = {known.replace(".", "_"): known for known in _PATHS}
    by_last = {known.rpartition(".")[2]: known for known in reversed(_PATHS)}
    word, last = path.replace(".", "_"), path.rpartition(".")[2]
    found = unified.get(word) or by_last.get(last)
    if found:
        return found
    near, near_last = closest(word, unified), closest(last, by_last)
    return unified[near] if near else by_last[near_last] if near_last else None


def _explained(error: ValidationError, sources: Mapping[str, str], found: Mapping[str, Any]) -> Iterator[str]:
    for fault in error.errors(include_url=False):
        path = _path_at(fault["loc"])
        reason = fault["msg"].removeprefix("Value error, ")
        if path not in found:  # two settings that don't go together
            yield reason if reason.startswith(path) else f"{path}: {reason}"
            continue
        shown = MASKED if _is_secret(path, ()) else _USER.sub(f"//{MASKED}@", repr(found[path]))
        for said_before in (f"{path} is {shown}: ", f"{shown} is "):
            reason = reason.removeprefix(said_before)
        yield f"{path} ({sources[path]}) is {shown}: {reason[0].lower()}{reason[1:]}"


def _path_at(loc: tuple[int | str, ...]) -> str:
    if loc and loc[0] in _PASSED_ON:
        return ".".join(str(part) for part in loc[:2])
    words = [part for part in loc if isinstance(part, str)]
    return ".".join(words)


# --- what there is ----------------------------------------------------------------------------------------------------


def _fields(model: type[BaseModel] = Settings, above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{name}.")
        else:
            yield above + name, field


_PATHS = [path for path, _ in _fields() if path not in _PASSED_ON]
_SECTIONS = {section: list(keys) for section, keys in _PASSED_ON.items()}
for _path in _PATHS:
    if "." in _path:
        _SECTIONS.setdefault(_path.partition(".")[0], []).append(_path)


def _described(path: str, field: FieldInfo) -> Documented:
    meaning = field.description or ""
    if path in _PASSED_ON:
        return Documented(f"{path}.<key>", "text", "", f"{PREFIX}{path.upper()}__<KEY>", meaning)
    return Documented(path, _type(field), _plain(field.default), env_name(path), meaning)


def _type(field: FieldInfo) -> str:
    if _AS_SECONDS in field.metadata:
        return "duration"
    if get_origin(field.annotation) is Literal:
        return " | ".join(get_args(field.annotation))
    if get_origin(field.annotation) is list:
        return "list of text"
    if field.annotation is bool:
        return "true | false"
    return "whole number" if field.annotation is int else "text"


def _written(value: Any, field: FieldInfo) -> str:
    return text(value) if _AS_SECONDS in field.metadata else _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else str(value)


def _at(settings: BaseModel, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _is_secret(path: str, patterns: Iterable[str]) -> bool:
    if path == "mask.patterns":
        return False
    name = path.removeprefix("kafka.").removeprefix("registry.").lower()
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in (*_SECRETS, *patterns))
