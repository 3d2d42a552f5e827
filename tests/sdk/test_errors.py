"""Refusals are exceptions of the right type that say which field is wrong."""

import os

import pytest
from miosa import Miosa
from miosa.errors import AuthenticationError, MiosaError, NotFoundError, ValidationError

from conftest import SHAPE


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("cpu_count", {**SHAPE, "cpu_count": 99}),
        ("memory_mb", {**SHAPE, "memory_mb": 100}),
        ("disk_size_mb", {**SHAPE, "disk_size_mb": 1}),
        ("timeout_sec", {**SHAPE, "timeout_sec": 0}),
        ("idle_timeout_sec", {**SHAPE, "idle_timeout_sec": -1}),
        ("size", {"size": "gigantic"}),
        ("env", {**SHAPE, "env": {"": "x"}}),
    ],
)
def test_a_wrong_field_is_named(client, field, options):
    with pytest.raises(ValidationError) as refused:
        client.sandboxes.create(**options)
    assert field in refused.value.message
    assert refused.value.details["field"] == field
    assert refused.value.request_id.startswith("req_")


def test_an_unknown_template(client):
    with pytest.raises(MiosaError) as refused:
        client.sandboxes.create("no-such-template", **SHAPE)
    assert refused.value.code == "TEMPLATE_NOT_FOUND"
    assert "no-such-template" in refused.value.message


@pytest.mark.parametrize("options", [{"timeout": -1}, {"env": {"A=B": "x"}}, {"cwd": "/no/such/dir"}])
def test_a_wrong_exec_is_refused(box, options):
    with pytest.raises(MiosaError) as refused:
        box.exec("true", options)
    assert refused.value.status_code in (400, 404, 422)


def test_an_empty_command_is_refused(box):
    with pytest.raises(ValidationError) as refused:
        box.exec("")
    assert "command" in refused.value.message


def test_a_wrong_token_is_an_authentication_error(client):
    with Miosa(api_key="wrong") as stranger:
        with pytest.raises(AuthenticationError) as refused:
            stranger.sandboxes.list()
    assert refused.value.status_code == 401 and refused.value.code == "invalid_token"


def test_every_spelling_of_the_address_works(box):
    url = os.environ["MIOSA_BASE_URL"]
    origin = url.removesuffix("/api/v1")
    for spelling in (origin, origin + "/", url, url + "/", origin + "/v1"):
        with Miosa(base_url=spelling) as other:
            assert other.sandboxes.get(box.id).id == box.id, spelling


def test_a_route_that_is_not_there_is_not_found(client, box):
    with pytest.raises(NotFoundError):
        box._transport.request("GET", "/no/such/route")
