"""Settings: which source wins, where a value stands, and how a mistake is answered."""

from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from streamjobs.core.client_keys import OWNED
from streamjobs.errors import SettingsError
from streamjobs.settings import MASKED, Settings, documented, env_name, load


def refusal(**given: Any) -> str:
    """The message with which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load(given.pop("code", {}), **{"environ": {}, **given})
    return str(caught.value)


@pytest.fixture(autouse=True)
def _no_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_setting_has_its_default_without_any_source() -> None:
    settings = load(environ={})

    assert settings.bootstrap == "localhost:9092"
    assert settings.worker.slots == 32
    assert settings.worker.drain == 25.0
    assert settings.history == 7 * 86_400
    assert settings.delay.tiers == ["5s", "15s", "1m", "4m", "15m", "1h", "4h", "12h", "1d", "7d"]
    assert settings.source("worker.slots") == "default"


def test_code_is_weaker_than_the_file_than_the_environment_than_a_flag(tmp_path: Path) -> None:
    Path("streamjobs.toml").write_text("partitions = 2\n[worker]\nslots = 2\nprocesses = 2\n")
    code = {"replication": 1, "partitions": 1, "worker": {"slots": 1, "processes": 1}}
    environ = {"STREAMJOBS_WORKER__SLOTS": "3", "STREAMJOBS_WORKER__PROCESSES": "3"}

    settings = load(code, environ=environ, flags={"worker.processes": 4})

    assert (settings.replication, settings.source("replication")) == (1, "code")
    assert (settings.partitions, settings.source("partitions")) == (2, "streamjobs.toml:partitions")
    assert (settings.worker.slots, settings.source("worker.slots")) == (3, "env STREAMJOBS_WORKER__SLOTS")
    assert (settings.worker.processes, settings.source("worker.processes")) == (4, "flag")


def test_a_flag_that_was_not_given_leaves_the_value_alone() -> None:
    assert load({"partitions": 3}, environ={}, flags={"partitions": None}).partitions == 3


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    """Compose files pass `${STREAMJOBS_WORKER__SLOTS:-}` on."""
    assert load(environ={"STREAMJOBS_WORKER__SLOTS": ""}).worker.slots == 32


@pytest.mark.parametrize("given", ["90s", "1m30s", 90, 90.0, "90", timedelta(seconds=90)])
def test_a_duration_is_text_or_seconds_or_a_timedelta(given: object) -> None:
    assert load({"worker": {"drain": given}}, environ={}).worker.drain == 90.0


@pytest.mark.parametrize("given", ["soon", "-1s", -1, 0, True, [1], float("nan"), float("inf")])
def test_what_is_no_duration_is_refused_with_its_source(given: object) -> None:
    message = refusal(code={"worker": {"drain": given}})

    assert message.startswith(f"worker.drain (code) is {given!r}: ")


def test_lists_come_from_the_environment_as_json_or_between_commas() -> None:
    for text in ('["*pin*", "*iban*"]', "*pin*, *iban*"):
        assert load(environ={"STREAMJOBS_MASK__PATTERNS": text}).mask.patterns == ["*pin*", "*iban*"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("worker.slotz", "worker.slots"), ("slots", "worker.slots"), ("bootsrap", "bootstrap"), ("worker_slots", "worker.slots")],
)
def test_an_unknown_setting_is_answered_with_the_one_that_was_meant(wrong: str, meant: str) -> None:
    assert refusal(flags={wrong: 1}) == f"{wrong} (flag) is no setting: did you mean {meant}?"


def test_an_unknown_variable_is_answered_with_the_variable_that_was_meant() -> None:
    """One underscore where two belong."""
    message = refusal(environ={"STREAMJOBS_WORKER_SLOTS": "8"})

    assert message.endswith("(env STREAMJOBS_WORKER_SLOTS) is no setting: did you mean STREAMJOBS_WORKER__SLOTS?")


def test_a_key_of_the_client_with_one_underscore_is_answered_with_two() -> None:
    """What bit: "`config show --all` lists them", which it does not."""
    message = refusal(environ={"STREAMJOBS_KAFKA_SASL_USERNAME": "billing"})

    assert message.endswith("(env STREAMJOBS_KAFKA_SASL_USERNAME) is no setting: did you mean STREAMJOBS_KAFKA__SASL_USERNAME?")
    assert refusal(flags={"registry_url": 1}).endswith("did you mean registry.url?")


def test_an_unknown_setting_in_the_file_is_named_with_the_file() -> None:
    Path("streamjobs.toml").write_text("[wroker]\nslots = 2\n")

    assert refusal() == "wroker.slots (streamjobs.toml:wroker.slots) is no setting: did you mean worker.slots?"


def test_all_mistakes_are_told_at_once() -> None:
    message = refusal(code={"slotz": 1}, environ={"STREAMJOBS_KAFKA__GROUP_ID": "x", "STREAMJOBS_WORKER": "x"})

    assert len(message.splitlines()) == 3


def test_a_section_is_not_a_value() -> None:
    assert refusal(code={"delay": 5}) == "delay (code) is a section, not a value: set one of delay.tiers, delay.hold"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ({"worker": {"slots": 0}}, "worker.slots (code) is 0"),
        ({"worker": {"slots": True}}, "give a whole number"),
        ({"worker": {"group": "a.b"}}, "can't be part of a topic's name"),
        ({"worker": {"listen": "9464"}}, "HOST:PORT"),
        ({"worker": {"session_timeout": "10m"}}, "max_poll_interval is shorter than session_timeout"),
        ({"delay": {"tiers": []}}, "at least one tier"),
        ({"delay": {"tiers": ["5s", "5000ms"]}}, "each length once"),
        ({"delay": {"tiers": ["1 m"]}}, "delay.tiers (code) is ['1 m']"),
        ({"delay": {"hold": "1s"}}, "the smallest tier is 5s"),
        ({"log": {"level": "loud"}}, "'debug', 'info'"),
        ({"jobs_prefix": "a/b"}, "begins the names of topics"),
        ({"jobs_prefix": "streamjobs.jobs"}, "begin alike"),
        ({"max_message_bytes": 1000}, "max_message_bytes (code) is 1000"),
        ({"bootstrap": ""}, "bootstrap (code) is ''"),
        ({"bootstrap": "foo"}, "HOST:PORT"),
        ({"bootstrap": "localhost:http"}, "HOST:PORT"),
        ({"bootstrap": "http://localhost:9092"}, "HOST:PORT"),
        ({"bootstrap": "a:1,b"}, "HOST:PORT"),
        ({"bootstrap": "a:1;b:2"}, "HOST:PORT"),
        # what no client or broker takes: it would be found out by a worker, or by nobody
        ({"bootstrap": "localhost:99999"}, "HOST:PORT"),
        ({"bootstrap": "[::1]:65536,a:1"}, "HOST:PORT"),
        ({"bootstrap": "embedded:localhost:70000"}, "HOST:PORT"),
        ({"worker": {"listen": "127.0.0.1:99999"}}, "HOST:PORT"),
        ({"worker": {"session_timeout": "50ms"}}, "worker.session_timeout (code) is '50ms': give a duration from 1s to 1h"),
        ({"worker": {"max_poll_interval": "25h"}}, "give a duration from 1s to 1d"),
        ({"max_delay": "400000d"}, "give a duration from 1ms to 365000d"),
        ({"partitions": 10**20}, "less than or equal to 100000"),
        ({"max_message_bytes": 10**9}, "max_message_bytes (code) is 1000000000"),
        # what no machine has: `worker` said nothing, or "this was not foreseen"; its drain would never have begun
        ({"worker": {"slots": 10**9}}, "worker.slots (code) is 1000000000: input should be less than or equal to 100000"),
        ({"worker": {"processes": 10**20}}, "less than or equal to 1000"),
        ({"worker": {"children": 10**11}}, "less than or equal to 1000"),
        ({"worker": {"drain": "1000000d"}}, "worker.drain (code) is '1000000d': give a duration from 1ms to 365d"),
    ],
)
def test_a_value_that_can_not_be_is_refused(code: dict[str, Any], says: str) -> None:
    assert says in refusal(code=code)


def test_brokers_that_are_misspelt_are_refused_with_the_place_where_they_stand() -> None:
    """librdkafka takes the one for `foo:9092` and the other for port 0, and tries them until time is up."""
    assert "bootstrap (env STREAMJOBS_BOOTSTRAP) is 'foo': give HOST:PORT" in refusal(environ={"STREAMJOBS_BOOTSTRAP": "foo"})
    assert "bootstrap (env STREAMJOBS_BOOTSTRAP) is 'localhost:http'" in refusal(environ={"STREAMJOBS_BOOTSTRAP": "localhost:http"})


@pytest.mark.parametrize(
    "bootstrap",
    [
        *("h:1", "a-b.example:9092, c_d:9093", "10.0.0.1:9092,", "[::1]:9092", "SASL_SSL://h:9092", "plaintext://h:9092"),
        *("embedded", "embedded:127.0.0.1:40000"),
    ],
)
def test_brokers_are_written_in_these_ways(bootstrap: str) -> None:
    assert load({"bootstrap": bootstrap}, environ={}).bootstrap == bootstrap


def test_the_broker_in_memory_is_for_tests_only() -> None:
    """Elsewhere it would be taken for the name of a host."""
    assert 'use "embedded"' in refusal(environ={"STREAMJOBS_BOOTSTRAP": "memory"})
    assert load(environ={}, flags={"bootstrap": "memory"}).bootstrap == "memory"


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"

    assert f"{missing} does not exist" in refusal(file=missing)
    assert f"{missing} does not exist" in refusal(environ={"STREAMJOBS_CONFIG": str(missing)})


def test_a_file_that_is_no_toml_is_refused_with_the_place() -> None:
    Path("streamjobs.toml").write_text("partitions = \n")

    assert "streamjobs.toml is not valid TOML" in refusal()
    assert "line 1" in refusal()


def test_another_file_is_read_when_it_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("partitions = 5\n")

    assert load(environ={}, file=other).source("partitions") == "other.toml:partitions"
    assert load(environ={"STREAMJOBS_CONFIG": str(other)}).partitions == 5


def test_variables_of_kubernetes_services_are_no_settings() -> None:
    """A Service called streamjobs-monitor puts these into every pod of its namespace."""
    environ = {
        "STREAMJOBS_MONITOR_SERVICE_HOST": "10.0.0.7",
        "STREAMJOBS_MONITOR_SERVICE_PORT": "8484",
        "STREAMJOBS_MONITOR_SERVICE_PORT_HTTP": "8484",
        "STREAMJOBS_MONITOR_PORT": "tcp://10.0.0.7:8484",
        "STREAMJOBS_MONITOR_PORT_8484_TCP": "tcp://10.0.0.7:8484",
        "STREAMJOBS_MONITOR_PORT_8484_TCP_ADDR": "10.0.0.7",
        "STREAMJOBS_PORT": "tcp://10.0.0.7:8484",
    }

    assert load(environ=environ).model_dump() == load(environ={}).model_dump()


# --- [kafka] ----------------------------------------------------------------------------------------------------------


def test_kafka_keys_are_passed_through_from_every_source() -> None:
    Path("streamjobs.toml").write_text('[kafka]\nsasl.mechanism = "PLAIN"\n"ssl.ca.location" = "/ca.pem"\n')
    environ = {"STREAMJOBS_KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "STREAMJOBS_KAFKA__LOG_LEVEL": "7"}

    settings = load({"kafka": {"socket.keepalive.enable": False, "linger.ms": 5}}, environ=environ)

    assert settings.kafka == {
        "sasl.mechanism": "PLAIN",
        "ssl.ca.location": "/ca.pem",
        "security.protocol": "SASL_SSL",
        "log_level": "7",
        "socket.keepalive.enable": "false",
        "linger.ms": "5",
    }
    assert settings.source("kafka.security.protocol") == "env STREAMJOBS_KAFKA__SECURITY_PROTOCOL"
    assert settings.source("kafka.sasl.mechanism") == "streamjobs.toml:kafka.sasl.mechanism"


@pytest.mark.parametrize("key", [key for key in OWNED if "*" not in key] + ["error_cb", "test.mock.num.brokers"])
def test_a_kafka_key_of_ours_is_refused_with_the_reason(key: str) -> None:
    message = refusal(code={"kafka": {key: "x"}})

    assert message.startswith(f"kafka.{key} (code) can't be set: ")


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_masked_in_every_listing() -> None:
    keys = ("sasl.password", "ssl.key.pem", "sasl.oauthbearer.client.secret", "sasl.jaas.config", "x.vault.pin")
    secrets = dict.fromkeys(keys, "hush")

    listed = {v.path: v.value for v in load({"kafka": secrets, "mask": {"patterns": ["*PIN*"]}}, environ={}).values()}

    assert {listed[f"kafka.{key}"] for key in secrets} == {MASKED}
    assert listed["mask.patterns"] == "*PIN*"


def test_a_secret_that_is_malformed_is_not_repeated() -> None:
    message = refusal(code={"kafka": {"sasl.password": ["hush"]}})

    assert "hush" not in message


@pytest.mark.parametrize(
    ("path", "value"),
    [("schemas.registry", "https://me:hu/sh@registry:8081/x"), ("bootstrap", "SASL_SSL://me:hu/sh@broker:9092")],
)
def test_a_password_in_an_address_that_is_refused_is_not_repeated(path: str, value: str) -> None:
    message = refusal(code={path: value})

    assert path in message and "hu/sh" not in message


# --- [schemas], [registry] --------------------------------------------------------------------------------------------


def test_a_registrys_keys_are_passed_through_and_its_secrets_masked() -> None:
    environ = {"STREAMJOBS_SCHEMAS__REGISTRY": "https://registry:8081", "STREAMJOBS_REGISTRY__BASIC_AUTH_USER_INFO": "me:hush"}
    settings = load({"registry": {"ssl.ca.location": "/ca.pem"}}, environ=environ)
    assert settings.schemas.registry == "https://registry:8081"
    assert settings.registry == {"ssl.ca.location": "/ca.pem", "basic.auth.user.info": "me:hush"}
    assert {v.path: v.value for v in settings.values()}["registry.basic.auth.user.info"] == MASKED


def test_what_the_registrys_reader_owns_is_refused() -> None:
    assert refusal(code={"registry": {"url": "http://x"}}) == "registry.url (code) can't be set: set schemas.registry"
    assert "give the user" not in refusal(code={"schemas.registry": "registry:8081"})
    assert "registry.basic.auth.user.info" in refusal(code={"schemas.registry": "http://me:hush@registry"})


# --- what documentation is made from ----------------------------------------------------------------------------------


def test_every_setting_is_documented() -> None:
    listed = documented()

    assert all(setting.meaning.endswith((".", "…")) for setting in listed)
    assert [s.path for s in listed[:-2]] == [value.path for value in load(environ={}).values()]
    assert [s.path for s in listed[-2:]] == ["registry.<key>", "kafka.<key>"]
    by_path = {setting.path: setting for setting in listed}
    assert by_path["worker.drain"][1:4] == ("duration", "25s", "STREAMJOBS_WORKER__DRAIN")
    assert by_path["provision"].type == "check | auto"
    assert by_path["partitions"].type == "whole number"
    assert by_path["delay.tiers"].type == "list of text"


def test_every_documented_variable_sets_what_it_says() -> None:
    """The default, said through the environment, changes nothing but the source."""
    for setting in documented()[:-1]:
        if setting.default:
            settings = load(environ={setting.env: setting.default})
            assert settings.model_dump() == load(environ={}).model_dump()
            assert settings.source(setting.path) == f"env {setting.env}"


def test_the_name_of_a_variable_follows_from_the_path() -> None:
    assert env_name("worker.slots") == "STREAMJOBS_WORKER__SLOTS"
    assert env_name("kafka.security.protocol") == "STREAMJOBS_KAFKA__SECURITY_PROTOCOL"


def test_settings_can_not_be_changed_and_travel_to_other_processes() -> None:
    settings = load({"partitions": 3}, environ={})
    with pytest.raises(ValueError, match="frozen"):
        settings.partitions = 4

    copy: Settings = pickle.loads(pickle.dumps(settings))

    assert copy == settings
    assert copy.source("partitions") == "code"


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:9464", ("127.0.0.1", 9464)), ("[::1]:80", ("::1", 80)), ("off", None)],
)
def test_where_to_listen(listen: str, address: tuple[str, int] | None) -> None:
    assert load({"worker": {"listen": listen}}, environ={}).worker.address() == address


def test_the_ladder_has_the_tiers_of_the_settings() -> None:
    assert load(environ={"STREAMJOBS_DELAY__TIERS": "5s,1m"}).ladder.tiers == ("5s", "1m")


def test_declaring_an_app_reads_no_settings() -> None:
    code = "import sys; from streamjobs.app import App; App('a', partitions=3); sys.exit('pydantic' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
