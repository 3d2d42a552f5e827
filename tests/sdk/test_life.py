"""Pause, resume, stop, extend, change; a paused sandbox wakes when it is used."""

import time
import uuid

import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import SHAPE, count, grows, start_counter


def test_a_process_counts_on_through_a_pause(client, own):
    pid = start_counter(own)
    before = count(own)
    own.pause()
    assert own.state == "paused" and own.persistent is True
    assert own.checkpoint_pending is False and own.wait_for_checkpoint(timeout=5) is True
    record = client.sandboxes.get(own.id)
    assert record.state == "paused" and not record.ready
    assert record.data["timeout_remaining_ms"] is None and record.data["paused_at"] is not None
    assert own.id in [found.id for found in client.sandboxes.list(state="paused")]
    own.pause()
    assert own.state == "paused", "pausing a paused one is no error"

    own.resume()
    assert own.state == "running" and own.boot_path == "snapshot" and own.boot_ms >= 0
    assert own.data["paused_at"] is None and own.data["timeout_remaining_ms"] > 0
    assert count(own) >= before and grows(own)
    assert own.exec(f"kill -0 {pid}").exit_code == 0, "it is the same process"
    assert own.resume().state == "running", "resuming a running one is no error"
    assert own.data["total_runtime_sec"] >= 0


def test_what_is_used_wakes(client, own):
    for use in (
        lambda box: box.exec("echo awake").stdout,
        lambda box: box.files.read_text("/etc/hostname") and "awake\n",
        lambda box: "".join(event.data["line"] + "\n" for event in box.exec.stream("echo awake") if event.type == "stdout"),
    ):
        own.pause()
        handle = client.sandboxes.get(own.id)
        assert handle.state == "paused"
        assert use(handle) == "awake\n"
        assert own.refresh().state == "running"


def test_a_resume_may_bring_variables(own):
    own.pause()
    own.resume(env={"STAGE": "two"})
    assert own.exec("echo $STAGE").stdout == "two\n"
    with pytest.raises(ValidationError) as refused:
        own.resume(environment="prod")
    assert refused.value.details["field"] == "environment"


def test_the_guest_clock_is_right_after_a_pause(own):
    own.pause()
    time.sleep(3)
    own.resume()
    began = time.time()
    said = float(own.exec("echo $EPOCHREALTIME").stdout)
    assert began - 0.1 < said < time.time() + 0.1


def test_stop_pauses_what_is_persistent_and_destroys_what_is_not(client, own):
    assert own.stop().state == "paused"
    assert own.resume().state == "running"
    with client.sandboxes.create(persistent=False, **SHAPE) as other:
        assert other.stop().state == "destroyed"
    with pytest.raises(MiosaError):
        other.exec("true")
    assert client.sandboxes.get(other.id).state == "destroyed"


def test_extend_starts_the_clock_anew(own):
    own.extend(timeout_sec=900)
    assert own.timeout_sec == 900 and 890_000 < own.data["timeout_remaining_ms"] <= 900_000
    time.sleep(1)
    own.extend()
    assert 899_000 < own.data["timeout_remaining_ms"] <= 900_000
    with pytest.raises(ValidationError) as refused:
        own.extend(timeout_sec=0)
    assert refused.value.details["field"] == "timeout_sec"
    own.extend(timeout_sec=3600)


def test_what_may_be_changed_is_changed(client, own):
    name = f"life-{uuid.uuid4().hex[:8]}"
    own.update(name=name, tags=["one"], metadata={"k": 1}, timeout_sec=3000, idle_timeout_sec=600)
    assert (own.name, own.timeout_sec, own.idle_timeout_sec) == (name, 3000, 600)
    assert own.metadata["k"] == 1 and own.metadata["suite"] == "sdk", "metadata is merged"
    assert client.sandboxes.get_by_name(name).id == own.id
    assert own.update(persistent=False).persistent is False
    assert own.update(persistent=True).persistent is True
    own.tags.set(["two", "three"])
    assert own.id in [found.id for found in client.sandboxes.list(tags=["two", "three"])]
    with pytest.raises(ValidationError) as refused:
        own.update(timeout_sec=86401)
    assert refused.value.details["field"] == "timeout_sec"
    own.update(timeout_sec=3600, idle_timeout_sec=0)


def test_get_or_create_wakes(client, own):
    own.update(name="wakes")
    own.pause()
    found = client.sandboxes.get_or_create("wakes", **SHAPE)
    assert found.id == own.id and found.state == "running"


def test_many_at_once(client, own):
    tag = uuid.uuid4().hex
    own.tags.set([tag])
    paused = client.bulk.sandboxes.pause(ids=[own.id, "sbx_nosuchone"])["data"]
    assert paused["succeeded"] == [own.id]
    assert [(one["id"], one["code"]) for one in paused["failed"]] == [("sbx_nosuchone", "SANDBOX_NOT_FOUND")]
    resumed = client.bulk.sandboxes.resume(filter={"tags": [tag], "state": "paused"})["data"]
    assert resumed == {"succeeded": [own.id], "failed": []}
    assert own.refresh().state == "running"


def test_what_is_not_there_is_not_found(client, own):
    for call in ("pause", "resume", "stop", "extend"):
        stranger = client.sandboxes.get(own.id)
        stranger.id = "sbx_nosuchone"
        with pytest.raises(NotFoundError):
            getattr(stranger, call)()
