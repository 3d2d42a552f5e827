"""Snapshots, restore, forks, names, history."""

import io
import tarfile
import uuid

import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import count, grows, start_counter


@pytest.fixture(scope="module")
def counting(own):
    start_counter(own)
    return own


def ids(snapshots):
    return [snapshot["id"] for snapshot in snapshots]


def test_a_snapshot_is_ready_and_listed_everywhere(client, counting):
    first = counting.snapshots.create("before")
    assert first["status"] == "ready" and first["comment"] == "before" and first["has_memory"] is True
    assert first["sandbox_id"] == counting.id and first["size_bytes"] > 0 and first["pause_ms"] > 0
    second = counting.snapshot()
    assert ids(counting.snapshots.list())[:2] == [second, first["id"]], "newest first"
    assert grows(counting), "the sandbox goes on"

    listed = client.snapshot_history.list(resource_id=counting.id)
    assert set(ids(listed["data"])) >= {first["id"], second}
    assert listed["data"][0]["resource"] == {"type": "sandbox", "id": counting.id, "name": counting.name}
    assert ids(client.snapshot_history.list(q=first["id"], limit=1)["data"]) == [first["id"]]
    groups = client.snapshot_history.groups()["data"]
    group = next(group for group in groups if group["resource"]["id"] == counting.id)
    assert group["snapshot_count"] >= 2 and group["latest_snapshot_id"] == second

    got = client.snapshot_history.get(second)
    assert got["data"]["parent_id"] == first["id"]
    assert [(one["type"], one["id"]) for one in got["dependents"]] == [("sandbox", counting.id)]
    counting.snapshots.delete(first["id"])
    assert client.snapshot_history.delete(second)["data"]["status"] == "deleted"
    assert not {first["id"], second} & set(ids(counting.snapshots.list()))
    with pytest.raises(NotFoundError):
        counting.snapshots.delete(first["id"])


def test_a_restore_brings_back_file_and_memory(counting):
    counting.files.write("/workspace/kept", "old")
    snapshot = counting.snapshots.create()
    then = count(counting)
    counting.exec("rm /workspace/kept; echo new > /workspace/later")
    while count(counting) < then + 100:
        pass
    later = count(counting)

    restored = counting.snapshots.restore(snapshot["id"])
    assert restored.id == counting.id and restored.state == "running" and restored.boot_path == "snapshot"
    assert restored.files.read_text("/workspace/kept") == "old"
    with pytest.raises(NotFoundError):
        restored.files.read("/workspace/later")
    assert count(restored) < later and grows(restored)
    counting.refresh()
    with pytest.raises(NotFoundError):
        counting.snapshots.restore("snap_nosuchone")
    counting.snapshots.delete(snapshot["id"])


def test_a_fork_counts_on_by_itself(client, counting):
    before, key = count(counting), uuid.uuid4().hex
    child = counting.fork(name=f"fork-{key[:8]}", metadata={"n": 2}, env={"WHO": "child"}, idempotency_key=key)
    with child:
        assert child.id != counting.id and child.state == "running"
        assert child.data["forked_from"] == counting.id
        assert child.metadata["n"] == 2 and child.metadata["suite"] == "sdk"
        again = counting.fork(name=f"fork-{key[:8]}", metadata={"n": 2}, env={"WHO": "child"}, idempotency_key=key)
        assert again.id == child.id, "the same key names the same fork"

        assert count(child) >= before and grows(child) and grows(counting)
        assert child.exec("echo $WHO").stdout == "child\n"
        identity = "/etc/machine-id"
        assert child.files.read_text(identity) != counting.files.read_text(identity)
        child.files.write("/workspace/of-the-child", "x")
        with pytest.raises(NotFoundError):
            counting.files.read("/workspace/of-the-child")
    assert counting.refresh().state == "running"


def test_a_snapshot_can_be_forked_and_looked_into(client, counting):
    counting.files.write("/workspace/shown", b"\x00\xffshown")
    snapshot = counting.snapshots.create()["id"]
    counting.files.write("/workspace/shown", b"changed")

    tree = client.snapshot_history.tree(snapshot, path="/workspace")["data"]
    assert {"shown", "counter.py"} <= {entry["name"] for entry in tree["entries"]}
    assert client.snapshot_history.file(snapshot, path="/workspace/shown") == b"\x00\xffshown"
    with tarfile.open(fileobj=io.BytesIO(client.snapshot_history.file(snapshot, path="/workspace"))) as folder:
        assert folder.extractfile("workspace/shown").read() == b"\x00\xffshown"
    # The SDK raises nothing here: it gives the refusal's own bytes.
    assert b'"NOT_FOUND"' in client.snapshot_history.file(snapshot, path="/workspace/nothing")

    with counting.fork(snapshot_id=snapshot) as child:
        assert child.files.read("/workspace/shown") == b"\x00\xffshown"
        assert child.data["snapshot_id"] == snapshot
    made = client.snapshot_history.fork(snapshot, idempotency_key=uuid.uuid4().hex)["data"]
    assert made["state"] == "running" and made["id"] != counting.id
    client.sandboxes.delete(made["id"])
    counting.snapshots.delete(snapshot)


def test_a_name_keeps_a_snapshot(client, counting):
    name, other = f"golden-{uuid.uuid4().hex[:8]}", f"silver-{uuid.uuid4().hex[:8]}"
    snapshot = counting.snapshots.create()["id"]
    named = client.named_snapshots.create(name, snapshot_id=snapshot)["data"]
    assert (named["name"], named["snapshot_id"]) == (name, snapshot)
    assert name in [one["name"] for one in client.named_snapshots.list()["data"]]
    assert client.named_snapshots.get(name)["data"]["snapshot_id"] == snapshot
    assert snapshot not in ids(client.snapshot_history.list(resource_id=counting.id)["data"])

    for call, code in (
        (lambda: client.snapshot_history.delete(snapshot), "SNAPSHOT_IN_USE"),
        (lambda: client.named_snapshots.create(name, sandbox_id=counting.id), "NAME_TAKEN"),
        (lambda: client.named_snapshots.create(other, snapshot_id=snapshot), "SNAPSHOT_ALREADY_NAMED"),
    ):
        with pytest.raises(MiosaError) as refused:
            call()
        assert refused.value.code == code
    with pytest.raises(ValidationError):
        client.named_snapshots.create(other, computer_id="c")

    deployed = client.named_snapshots.deploy(name)["data"]
    assert deployed["state"] == "running"
    client.sandboxes.delete(deployed["id"])
    assert client.named_snapshots.delete(name)["outcome"] == "released"
    with pytest.raises(NotFoundError):
        client.named_snapshots.get(name)
    assert snapshot in ids(client.snapshot_history.list(resource_id=counting.id)["data"])


def test_old_snapshots_go_as_the_sandbox_says(client, counting):
    counting.update(keep_last_snapshots=2)
    made = [counting.snapshot() for _ in range(3)]
    assert set(ids(counting.snapshots.list())) == set(made[1:])
    counting.update(metadata={"keep_last_snapshots": None})

    with pytest.raises(ValidationError) as refused:
        client.snapshot_history.bulk_delete(resource_id=counting.id, all=True, confirm="yes")
    assert refused.value.details["field"] == "confirm"
    outcome = client.snapshot_history.bulk_delete(ids=[made[1], "snap_nosuchone"])["data"]
    assert outcome["deleted"] == [made[1]] and ids(outcome["failed"]) == ["snap_nosuchone"]
    whole = client.snapshot_history.bulk_delete(resource_id=counting.id, all=True, confirm=counting.id)["data"]
    assert whole == {"deleted": [made[2]], "failed": []}
    assert counting.snapshots.list() == []
