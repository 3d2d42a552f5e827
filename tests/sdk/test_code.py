"""Code in contexts that keep their variables: results, pictures, timeouts, death, pauses and forks; both clients."""

import asyncio
import base64

import pytest
from miosa import AsyncMiosa
from miosa.errors import ValidationError

# A picture made by code without any package: one red pixel.
PICTURE = """
import struct, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
class Picture:
    def _repr_png_(self):
        head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
        return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\\0\\xff\\0\\0")) + chunk(b"IEND", b"")
"""


def whole(client, box, **body):
    """All that the server says; the SDK passes on five fields."""
    return client._transport.request("POST", f"/sandboxes/{box.id}/code/run", json_body=body)["data"]


def test_a_context_keeps_its_variables_and_shows_the_last_value(own):
    first = own.run_code("import os\nx = 41\nprint('hi')\nos.system('echo sub')\nx + 1")
    assert (first.ok, first.stdout, first.result, first.language) == (True, "hi\nsub\n", "42", "python")
    assert own.run_code("x = x + 1").result is None
    assert own.run_code("x").result == "42"
    other = own.run_code("x", context="other")
    assert not other.ok and "NameError" in other.stderr and "python.py" not in other.stderr
    assert sorted(own.code_contexts()) == ["default", "other"]
    assert own.processes.list() == []
    own.reset_code(context="other")
    assert own.code_contexts() == ["default"]
    own.reset_code()
    assert own.code_contexts() == [] and not own.run_code("x").ok


def test_pictures_tables_and_long_results_come_back(client, own):
    shown = whole(client, own, code=PICTURE + "display(Picture())\nclass T:\n    def _repr_html_(self): return '<table></table>'\nT()")
    picture, table = shown["results"]
    assert base64.b64decode(picture["data"]["image/png"]).startswith(b"\x89PNG\r\n\x1a\n")
    assert (picture["kind"], table["kind"], table["data"]["text/html"]) == ("display", "result", "<table></table>")
    # Longer than a line of the interpreter's, and longer than is shown.
    assert len(own.run_code("'y' * 200_000").result) == 200_002
    flood = whole(client, own, code="print('z' * 1_500_000)")
    assert len(flood["stdout"]) == 1 << 20 and flood["stdout_dropped_bytes"] == 1_500_001 - (1 << 20)
    assert own.run_code("#" + "c" * 100_000 + "\n7").result == "7"


def test_what_goes_wrong_is_told_and_the_context_stays(client, own):
    own.run_code("kept = 5")
    raised = whole(client, own, code="def f():\n    return 1 / 0\nf()")
    assert (raised["ok"], raised["error"]["name"]) == (False, "ZeroDivisionError")
    assert 'File "<cell' in raised["stderr"] and "return 1 / 0" in raised["stderr"]
    late = whole(client, own, code="while True: pass", timeout=1)
    assert late["timed_out"] and late["error"]["name"] == "Timeout" and not late["context_lost"]
    assert own.run_code("kept").result == "5"
    died = whole(client, own, code="import os\nos._exit(3)")
    assert died["context_lost"] and "exit code 3" in died["stderr"]
    assert not own.run_code("kept").ok
    for wrong in ({"code": "1", "language": "cobol"}, {"code": "1", "context": "a b"}, {"code": "1", "timeout": 0}, {}):
        with pytest.raises(ValidationError):
            whole(client, own, **wrong)


def test_variables_outlive_a_pause_and_a_fork_has_its_own(client, own):
    own.run_code("n = 1")
    own.pause()
    assert own.run_code("n += 1\nn").result == "2"
    with own.fork() as child:
        assert child.run_code("n += 10\nn").result == "12"
    assert own.run_code("n").result == "2"


def test_the_asynchronous_client_runs_code_too(own):
    async def run():
        async with AsyncMiosa() as client:
            box = await client.sandboxes.get(own.id)
            # Runs in one context wait for each other.
            many = [box.run_code(f"import asyncio\nawait asyncio.sleep(0)\n{n}", context="async") for n in range(3)]
            assert [one.result for one in await asyncio.gather(*many)] == ["0", "1", "2"]
            assert "async" in await box.code_contexts()
            await box.reset_code(context="async")
            assert "async" not in await box.code_contexts()

    asyncio.run(run())
