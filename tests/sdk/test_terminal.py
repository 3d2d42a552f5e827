"""Terminal sessions through the SDK's own WebSocket."""

import asyncio
import json

import pytest
from miosa import AsyncMiosa
from miosa.errors import NotFoundError, ValidationError
from websockets.exceptions import ConnectionClosed

PATIENCE = 90


class View:
    """A client that looks at a terminal."""

    def __init__(self, socket):
        self.socket = socket
        self.seen = b""

    async def until(self, text):
        while text not in self.seen:
            self.seen += await asyncio.wait_for(self.socket.recv(), PATIENCE)
        at = self.seen.index(text) + len(text)
        head, self.seen = self.seen[:at], self.seen[at:]
        return head

    async def end(self):
        with pytest.raises(ConnectionClosed):
            while True:
                self.seen += await asyncio.wait_for(self.socket.recv(), PATIENCE)
        return self.socket.close_code, json.loads(self.socket.close_reason)


def test_a_terminal_is_created_typed_into_and_ends(client, own):
    # A sandbox of our own: the one opened last is ours.
    box = own
    session = box.terminal.create(cols=100, rows=30, env={"PS1": "ready> "})
    assert (session["cols"], session["rows"]) == (100, 30) and session["session_id"]

    async def use():
        # No session in the address: the one that was opened last.
        view = View(await client.ws.connect_terminal(box.id))
        assert view.socket.response.headers["x-cove-session"] == session["session_id"]
        await view.socket.send(b"stty size; echo $TERM; pwd\n")
        await view.until(b"30 100\r\nxterm-256color\r\n/workspace\r\n")
        await view.socket.send("echo as te''xt\n")
        await view.until(b"as text\r\n")
        await view.socket.send(json.dumps({"type": "resize", "cols": 90, "rows": 20}))
        await view.socket.send(b"stty size\n")
        await view.until(b"20 90\r\n")
        await view.socket.send(b"exit 7\n")
        assert await view.end() == (1000, {"exit_code": 7})

    asyncio.run(use())
    with pytest.raises(NotFoundError):
        box.terminal.delete(session["session_id"])


def test_sessions_are_closed_and_wrong_sizes_refused(box):
    session = box.terminal.create()
    assert (session["cols"], session["rows"]) == (80, 24)
    box.terminal.delete(session["session_id"])
    with pytest.raises(NotFoundError):
        box.terminal.delete(session["session_id"])
    with pytest.raises(ValidationError):
        box.terminal.create(cols=0, rows=24)
    with pytest.raises(NotFoundError):
        box.terminal.delete("no-such-session")


def test_the_asynchronous_client_does_it_too(own):
    async def day():
        async with AsyncMiosa() as client:
            box = await client.sandboxes.get(own.id)
            session = await box.terminal.create(cols=70, rows=20, shell="cat")
            view = View(await client.ws.connect_terminal(box.id))
            await view.socket.send(b"echoed\n")
            await view.until(b"echoed\r\nechoed\r\n")
            # Ctrl-D ends its input, and so the program.
            await view.socket.send(b"\x04")
            assert await view.end() == (1000, {"exit_code": 0})
            with pytest.raises(NotFoundError):
                await box.terminal.delete(session["session_id"])

    asyncio.run(day())
