"""What the demo publishes: a few thousand jobs in waves, the same in every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from streamjobs.demo import app as sample
from streamjobs.job import JobType

Row = dict[str, Any]

#: Jobs of each type.
JOBS: dict[str, int] = {"make_thumbnail": 1_500, "call_webhook": 1_000, "charge_card": 500}
CUSTOMERS = 40
#: They are published in so many waves.
WAVES = 24
#: Bytes that are no payload of any job type.
GARBAGE = b"\xde\xad\xbe\xef is no Avro"


def waves() -> Iterator[list[tuple[JobType[Any, Any], list[Row]]]]:
    """For each wave, the job types and their rows; together they are `JOBS`."""
    for wave in range(WAVES):
        yield [
            (sample.app.job_types[name], [_row(name, number) for number in range(wave, count, WAVES)])
            for name, count in JOBS.items()
        ]


def _row(name: str, number: int) -> Row:
    if name == "make_thumbnail":
        return {"image_id": number, "width": 160 * (1 + number % 4)}
    if name == "call_webhook":
        return {"delivery_id": number, "url": f"https://shop-{number % 30}.example/hooks"}
    return {"payment_id": number, "customer_id": f"customer-{number % CUSTOMERS}", "cents": 100 + number}
