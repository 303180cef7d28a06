"""The app that is measured: one queue, whose jobs BENCH_QUEUE names; no-op, sleeping or telling handlers.

::

    none2  key2  hot2      2 fields: without a key, with one of 10,000, all with the same one
    none11 key11 hot11     11 fields
    sleep  sleepkey        20 ms of waiting
    burn                   1 ms of computing
    stamp                  tells how long ago an instant was that its publisher wrote (for a delayed one: when it was due)
    load                   one field, of any size

With BENCH_ASYNC=1 the handlers are `async def`; with BENCH_UNCOUNTED=1 the worker counts nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from streamjobs import App
from tests.bench.ledger import PEN

app = App("bench", provision="auto")

QUEUE = os.environ.get("BENCH_QUEUE", "")
ASYNC = os.environ.get("BENCH_ASYNC") == "1"
KEYS = int(os.environ.get("BENCH_KEYS", "10000"))
WAIT_S = float(os.environ.get("BENCH_WAIT", "0.02"))
BURN_S = 0.001

mark = PEN.mark


def two(customer: str, amount: int) -> None:
    mark()


async def two_async(customer: str, amount: int) -> None:
    mark()


def eleven(
    customer: str, invoice: str, street: str, city: str, country: str, amount: int, vat: int, items: int, paid: bool, rate: float, note: str | None
) -> None:
    mark()


async def eleven_async(
    customer: str, invoice: str, street: str, city: str, country: str, amount: int, vat: int, items: int, paid: bool, rate: float, note: str | None
) -> None:
    mark()


def sleep(customer: str) -> None:
    time.sleep(WAIT_S)
    mark()


async def sleep_async(customer: str) -> None:
    await asyncio.sleep(WAIT_S)
    mark()


def burn(customer: str) -> None:
    until = time.thread_time() + BURN_S
    while time.thread_time() < until:
        pass
    mark()


def stamp(at: float) -> None:
    PEN.tell(time.time() - at)


async def stamp_async(at: float) -> None:
    PEN.tell(time.time() - at)


def load(data: bytes) -> None:
    mark()


_HANDLERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "2": (two, two_async),
    "11": (eleven, eleven_async),
    "sleep": (sleep, sleep_async),
    "burn": (burn, burn),
    "stamp": (stamp, stamp_async),
    "load": (load, load),
}
_KEYED = {"key", "hot", "sleepkey"}


def declare(queue: str) -> None:
    kind = queue.rstrip("0123456789")
    fields = queue[len(kind) :]
    sync, with_await = _HANDLERS[fields if kind in ("none", "key", "hot") else kind.removesuffix("key")]
    app.job(queue=queue, name=queue, key="customer" if kind in _KEYED else None)(with_await if ASYNC else sync)


def rows(queue: str, count: int, size: int = 100) -> Iterator[tuple[Any, ...]]:
    """Arguments of so many jobs."""
    kind = queue.rstrip("0123456789")
    for number in range(count):
        customer = "customer-hot" if kind == "hot" else f"customer-{number % KEYS:05}"
        if queue.endswith("11"):
            yield customer, f"2026-{number:08}", "Hauptstraße 12", "Berlin", "DE", number * 7 % 100_000, 1900, 3, True, 0.19, None
        elif queue.endswith("2"):
            yield customer, number
        elif kind == "load":
            yield (b"x" * size,)
        else:
            yield (customer,)


def _count_nothing() -> None:
    """There is no setting for it: what counting costs is measured against a worker that was tampered with."""
    from streamjobs.telemetry.metrics import Metrics

    Metrics.observe = Metrics.count = lambda *_, **__: None  # type: ignore[method-assign]


if QUEUE:
    declare(QUEUE)
if os.environ.get("BENCH_UNCOUNTED") == "1":
    _count_nothing()
