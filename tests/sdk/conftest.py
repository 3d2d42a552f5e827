"""Fixtures for the suite: a client of the server under test, and the sandbox that all files of the suite share.

The harness (tests/sdk.rs) sets MIOSA_BASE_URL, MIOSA_API_KEY and COVE_TEST_SANDBOX.
"""

import os
import time
import uuid

import pytest
from miosa import Miosa

# The smallest machine, so that many fit and boots are short.
SHAPE = {"cpu_count": 1, "memory_mb": 512, "disk_size_mb": 4096}


@pytest.fixture(scope="session")
def client():
    with Miosa() as client:
        yield client


@pytest.fixture(scope="session")
def box(client):
    """A running sandbox that tests must leave as usable as they found it."""
    return client.sandboxes.get(os.environ["COVE_TEST_SANDBOX"])


@pytest.fixture(scope="module")
def own(client):
    """A running sandbox that one file of the suite has for itself."""
    with client.sandboxes.create(timeout_sec=3600, metadata={"suite": "sdk"}, **SHAPE) as sandbox:
        yield sandbox


# One process that starts no others, since starting one is slow where the guest's kernel is emulated.
COUNTER = """
import itertools, os, time
fd = os.open("/workspace/count", os.O_CREAT | os.O_RDWR)
for n in itertools.count(1):
    os.pwrite(fd, b"%12d" % n, 0)
    time.sleep(0.05)
"""


def start_counter(sandbox):
    """Starts a process that counts in /workspace/count, and gives its process id."""
    sandbox.files.write("/workspace/counter.py", COUNTER)
    pid = int(sandbox.exec("nohup python3 /workspace/counter.py >/dev/null 2>&1 & echo $!").stdout)
    deadline = time.monotonic() + 60
    while not any(entry["name"] == "count" and entry["size"] for entry in sandbox.files.list("/workspace")["entries"]):
        assert time.monotonic() < deadline, "the counter does not start"
        time.sleep(0.2)
    return pid


def count(sandbox):
    """Where the counter is."""
    return int(sandbox.files.read_text("/workspace/count"))


def grows(sandbox):
    """The counter is alive."""
    before, deadline = count(sandbox), time.monotonic() + 30
    while count(sandbox) == before:
        assert time.monotonic() < deadline, f"the counter stands at {before}"
        time.sleep(0.1)
    return True


@pytest.fixture
def place():
    """A fresh path in the sandbox for one test's files; its directory is made by the first write."""
    return f"/workspace/{uuid.uuid4().hex}"
