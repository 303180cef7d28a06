"""What a type checker knows of job types. Never run: `test_typing.py` hands it to mypy.

`# reveals: T` after a `reveal_type` is what mypy must say; `# error: code` is where it must object, and nowhere else.
"""

from __future__ import annotations

from datetime import timedelta
from typing import reveal_type

from pydantic import BaseModel

from streamjobs import App, Backoff, Job, Receipt, Retry

app = App("billing")


class Invoice(BaseModel):
    number: int
    customer: str


@app.job
def bare(number: int) -> str:
    return str(number)


@app.job(queue="invoices", key="customer_id", retry=Retry(attempts=8, backoff=Backoff.exponential("5s", max="1h")))
def with_job(job: Job, invoice_id: int, customer_id: str = "acme") -> bool:
    reveal_type(job.id)  # reveals: str
    return job.attempt == 1


@app.job
def bare_with_job(job: Job, number: int) -> None: ...


@app.job(timeout=timedelta(minutes=1))
async def asynchronous(number: int) -> float:
    return float(number)


@app.job(queue="invoices")
async def asynchronous_with_job(job: Job, *, number: int) -> None: ...


@app.job
def with_model(invoice: Invoice) -> None: ...


def publishing() -> None:
    reveal_type(bare.publish(number=7))  # reveals: streamjobs.job.Receipt
    receipt: Receipt = bare.publish(7)
    bare.publish(number="seven")  # error: arg-type
    bare.publish()  # error: call-arg
    bare.publish(nummer=7)  # error: call-arg

    with_job.publish(invoice_id=7, customer_id="acme")
    with_job.publish(7)
    with_job.publish(invoice_id=7, customer_id=8)  # error: arg-type
    with_job.publish(Job.local(with_job), 7)  # error: arg-type, arg-type
    bare_with_job.publish(number=1)
    bare_with_job.publish(number=None)  # error: arg-type

    asynchronous.publish(number=7)
    asynchronous.publish(number="seven")  # error: arg-type
    asynchronous_with_job.publish(number=7)
    asynchronous_with_job.publish(7)  # error: call-arg

    with_model.publish(Invoice(number=7, customer="acme"))
    with_model.publish(invoice={"number": 7})  # error: arg-type
    reveal_type(bare.publish_many([{"number": 7}]))  # reveals: list[streamjobs.job.Receipt]
    print(receipt.offset + 1, receipt.id.upper())


def with_options() -> None:
    bare.options(delay="10m", id="b-7", tags=["a"]).publish(number=7)
    bare.options(delay=timedelta(minutes=10)).publish(number="seven")  # error: arg-type
    bare.options(dely="10m")  # error: call-arg
    with_job.options(key="acme").publish(7, customer_id="acme")
    with_job.options(expires="1h").publish("seven")  # error: arg-type
    reveal_type(asynchronous.options(delay=5).publish(number=1))  # reveals: streamjobs.job.Receipt


async def awaiting() -> None:
    reveal_type(await bare.publish_async(number=7))  # reveals: streamjobs.job.Receipt
    await asynchronous.publish_async(number="seven")  # error: arg-type
    await with_job.publish_async(invoice_id=7)
    await with_job.publish_async(invoice=7)  # error: call-arg
    await with_job.options(delay="1m").publish_async(invoice_id=7)
    await with_job.options(delay="1m").publish_async(invoice_id=None)  # error: arg-type


async def calling() -> None:
    """Still the functions that they were."""
    reveal_type(bare(7))  # reveals: str
    reveal_type(with_job(invoice_id=7))  # reveals: bool
    reveal_type(await asynchronous(number=7))  # reveals: float
    bare("seven")  # error: arg-type
    with_job()  # error: call-arg


def declaring() -> None:
    app.job(order="sorted")  # error: call-overload
    app.job(queue=7)  # error: call-overload
    Retry(attempts="many")  # error: arg-type
    app.on_start(publishing)
