"""The asynchronous client, once through what is told of a sandbox and of its files."""

import asyncio
import io
import os
import tarfile

import pytest
from miosa import AsyncMiosa
from miosa.errors import MiosaError


def test_an_async_client_sees_what_happens(place):
    asyncio.run(asyncio.wait_for(day(place), 150))


async def first(items, wanted):
    async for item in items:
        if wanted(item):
            return item
    raise AssertionError("the stream ended")


async def day(place):
    async with AsyncMiosa() as client:
        box = await client.sandboxes.get(os.environ["COVE_TEST_SANDBOX"])

        ticket = await client.sse_ticket.create()
        assert (ticket.get("data") or ticket)["ticket"]

        started = asyncio.create_task(first(box.events.stream(), lambda event: event["type"] == "sandbox.exec.started"))
        of_all = asyncio.create_task(
            first(client.events.stream(types=["sandbox.exec.*"]), lambda event: event["sandbox_id"] == box.id)
        )
        changed = asyncio.create_task(first(box.files.watch_dir("/workspace"), lambda event: event.path.startswith(place)))
        logged = asyncio.create_task(first(box.stream_logs(), lambda event: place in str(event.data)))
        waiting = {started, of_all, changed, logged}
        while waiting:
            await box.exec(f"mkdir -p {place}/x; touch {place}/x/f; echo {place} > /dev/console")
            _, waiting = await asyncio.wait(waiting, timeout=2)
        assert changed.result().event in ("created", "modified")
        assert of_all.result()["type"].startswith("sandbox.exec.")

        assert await box.env.set([{"key": "ASYNC", "value": "1"}])
        assert "ASYNC" in [variable["key"] for variable in await box.env.list()]
        assert (await box.exec("echo $ASYNC")).stdout == "1\n"
        await box.env.delete("ASYNC")

        assert (await box.usage())["active_cpu_ms"] > 0
        assert (await box.metrics())["resource_type"] == "sandbox"
        assert (await box.get_logs(lines=3))["lines"]
        assert (await box.resources())["id"] == box.id
        with pytest.raises(MiosaError) as refused:
            await box.resize(cpu_count=2)
        assert refused.value.code == "RESIZE_UNSUPPORTED"

        await box.files.write(f"{place}/a/b", "x")
        assert [child["name"] for child in (await box.files.tree(place))["children"]] == ["a", "x"]
        assert (await box.create_export(f"{place}/a"))["status"] == "ready"
        packed = await box.download_export([f"{place}/a", f"{place}/x"])
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
            assert sorted(archive.getnames()) == ["a", "a/b", "x", "x/f"]
        assert (await box.get_artifacts()).artifacts["path"] == "/workspace"
