"""Previews, shares, preview tokens and tunnels, with both clients."""

import asyncio
import os
import pathlib
import time
import zlib

import httpx
import pytest
from miosa import AsyncMiosa
from miosa.errors import MiosaError, NotFoundError

APP = pathlib.Path(__file__).parent.parent / "guest" / "app.py"


@pytest.fixture(scope="module")
def app(own):
    """The sandbox with the app in it."""
    own.files.write("/workspace/app.py", APP.read_bytes())
    own.exec("nohup /usr/bin/python3 -S -E /workspace/app.py >/tmp/app.log 2>&1 &")
    deadline = time.monotonic() + 120
    while get(own.expose(3000)).status_code != 200:
        assert time.monotonic() < deadline, own.exec("cat /tmp/app.log").stdout
        time.sleep(0.5)
    return own


def get(url, **kwargs):
    return httpx.get(url, trust_env=False, timeout=60, **kwargs)


def test_an_exposed_port_is_a_url_of_its_own(app):
    url = app.expose(3000)
    assert url.startswith("http://127.") and url.endswith(":3000/")
    assert app.get_url(3000, "/a b?c") == f"{url}a b?c"
    assert app.get_host(3000) == url.split("/")[2]
    assert get(f"{url}x").text == f"GET /x host={app.get_host(3000)}"
    assert get(f"{url}teapot").status_code == 418, "an app's status is its own"
    info = app.expose_info(3000)
    assert (info.data["port"], info.url_class) == (3000, "temporary_preview")
    app.refresh()
    assert (app.preview_url, app.preview_domain) == (url, app.get_host(3000)), "the record shows the first preview"
    # On ::1 alone, and where nobody listens.
    assert get(app.expose(3001)).status_code == 200
    refused = get(app.expose(3999), headers={"accept": "text/html"})
    assert (refused.status_code, refused.headers["x-cove-error"]) == (502, "PORT_NOT_LISTENING")
    body = os.urandom(3 << 20)
    assert httpx.post(url, content=body, trust_env=False, timeout=120).text == f"{zlib.crc32(body):08x}"


def test_previews_are_made_listed_and_taken_away(app):
    preview = app.previews.create(port=80, name="web", metadata={"k": 1})
    assert (preview["port"], preview["name"], preview["visibility"], preview["state"]) == (80, "web", "public", "active")
    assert preview["url"].endswith(":8080/")
    again = app.previews.create(port=80, label="other", visibility="private")
    assert (again["id"], again["name"], again["visibility"], again["metadata"]) == (preview["id"], "other", "private", {"k": 1})
    assert app.previews.get(preview["id"]) == again
    assert preview["id"] in [found["id"] for found in app.previews.list()]
    # The other guest port that would have this number gets the next one.
    assert app.previews.create(port=8080)["url"].endswith(":8081/")
    app.previews.delete(preview["id"])
    assert preview["id"] not in [found["id"] for found in app.previews.list()]
    with pytest.raises(NotFoundError):
        app.previews.get(preview["id"])
    with pytest.raises(httpx.ConnectError):
        get(preview["url"])
    for wrong in ({"port": 0}, {"port": 3000, "visibility": "secret"}, {"port": 3000, "expires_at": "yesterday"}):
        with pytest.raises(MiosaError) as caught:
            app.previews.create(**wrong)
        assert caught.value.status == 422 if hasattr(caught.value, "status") else True


def test_a_private_preview_opens_with_each_kind_of_token_until_it_is_taken_back(app):
    preview = app.previews.create(port=3000, visibility="private")
    try:
        assert get(preview["url"]).status_code == 401
        shared = app.previews.share(preview["id"], ttl_seconds=60)
        assert set(shared) == {"data", "preview_token", "share_url"}
        assert get(shared["share_url"]).status_code == 200
        assert get(preview["url"], headers={"x-cove-preview-token": shared["preview_token"]}).status_code == 200
        record = app.previews.get(preview["id"])
        assert shared["preview_token"].startswith(record["share_token_prefix"]) and record["share_token_expires_at"]
        # A browser is sent on to the clean URL, and remembers.
        with httpx.Client(trust_env=False, headers={"accept": "text/html"}, follow_redirects=True) as browser:
            first = browser.get(shared["share_url"])
            assert (first.status_code, str(first.url)) == (200, preview["url"]) and "mp_" not in first.text
            assert browser.get(f"{preview['url']}more").status_code == 200
        app.previews.revoke_share(preview["id"])
        assert get(shared["share_url"]).status_code == 403

        token = app.preview_token(expires_in=60, scope="read")
        assert token["token"].startswith("mp_") and token["scope"] == "read" and token["expires_at"]
        assert get(token["url"]).status_code == 200
        assert httpx.post(token["url"], content=b"x", trust_env=False).headers["x-cove-error"] == "PREVIEW_READ_ONLY"

        share = app.share.create(expires_in=60, scope="interact")
        assert "?ms=ms_" in share["share_url"]
        assert httpx.post(share["share_url"], content=b"x", trust_env=False, timeout=60).status_code == 200
        listed = [found for found in app.share.list() if found["share_id"] == share["share_id"]]
        assert listed and "share_url" not in listed[0]
        app.share.revoke(share["share_id"])
        assert get(share["share_url"]).status_code == 403
    finally:
        app.previews.create(port=3000, visibility="public")


def test_a_preview_expires(app):
    preview = app.previews.create(port=3002, ttl_seconds=1)
    time.sleep(1.5)
    answer = get(preview["url"])
    assert (answer.status_code, answer.headers["x-cove-error"]) == (410, "PREVIEW_EXPIRED")
    assert app.previews.get(preview["id"])["state"] == "expired"
    assert app.previews.create(port=3002)["state"] == "active"


def test_a_tunnel_carries_bytes_and_the_async_client_does_all_of_it(app):
    asyncio.run(everything(app))


async def everything(app):
    async with AsyncMiosa() as client:
        box = await client.sandboxes.get(app.id)
        assert await box.get_host(3000) == app.get_host(3000)
        assert (await box.get_url(3000, "/p")).endswith(":3000/p")
        preview = await box.previews.create(port=3003)
        assert preview["id"] in [found["id"] for found in await box.previews.list()]
        assert (await box.previews.get(preview["id"]))["port"] == 3003
        shared = await box.previews.share(preview["id"])
        assert shared["share_url"].startswith(preview["url"])
        await box.previews.revoke_share(preview["id"])
        await box.previews.delete(preview["id"])
        assert (await box.preview_token())["token"].startswith("mp_")
        share = await box.share.create()
        await box.share.revoke(share["share_id"])
        assert share["share_id"] not in [found["share_id"] for found in await box.share.list()]

        said = os.urandom(1 << 20)
        async with await client.ws.connect_tunnel("sandbox", box.id, 9000, max_size=None, proxy=None) as tunnel:
            async def say():
                for at in range(0, len(said), 50_000):
                    await tunnel.send(said[at : at + 50_000])

            saying, heard = asyncio.create_task(say()), b""
            while len(heard) < len(said):
                heard += await asyncio.wait_for(tunnel.recv(), 60)
            await saying
            assert heard == said
        with pytest.raises(Exception, match="502"):
            await client.ws.connect_tunnel("sandbox", box.id, 9999, proxy=None)
