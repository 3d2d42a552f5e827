"""The fused run: create, wait and exec in one call."""

import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import SHAPE


def test_one_call_makes_a_sandbox_and_runs_a_command(client):
    record = client.sandbox_batches.run(command="echo $A; exit 3", env={"A": "2"}, persistent=False, **SHAPE)
    try:
        assert record["state"] == "running" and record["boot_ms"] >= 0
        assert record["boot_path"] in ("cold", "warm")
        assert (record["exec"]["stdout"], record["exec"]["exit_code"]) == ("2\n", 3)
        assert client.sandboxes.get(record["id"]).exec("echo still here").stdout == "still here\n"
    finally:
        client.sandboxes.delete(record["id"])


def test_the_whole_answer_has_timings(client):
    answer = client._transport.request("POST", "/sandboxes/run", json_body={"command": ["pwd"], "cwd": "/tmp", **SHAPE})
    client.sandboxes.delete(answer["data"]["id"])
    assert answer["exec"]["stdout"] == "/tmp\n" and answer["exec"] == answer["data"]["exec"]
    assert answer["timings"]["server_wait_and_exec_ms"] > 0


def test_what_is_wrong_is_named_and_leaves_nothing(client):
    before = {found.id for found in client.sandboxes.list()}
    for wrong, error in (
        ({"command": ""}, ValidationError),
        ({}, ValidationError),
        ({"command": "true", "memory_mb": 1, "cpu_count": 1, "disk_size_mb": 4096}, ValidationError),
        ({"command": "true", "template_id": "no-such-template"}, NotFoundError),
    ):
        with pytest.raises(error):
            client.sandbox_batches.run(**wrong)
    # A command that cannot begin has a sandbox, which the error names.
    with pytest.raises(MiosaError) as refused:
        client.sandbox_batches.run(command="true", cwd="/no/such/place", persistent=False, **SHAPE)
    client.sandboxes.delete(refused.value.details["sandbox_id"])
    assert {found.id for found in client.sandboxes.list()} <= before
