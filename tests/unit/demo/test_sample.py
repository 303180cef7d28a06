"""The sample application: what succeeds, what fails twice, what is a dead letter; and what its ledger says of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from streamjobs.demo import load, outside
from streamjobs.demo.app import app, call_webhook, charge_card, make_thumbnail
from streamjobs.demo.judge import Evidence, Letter, judge
from streamjobs.demo.ledger import Reader, note
from streamjobs.testing.app import Testing

FINE, FLAKY, BROKEN = 1, 7, 11


def publish_one_of_each(number: int) -> list[str]:
    return [
        make_thumbnail.publish(image_id=number).id,
        call_webhook.publish(delivery_id=number, url="https://a.example").id,
        charge_card.publish(payment_id=number, customer_id="acme", cents=100).id,
    ]


def test_each_job_type_is_of_another_sort() -> None:
    assert (make_thumbnail.kind, make_thumbnail.key) == ("threads", None)
    assert call_webhook.kind == "aio"
    assert charge_card.key == "customer_id"
    assert set(app.job_types) == set(load.JOBS)


def test_what_is_fine_ends_in_its_first_run(world: Testing, book: Reader) -> None:
    jobs = publish_one_of_each(FINE)
    world.run()

    book.read()
    assert [entry.what for entry in book.entries if entry.job == jobs[0]] == ["started", "ended"]
    assert judge(Evidence(jobs, book.entries)).clean


def test_what_is_flaky_fails_twice_and_ends_in_its_third_run(world: Testing, book: Reader) -> None:
    jobs = publish_one_of_each(FLAKY)
    world.run(raise_errors=False)

    book.read()
    for job in jobs:
        said = [(entry.what, entry.run) for entry in book.entries if entry.job == job and entry.what != "started"]
        assert said == [("failed", 1), ("failed", 2), ("ended", 3)]
    assert Counter(entry.error_type for entry in book.entries) > Counter(ConnectionError=4, TimeoutError=2)
    assert not world.dead_letters()
    assert judge(Evidence(jobs, book.entries)).clean


def test_what_is_broken_is_a_dead_letter_of_each_reason(world: Testing, book: Reader) -> None:
    jobs = publish_one_of_each(BROKEN)
    world.run(raise_errors=False)

    found = {meta.job_type: (meta.reason, meta.run) for meta in world.dead_letters()}
    assert found == {
        "make_thumbnail": ("exhausted", 3),
        "call_webhook": ("discarded", 1),
        "charge_card": ("rejected", 1),
    }
    book.read()
    letters = [Letter(meta.job_id, meta.run, meta.reason) for meta in world.dead_letters()]
    assert judge(Evidence(jobs, book.entries, letters)).clean


def test_what_is_broken_works_once_the_fix_is_deployed(world: Testing, fix: Path) -> None:
    fix.touch()
    publish_one_of_each(BROKEN)
    world.run()

    assert not world.dead_letters()


def test_a_worker_process_says_when_it_opens_and_closes(book: Reader) -> None:
    with app.testing():
        assert [entry.what for entry in book.read()] == ["opened"]

    assert [entry.what for entry in book.read()] == ["closed"]


def test_without_a_ledger_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEMO_LEDGER", raising=False)

    note("opened")

    assert not list(tmp_path.iterdir())


def test_a_line_that_is_not_whole_yet_is_left_for_the_next_look(book: Reader, tmp_path: Path) -> None:
    note("opened")
    with (tmp_path / "ledger").open("ab") as file:
        file.write(b'{"what": "clo')
        file.flush()
        assert [entry.what for entry in book.read()] == ["opened"]
        file.write(b'sed", "pid": 1, "at": 2.0}\n')

    assert [entry.what for entry in book.read()] == ["closed"]
    assert [entry.what for entry in book.entries] == ["opened", "closed"]


def test_the_load_is_what_it_says_and_has_some_of_everything() -> None:
    rows = [(job_type.name, row) for wave in load.waves() for job_type, some in wave for row in some]

    assert Counter(name for name, _ in rows) == load.JOBS
    for name in load.JOBS:
        numbers = [next(iter(row.values())) for of, row in rows if of == name]
        assert sorted(numbers) == list(range(load.JOBS[name]))
        assert any(outside.flaky(number, 2) for number in numbers)
        assert not any(outside.flaky(number, 3) for number in numbers)
        assert any(outside.broken(number) for number in numbers)
        assert not any(outside.broken(number) and outside.flaky(number, 1) for number in numbers)
