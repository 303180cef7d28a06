"""The broken layer loses exactly one record, whatever the number of its producers, and only one on its way to the ladder."""

from __future__ import annotations

from pathlib import Path

from streamjobs.core.record import Record
from streamjobs.core.topics import Names
from streamjobs.demo import app as sample
from streamjobs.demo.broken import LOSS, NOWHERE, LosingApp, LosingBroker
from streamjobs.demo.broken import app as broken_app
from streamjobs.testing import ManualClock, MemoryBroker

NAMES = Names()


def test_the_first_record_for_the_ladder_goes_nowhere_and_is_acknowledged(tmp_path: Path) -> None:
    memory = MemoryBroker(ManualClock())
    broker = LosingBroker(memory, NAMES, tmp_path / "lost")
    ladder, main = NAMES.delay("demo", "1s"), NAMES.main("images")
    acknowledged: list[str] = []

    for number in range(2):
        producer = broker.producer()
        for topic in (main, ladder):
            producer.send(Record(topic, b"%d" % number), lambda error, message: acknowledged.append(message.topic()))
        producer.flush(1)
        producer.close()

    assert sorted(acknowledged) == sorted([main, NOWHERE, main, ladder])


def test_it_runs_the_same_jobs_on_a_losing_broker(tmp_path: Path) -> None:
    app = LosingApp(sample.app, {LOSS: str(tmp_path / "lost")}, bootstrap="embedded:127.0.0.1:1")

    assert app.job_types == sample.app.job_types == broken_app.job_types
    assert (app.name, app.start_hooks) == (sample.app.name, sample.app.start_hooks)
    assert isinstance(app.broker, LosingBroker)
    app.close()
