"""The asynchronous client, once through everything."""

import asyncio
import os
import time

import pytest
from miosa import AsyncMiosa
from miosa.errors import NotFoundError


def test_the_whole_day_of_an_async_client(place):
    asyncio.run(day(place))


async def day(place):
    async with AsyncMiosa() as client:
        box = await client.sandboxes.get(os.environ["COVE_TEST_SANDBOX"])
        assert box.id in [found.id for found in await client.sandboxes.list(tags=["shared"])]
        assert await box.wait_until_ready(timeout=10) is True

        result = await box.exec("echo out; echo err >&2; exit 2")
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 2)

        await box.files.write(f"{place}/f", b"\x00\xff")
        assert await box.files.read(f"{place}/f") == b"\x00\xff"
        with pytest.raises(NotFoundError):
            await box.files.read(f"{place}/nothing")

        types = [event.type async for event in box.exec.stream("echo a; echo b")]
        assert types == ["stdout", "stdout", "exit"]

        began = time.monotonic()
        await asyncio.gather(*(box.exec("sleep 15") for _ in range(4)))
        assert time.monotonic() - began < 45, "commands of one sandbox wait for each other"

        with pytest.raises(NotFoundError):
            await client.sandboxes.get("sbx_nosuchone")
