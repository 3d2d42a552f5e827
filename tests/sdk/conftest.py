"""Fixtures for the suite: a client of the server under test, and the sandbox that all files of the suite share.

The harness (tests/sdk.rs) sets MIOSA_BASE_URL, MIOSA_API_KEY and COVE_TEST_SANDBOX.
"""

import os
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


@pytest.fixture
def place():
    """A fresh path in the sandbox for one test's files; its directory is made by the first write."""
    return f"/workspace/{uuid.uuid4().hex}"
