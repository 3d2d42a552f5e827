"""What the contract's cloud has and one computer has in its own way, or not at all; both clients."""

import asyncio
import base64

import pytest
from miosa import AsyncMiosa
from miosa.errors import MiosaError, NotFoundError, ValidationError

# A server that imports next to nothing, since starting Python is slow where the guest's kernel is emulated.
SERVER = """exec python3 -IS -c '
import socket
server = socket.create_server(("127.0.0.1", %d))
while True:
    with server.accept()[0] as peer:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nhi")
'"""

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ8r3Vq3mWZbqkzqJ4jUuX9 me@here"


def test_an_application_is_installed_started_and_exposed(own):
    options = {
        "install_command": "echo installed",
        "start_command": SERVER % 3100,
        "port": 3100,
        "readiness_probe": {"type": "http", "path": "/index.html"},
        "start_timeout_sec": 300,
    }
    manifest = own.start_template(options)
    assert manifest.preview_url and manifest.data["status"] == "ready"
    assert [step["step"] for step in manifest.data["steps"]] == ["install", "start", "ready"]
    assert manifest.data["steps"][0]["output"] == "installed\n"
    # The same again replaces the process.
    again = own.start_template({**options, "install": False})
    assert again.data["pid"] != manifest.data["pid"]
    assert [process["pid"] for process in own.processes.list() if process["status"] == "running"] == [again.data["pid"]]
    own.processes.stop(again.data["pid"])


def test_a_step_that_fails_is_named_with_its_output(own):
    for options, step, said in (
        ({"install_command": "echo no such package; exit 7", "start_command": "true"}, "install", "no such package"),
        ({"start_command": "echo cannot bind; exit 3", "port": 3101}, "start", "cannot bind"),
        ({"start_command": "echo slow; exec sleep 60", "port": 3102, "start_timeout_sec": 2}, "ready", "slow"),
    ):
        with pytest.raises(ValidationError) as failed:
            own.start_template(options)
        assert (failed.value.code, failed.value.details["step"]) == ("TEMPLATE_START_FAILED", step)
        assert said in failed.value.details["output"]
    with pytest.raises(ValidationError):
        own.start_template({})


def test_runtimes_and_the_catalogue(client):
    (runtime,) = client.runtimes.list()
    runtime = runtime if isinstance(runtime, dict) else runtime.__dict__
    assert runtime["id"] == "standard" and runtime["available"]
    assert client.templates.get("miosa-sandbox")["name"] == "MIOSA sandbox"
    assert {size["state"] for size in client.templates.readiness("miosa-sandbox")} == {"ready"}


def test_ssh_says_what_there_is_and_a_key_is_let_in_once(client, own):
    info = client.ssh.info(own.id)
    assert (info["host"], info["user"], info["port"], info["sshd_running"]) == (own.id, "root", 22, False)
    assert own.ssh_info()["tunnel_url"].endswith(f"/sandboxes/{own.id}/ssh-tunnel")
    for _ in range(2):
        client.ssh.install_key(own.id, KEY)
    assert own.files.read_text("/root/.ssh/authorized_keys") == KEY + "\n"
    with pytest.raises(ValidationError):
        client.ssh.install_key(own.id, "not a key")
    with pytest.raises(MiosaError) as refused:
        client.ssh.certify(own.id, public_key=KEY)
    assert refused.value.code == "NOT_AVAILABLE_LOCALLY"


def test_a_device_is_a_sandbox(client, own):
    devices = client.devices
    assert own.id in [device["id"] for device in devices.list()]
    assert devices.get(own.id)["id"] == own.id and devices.capabilities(own.id)["exec"]
    assert devices.exec(own.id, ["echo", "a b"])["stdout"] == "a b\n"
    devices.write_file(own.id, "/workspace/device/f", content="text")
    assert [entry["name"] for entry in devices.list_files(own.id, "/workspace/device")] == ["f"]
    read = devices.read_file(own.id, "/workspace/device/f")
    assert base64.b64decode(read["content"]) == b"text"
    assert devices.expose(own.id, 3100)["url"].startswith("http")
    assert devices.pause(own.id)["state"] == "paused"
    assert devices.resume(own.id)["state"] == "running"
    assert devices.extend(own.id, 1800)["timeout_sec"] == 1800
    assert devices.stop(own.id)["state"] == "paused"
    devices.resume(own.id)


def test_the_gate_of_the_mcp_server(client):
    catalogue = {entry["name"]: entry["fingerprint"] for entry in client.authority.catalog()}
    assert "sandbox.exec" in catalogue
    ask = lambda name: client._transport.request(
        "POST", "/actions/authorize", json_body={"capability": {"name": name, "fingerprint": "local"}, "surface": "mcp"}
    )
    assert ask("sandbox.exec")["data"]["decision"] == "allow"
    assert ask("deployment.create")["data"]["decision"] == "deny"


def test_what_is_elsewhere_says_so(client, own):
    assert own.connectors.list() == []
    elsewhere = (
        lambda: own.connectors.attach("github", env="TOKEN"),
        lambda: client.sandboxes.browser_cdp_url(own.id),
        lambda: own.secrets.list(),
        lambda: own.network.rules(),
        lambda: own.network.policies(),
        lambda: own.audit.list(),
        lambda: client.environments.list(),
        lambda: client.environments.create(name="e"),
    )
    for call in elsewhere:
        with pytest.raises(MiosaError) as refused:
            call()
        assert refused.value.code == "NOT_AVAILABLE_LOCALLY", refused.value
    with pytest.raises(NotFoundError):
        client.devices.get("sbx_none")


def test_the_asynchronous_client_sees_the_same(own):
    async def run():
        async with AsyncMiosa() as client:
            box = await client.sandboxes.get(own.id)
            assert len(await client.runtimes.list()) == 1
            assert (await client.templates.get("miosa-sandbox"))["product"] == "sandbox"
            assert (await client.ssh.info(own.id))["host"] == own.id
            assert (await client.devices.exec(own.id, "echo hi"))["stdout"] == "hi\n"
            assert await box.connectors.list() == []
            started = await box.start_template({"start_command": SERVER % 3103, "port": 3103})
            assert started.preview_url
            with pytest.raises(MiosaError) as refused:
                await client.environments.list()
            assert refused.value.code == "NOT_AVAILABLE_LOCALLY"

    asyncio.run(run())
