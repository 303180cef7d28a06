"""The sample application: a shop that makes thumbnails, calls webhooks and charges cards.

    streamjobs worker -A streamjobs.demo.app:app --provision auto
    streamjobs publish -A streamjobs.demo.app:app make_thumbnail '{"image_id": 7}'

It has one job type of each sort: an ordinary function, an async one, and one whose jobs keep their order by key.
"""

from __future__ import annotations

import asyncio
import time

from streamjobs import App, Backoff, Job, Reject, Retry
from streamjobs.demo import ledger, outside

app = App("demo")

retry = Retry(attempts=3, backoff=Backoff.exponential("1s", max="1m"))


@app.job(queue="images", retry=retry)
def make_thumbnail(job: Job, image_id: int, width: int = 320) -> None:
    """Runs in a thread. An image that nothing can open is tried three times, then it is a dead letter (`exhausted`)."""
    with ledger.noted(job):
        time.sleep(0.02)
        if outside.flaky(image_id, job.attempt):
            raise ConnectionError("the image store closed the connection")
        if outside.broken(image_id):
            raise outside.UnknownFormat(f"image {image_id} is in a format that the decoder does not know")


@app.job(queue="webhooks", timeout="5s", retry=retry, discard_on=outside.EndpointGone)
async def call_webhook(job: Job, delivery_id: int, url: str) -> None:
    """Runs on the event loop. An endpoint that is gone is not tried again (`discard_on`): a dead letter at once."""
    with ledger.noted(job):
        await asyncio.sleep(0.04)
        if outside.flaky(delivery_id, job.attempt):
            raise TimeoutError(f"{url} did not answer")
        if outside.broken(delivery_id):
            raise outside.EndpointGone(f"{url}: 410 Gone")


@app.job(queue="payments", key="customer_id", retry=retry)
def charge_card(job: Job, payment_id: int, customer_id: str, cents: int) -> None:
    """The charges of one customer start in order. A refused card is for people to look at: `Reject`, a dead letter."""
    with ledger.noted(job):
        time.sleep(0.01)
        if outside.flaky(payment_id, job.attempt):
            raise ConnectionError("the bank closed the connection")
        if outside.broken(payment_id):
            raise Reject(f"{customer_id}'s card has expired")


@app.on_start
def opened() -> None:
    ledger.note("opened")


@app.on_stop
def closed() -> None:
    ledger.note("closed")
