"""What is told of a sandbox: events, console, environment, use and figures over time."""

import json
import os
import threading
import time
import uuid

import httpx
import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError


def api(path):
    return f"{os.environ['MIOSA_BASE_URL']}{path}"


def headers(**more):
    return {"Authorization": f"Bearer {os.environ['MIOSA_API_KEY']}", **more}


class Following(threading.Thread):
    """Collects what an iterator gives, until `last` says so; raises what it raised."""

    def __init__(self, items, last):
        super().__init__(daemon=True)
        self.items, self.last, self.got, self.error = items, last, [], None
        self.start()

    def run(self):
        try:
            for item in self.items:
                self.got.append(item)
                if self.last(item):
                    return
        except Exception as error:
            self.error = error

    def end(self, patience=60):
        self.join(patience)
        if self.error:
            raise self.error
        assert not self.is_alive(), f"only this came: {self.got}"
        return self.got


def open_stream(path, **more):
    """Lines of a stream, once it is open: what happens from now on is in it."""
    client = httpx.Client(timeout=60, trust_env=False)
    context = client.stream("GET", api(path), headers=headers(**more))
    response = context.__enter__()
    assert response.status_code == 200, response.read()
    lines = response.iter_lines()
    while not next(lines).startswith(":"):
        pass
    return lines, context


def frames(lines):
    """The frames of a stream's lines as dictionaries of their fields."""
    frame = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            frame[name] = value
        elif frame:
            if "data" in frame:
                yield frame
            frame = {}


def test_events_of_one_sandbox_and_of_all(client, box):
    mark = uuid.uuid4().hex

    def of_ours(seen, event):
        if event["type"] == "sandbox.exec.started" and mark in event["command"]:
            seen.add(event["exec_id"])
        return event["type"] == "sandbox.exec.completed" and event["exec_id"] in seen

    one, all_of_them = set(), set()
    followed = Following(box.events.stream(), lambda event: of_ours(one, json.loads(event["data"])))
    followed_all = Following(client.events.stream(types=["sandbox.exec.*"]), lambda event: of_ours(all_of_them, event))
    # The SDK does not say when a stream is open.
    deadline = time.monotonic() + 60
    while (followed.is_alive() or followed_all.is_alive()) and time.monotonic() < deadline:
        box.exec(f"true {mark}")
    got = followed.end()
    assert {json.loads(event["data"])["sandbox_id"] for event in got} == {box.id}
    ids = [event["id"] for event in got]
    assert ids == sorted(ids) and all(len(event_id) == 26 for event_id in ids)
    last = json.loads(got[-1]["data"])
    assert (last["type"], last["exit_code"]) == ("sandbox.exec.completed", 0)
    assert last["ts"].endswith("Z")
    assert all(event["type"].startswith("sandbox.exec.") for event in followed_all.end())


def test_a_stream_goes_on_where_it_was(box):
    lines, context = open_stream(f"/sandboxes/{box.id}/events")
    box.exec("true 1")
    first = next(frames(lines))
    context.__exit__(None, None, None)
    box.exec("true 2")
    lines, context = open_stream(f"/sandboxes/{box.id}/events?types=*.completed", **{"Last-Event-ID": first["id"]})
    seen = frames(lines)
    missed = [next(seen), next(seen)]
    assert [frame["event"] for frame in missed] == ["sandbox.exec.completed"] * 2
    assert all(frame["id"] > first["id"] for frame in missed)
    context.__exit__(None, None, None)
    lines, context = open_stream("/events/stream", **{"Last-Event-ID": "01ARZ3NDEKTSV4RRFFQ69G5FAV"})
    assert next(frames(lines))["event"] == "gap"
    context.__exit__(None, None, None)


def test_a_ticket_stands_for_the_token_once(client, box):
    ticket = client.sse_ticket.create()
    ticket = ticket.get("data", ticket)["ticket"]
    path = api(f"/sandboxes/{box.id}/events?ticket={ticket}")
    with httpx.Client(trust_env=False) as bare:
        with bare.stream("GET", path) as response:
            assert response.status_code == 200
        assert bare.get(path).status_code == 401


def test_environment(box):
    assert box.env.list() == []
    listed = box.env.set([{"key": "GREETING", "value": "grüß dich"}, {"key": "other", "value": ""}])
    assert listed == [
        {"key": "GREETING", "value": "grüß dich", "encrypted": False},
        {"key": "other", "value": "", "encrypted": False},
    ]
    assert box.exec("echo $GREETING").stdout == "grüß dich\n"
    box.env.delete("other")
    assert [variable["key"] for variable in box.env.get()] == ["GREETING"]
    box.env.delete("GREETING")
    assert box.exec("echo x${GREETING}x").stdout == "xx\n"
    with pytest.raises(NotFoundError):
        box.env.delete("GREETING")
    with pytest.raises(ValidationError):
        box.env.set([{"key": "1st", "value": "x"}])
    with pytest.raises(ValidationError, match="encrypted"):
        box.env.set([{"key": "SECRET", "value": "x", "encrypted": True}])


def test_console_and_its_stream(box):
    mark = f"mark-{uuid.uuid4().hex}"
    assert isinstance(box.get_logs(lines=5)["lines"], list)
    followed = Following(box.stream_logs(), lambda event: mark in str(event.data))
    deadline = time.monotonic() + 60
    while followed.is_alive() and time.monotonic() < deadline:
        box.exec(f"echo {mark} > /dev/console")
        followed.join(2)
    last = followed.end()[-1]
    assert last.type == "stdout" and mark in last.data["line"]
    assert any(mark in line for line in box.logs.get(lines=50)["lines"])


def test_what_it_used(box):
    before = box.usage()
    assert before["sandbox_id"] == box.id and before["state"] == "running"
    box.exec("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")
    after = box.usage()
    assert after["active_cpu_ms"] > before["active_cpu_ms"] > 0
    assert after["runtime_sec"] > before["runtime_sec"] > 0
    assert after["provisioned_memory_mb_ms"] == pytest.approx(after["runtime_sec"] * 1000 * 512, rel=0.01)
    assert after["network_ingress_bytes"] is None and after["measurement_status"]["network"] == "unavailable"
    assert after["measurement_status"]["active_cpu"] == "sampled"
    assert (after["estimated_cost_cents"], after["creation_count"]) == (0, 1)


def test_figures_over_time(box):
    deadline = time.monotonic() + 60
    while not (metrics := box.metrics(window="5m"))["samples"]:
        assert time.monotonic() < deadline, metrics
        time.sleep(1)
    assert (metrics["resource_type"], metrics["sandbox_id"], metrics["resolution_sec"]) == ("sandbox", box.id, 5)
    sample, current = metrics["samples"][-1], metrics["current"]
    assert sample["memory_resident_bytes"] > 1 << 20 and sample["cpu_percent"] >= 0 and sample["disk_bytes"] > 0
    assert (current["cpu_count"], current["memory_mb"]) == (1, 512)
    assert current["memory_resident_bytes"] > 1 << 20 and current["network_ingress_bytes"] is None
    assert box.get_metrics(window="24h")["resolution_sec"] == 60
    with pytest.raises(ValidationError, match="window"):
        box.metrics(window="2 weeks")


def test_resources_and_what_cannot_change(client, box):
    resources = box.resources()
    assert (resources["id"], resources["resources"]["cpu"], resources["resources"]["memory_mb"]) == (box.id, 1, 512)
    assert resources["capabilities"]["live_cpu"] is False and resources["capabilities"]["reason"]
    assert client.sandboxes.resources(box.id) == resources
    assert box.resize(cpu_count=1)["changes"] == {}
    with pytest.raises(MiosaError) as refused:
        box.resize(memory_mb=1024)
    assert (refused.value.status_code, refused.value.code) == (409, "RESIZE_UNSUPPORTED")
    with pytest.raises(ValidationError, match="memory_mb"):
        box.resize(memory_mb=1)
