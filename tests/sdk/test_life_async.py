"""The asynchronous client, once through a sandbox's life."""

import asyncio
import uuid

from miosa import AsyncMiosa

from conftest import SHAPE


def test_the_whole_life_of_an_async_sandbox():
    asyncio.run(life())


async def life():
    async with AsyncMiosa() as client:
        async with await client.sandboxes.create(timeout_sec=3600, **SHAPE) as box:
            await box.files.write("/workspace/f", "one")
            await box.pause()
            assert box.state == "paused"
            # Several at once wait for one resume.
            reads = await asyncio.gather(*(box.files.read_text("/workspace/f") for _ in range(3)))
            assert reads == ["one"] * 3
            await box.refresh()
            assert box.state == "running" and box.boot_path == "snapshot"
            await box.stop()
            await box.resume(env={"A": "1"})
            await box.extend(timeout_sec=1800)
            assert (box.state, box.timeout_sec) == ("running", 1800)

            snapshot = await box.snapshots.create("async")
            assert [one["id"] for one in await box.snapshots.list()] == [snapshot["id"]]
            await box.files.write("/workspace/f", "two")
            async with await box.fork(snapshot_id=snapshot["id"], name=f"async-{uuid.uuid4().hex[:8]}") as child:
                assert child.id != box.id
                assert await child.files.read_text("/workspace/f") == "one"
            restored = await box.snapshots.restore(snapshot["id"])
            assert (restored.id, restored.state) == (box.id, "running")
            assert await restored.files.read_text("/workspace/f") == "one"

            history = await client.snapshot_history.list(resource_id=box.id)
            assert [one["id"] for one in history["data"]] == [snapshot["id"]]
            name = f"async-{uuid.uuid4().hex[:8]}"
            await client.named_snapshots.create(name, snapshot_id=snapshot["id"])
            assert (await client.named_snapshots.delete(name))["outcome"] == "released"
            await box.snapshots.delete(snapshot["id"])

        ran = await client.sandbox_batches.run(command="echo 2", persistent=False, **SHAPE)
        await client.sandboxes.delete(ran["id"])
        assert ran["exec"]["stdout"] == "2\n"
