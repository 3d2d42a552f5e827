"""Background processes and commands: what goes on when nobody waits for it."""

import asyncio
import os
import time

import pytest
from miosa import AsyncMiosa
from miosa.errors import CommandTimeoutError, NotFoundError, ValidationError


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_process_is_started_listed_read_and_ends(box):
    proc = box.processes.start("echo out; echo $A >&2; read line; echo got $line; exit 3", name="job", env={"A": "b c"})
    assert isinstance(proc["pid"], int) and proc["name"] == "job" and proc["status"] == "running"
    assert proc["pid"] in [listed["pid"] for listed in box.processes.list()]
    wait_for(lambda: "b c" in box.processes.logs(proc["pid"]))
    box._transport.request("POST", f"/sandboxes/{box.id}/processes/{proc['pid']}/stdin", json_body={"data": "it\n"})
    events = list(box.processes.stream(proc["pid"]))
    assert [event["line"] for event in events if event.get("stream") == "stdout"] == ["out", "got it"]
    assert [event["line"] for event in events if event.get("stream") == "stderr"] == ["b c"]
    assert events[-1]["event"] == "exit" and events[-1]["exit_code"] == 3
    ended = box.processes.get(proc["pid"])
    assert (ended["state"], ended["exit_code"]) == ("exited", 3)
    assert box.processes.logs(proc["pid"], tail=1) == "got it\n"
    with pytest.raises(NotFoundError):
        box.processes.get(1)


def test_stop_ends_the_whole_group_and_a_signal_is_only_sent(box):
    proc = box.processes.start("sleep 7171 & sleep 7172; echo never")
    wait_for(lambda: box.exec("pgrep -f 'sleep 717[2]'").exit_code == 0)
    box.processes.stop(proc["pid"])
    assert box.processes.get(proc["pid"])["exit_code"] == 143
    assert box.exec("pgrep -f 'sleep 717[12]'").exit_code == 1
    box.processes.stop(proc["pid"])
    background = box.commands.run("sleep 7173", background=True)
    assert background.status()["state"] == "running"
    path = f"/sandboxes/{box.id}/processes/{background.pid}/signal"
    box._transport.request("POST", path, json_body={"signal": "SIGKILL"})
    wait_for(lambda: background.status()["exit_code"] == 137)
    background.kill()


def test_commands_have_a_directory_input_and_a_limit(client, box):
    result = client.commands.run(box.id, "pwd; cat", cwd="../tmp", stdin="given", timeout_seconds=60)
    assert (result["stdout"], result["exit_code"]) == ("/tmp\ngiven", 0) and result["duration_ms"] >= 0
    tty = client.commands.run(box.id, "tty; stty size", tty=True)
    assert tty["stdout"].startswith("/dev/pts/") and "24 80" in tty["stdout"] and tty["exit_code"] == 0
    with pytest.raises(CommandTimeoutError) as refused:
        client.commands.run(box.id, "true", timeout_seconds=601)
    assert refused.value.code == "TIMEOUT_TOO_LONG"
    with pytest.raises(ValidationError):
        client.commands.run(box.id, "true", tty=True, detached=True)


def test_a_detached_command_is_a_process(client, box):
    command = client.commands.run(box.id, "echo up; exec sleep 7174", detached=True, name="bg")
    pid = command["pid"]
    assert command["status"] == "running"
    wait_for(lambda: client.commands.logs(box.id, pid) == "up\n")
    assert client.commands.get(box.id, pid)["name"] == "bg"
    assert pid in [listed["pid"] for listed in client.commands.list(box.id)]
    assert client.commands.kill(box.id, pid)["exit_code"] == 143


def test_the_asynchronous_client_does_it_too():
    async def day():
        async with AsyncMiosa() as client:
            box = await client.sandboxes.get(os.environ["COVE_TEST_SANDBOX"])
            proc = await box.processes.start("echo a; echo b; exit 1")
            events = [event async for event in box.processes.stream(proc["pid"])]
            assert [event.get("line") for event in events] == ["a", "b", None]
            assert (await box.processes.get(proc["pid"]))["exit_code"] == 1
            assert await box.processes.logs(proc["pid"]) == "a\nb\n"
            background = await box.commands.run("exec sleep 7175", background=True)
            await background.kill()
            assert (await background.status())["state"] == "exited"
            assert (await client.commands.run(box.id, "echo c"))["stdout"] == "c\n"

    asyncio.run(day())
