"""Create, get, list, find, destroy."""

import uuid

import pytest
from miosa.errors import MiosaError, NotFoundError

from conftest import SHAPE


def test_a_record_says_what_was_asked_for(client, box):
    record = client.sandboxes.get(box.id)
    assert record.id == box.id
    assert record.state == "running" and record.ready
    assert (record.cpu_count, record.memory_mb, record.disk_size_mb) == (1, 512, 4096)
    assert record.size is None
    assert record.template_id == "miosa-sandbox"
    assert record.persistent is True and record.always_on is False
    assert record.boot_ms > 0 and record.boot_path in ("cold", "warm")
    assert record.created_at is not None and record.ready_at >= record.created_at
    assert record.destroyed_at is None
    assert record.data["tags"] == ["shared", "e2e"]


def test_a_named_size_with_everything_set_lives_and_dies(client):
    name = f"sdk/{uuid.uuid4().hex[:8]} a"
    with client.sandboxes.create(
        size="xs",
        name=name,
        env={"GREETING": "hello wörld"},
        tags=["sdk", "xs"],
        metadata={"k": {"n": 1}},
        timeout_sec=900,
        external_workspace_id="acme",
        external_user_id="u1",
        external_project_id="p1",
    ) as box:
        assert box.state == "running"
        assert (box.size, box.cpu_count, box.memory_mb, box.disk_size_mb) == ("xs", 1, 2048, 10240)
        assert box.name == name and box.timeout_sec == 900
        assert box.metadata["k"] == {"n": 1}
        assert (box.external_workspace_id, box.external_user_id, box.external_project_id) == ("acme", "u1", "p1")

        assert box.exec("echo $GREETING").stdout == "hello wörld\n"
        assert box.wait_until_ready(timeout=10) is True
        readiness = box.readiness()
        assert readiness["ready"] is True and readiness["status"] == "ready"

        ids = lambda **filters: [found.id for found in client.sandboxes.list(**filters)]
        assert box.id in ids()
        assert ids(tags=["sdk", "xs"]) == [box.id]
        assert ids(external_workspace_id="acme", state="running") == [box.id]
        assert ids(external_user_id="u1") == ids(external_project_id="p1") == [box.id]
        assert ids(tags=["sdk", "other"]) == []
        assert box.id not in ids(state="paused")

        assert client.sandboxes.get_by_name(name).id == box.id
        again = client.sandboxes.get_or_create(name, **SHAPE)
        assert again.id == box.id
        with pytest.raises(MiosaError) as taken:
            client.sandboxes.create(name=name, **SHAPE)
        assert taken.value.code == "NAME_TAKEN"
        # Where the guest's kernel is emulated a machine boots with a part of its memory, and the rest comes soon after.
        whole = "for n in $(seq 90); do kib=$(awk '/MemTotal/ {print $2}' /proc/meminfo); " \
                "[ $kib -gt 1740000 ] && break; sleep 1; done; echo $((kib / 1024))"
        total = box.exec(whole).stdout
        assert 1700 < int(total) <= 2048

    assert box.state == "destroyed"
    assert box.id not in [found.id for found in client.sandboxes.list()]
    assert box.id in [found.id for found in client.sandboxes.list(state="destroyed")]
    with pytest.raises(NotFoundError):
        client.sandboxes.get_by_name(name)


def test_a_destroyed_id_is_not_found(client):
    box = client.sandboxes.create(wait=False, **SHAPE)
    assert box.state == "creating"
    client.sandboxes.delete(box.id)
    client.sandboxes.delete(box.id)
    assert client.sandboxes.get(box.id).state == "destroyed"
    box.state = "running"  # as a handle that has not heard of it
    for call in (
        lambda: box.exec("true"),
        lambda: list(box.exec.stream("true")),
        lambda: box.files.read("/etc/hostname"),
        lambda: box.files.write("/tmp/x", "x"),
        lambda: box.files.stat("/etc"),
    ):
        with pytest.raises(NotFoundError):
            call()


def test_an_unknown_id_is_not_found(client):
    for unknown in ("sbx_nosuchone", "00000000-0000-0000-0000-000000000000", "x"):
        with pytest.raises(NotFoundError):
            client.sandboxes.get(unknown)
        with pytest.raises(NotFoundError):
            client.sandboxes.delete(unknown)


def test_templates_are_listed(client):
    listed = client.sandboxes.list_templates(include_aliases=True)
    assert listed["default_template_id"] == "miosa-sandbox"
    ids = [template["id"] for template in listed["data"]]
    assert "miosa-sandbox" in ids
    template = client.sandboxes.get_template("miosa-sandbox")
    assert template.get("data", template)["id"] == "miosa-sandbox"
    with pytest.raises(NotFoundError):
        client.sandboxes.get_template("no-such-template")
