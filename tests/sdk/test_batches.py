"""Many sandboxes by one call: items, one that is wrong, cancel, events in order; both clients."""

import asyncio
import time
import uuid

import pytest
from miosa import AsyncMiosa
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import SHAPE

LITTLE = {"persistent": False, "timeout_sec": 600, **SHAPE}


def settled(client, batch):
    """The events to the end, and the record then."""
    events = list(client.sandbox_batches.events(batch["id"]))
    return events, client.sandbox_batches.get(batch["id"])


def remove(client, items):
    for item in items:
        if item["sandbox_id"]:
            client.sandboxes.delete(item["sandbox_id"])


def test_one_wrong_item_fails_alone_and_events_come_in_order(client):
    name = f"batch-{uuid.uuid4().hex[:8]}"
    # The second name is taken.
    with client.sandboxes.create(name=f"{name}-2", **LITTLE) as taken:
        batch = client.sandbox_batches.create(count=3, concurrency=2, name=name, **LITTLE)
        assert (batch["requested_count"], batch["concurrency"]) == (3, 2)
        events, batch = settled(client, batch)
        items = client.sandbox_batches.items(batch["id"])["data"]
        try:
            assert batch["status"] == "partially_failed"
            assert (batch["completed_count"], batch["failed_count"]) == (2, 1)
            assert batch["runtime_counts"] == {"running": 2}
            assert [item["index"] for item in items] == [0, 1, 2]
            assert [item["status"] for item in items] == ["succeeded", "failed", "succeeded"]
            assert items[1]["error"]["code"] == "NAME_TAKEN" and taken.id in items[1]["error"]["message"]
            assert client.sandboxes.get(items[0]["sandbox_id"]).state == "running"
            ended = [event["completed_count"] + event["failed_count"] for event in events]
            assert ended == sorted(ended) and events[-1]["status"] == "partially_failed"
            page = client.sandbox_batches.items(batch["id"], limit=2)
            assert len(page["data"]) == 2 and page["next_cursor"] == "2"
        finally:
            remove(client, items)


def test_cancel_stops_what_was_not_begun(client):
    batch = client.sandbox_batches.create(count=4, concurrency=1, **LITTLE)
    batch = client.sandbox_batches.cancel(batch["id"])
    assert batch["status"] in ("cancelling", "cancelled") and batch["queued_count"] == 0
    events, batch = settled(client, batch)
    items = client.sandbox_batches.items(batch["id"])["data"]
    remove(client, items)
    assert batch["status"] == "cancelled" and batch["cancelled_count"] >= 3
    assert events[-1]["status"] == "cancelled"
    # One that has settled stays as it is, and is an operation that has ended.
    assert client.sandbox_batches.cancel(batch["id"])["status"] == "cancelled"
    assert client.operations.get(batch["id"])["status"] == "cancelled"
    assert [event["status"] for event in client.operations.events(batch["id"])] == ["cancelled"]
    with pytest.raises(MiosaError) as refused:
        client.operations.cancel(batch["id"])
    assert refused.value.code == "OPERATION_NOT_CANCELLABLE"


def test_what_is_wrong_for_all_is_refused(client):
    for wrong, error in (
        ({}, ValidationError),
        ({"count": 0}, ValidationError),
        ({"count": 501}, ValidationError),
        ({"count": 1, "concurrency": 17}, ValidationError),
        ({"count": 1, "cpu_count": 99, "memory_mb": 512, "disk_size_mb": 4096, "size": "giant"}, ValidationError),
        ({"count": 1, "template_id": "no-such-template"}, NotFoundError),
    ):
        with pytest.raises(error):
            client.sandbox_batches.create(**wrong)
    for call in (client.sandbox_batches.get, client.sandbox_batches.items, client.sandbox_batches.cancel, client.operations.get):
        with pytest.raises(NotFoundError):
            call("bat_none")


def test_the_asynchronous_client_has_batches_too():
    async def run():
        async with AsyncMiosa() as client:
            batch = await client.sandbox_batches.create(count=1, **LITTLE)
            events = [event async for event in client.sandbox_batches.events(batch["id"])]
            assert events[-1]["status"] == "succeeded"
            items = (await client.sandbox_batches.items(batch["id"]))["data"]
            assert (await client.operations.get(batch["id"]))["status"] == "succeeded"
            await client.sandboxes.delete(items[0]["sandbox_id"])

    asyncio.run(run())
