"""Output as it appears."""

import time

import pytest
from miosa.errors import NotFoundError


def test_the_first_line_comes_before_the_end_and_the_exit_last(box):
    began = time.monotonic()
    events = []
    for event in box.exec.stream("echo first; sleep 3; echo second; echo oops >&2; exit 5"):
        events.append((event.type, event.data, time.monotonic() - began))
    types = [event[0] for event in events]
    assert types[0] == "stdout" and events[0][1]["line"] == "first"
    assert types[-1] == "exit" and types.count("exit") == 1
    assert events[-1][1]["exit_code"] == 5
    assert events[-1][2] - events[0][2] >= 2.5, "the first line was held back"
    assert ("stderr", "oops") in [(kind, data.get("line")) for kind, data, _ in events]
    assert [data["line"] for kind, data, _ in events if kind == "stdout"] == ["first", "second"]


def test_order_and_line_breaks_survive(box):
    events = list(box.exec.stream("for n in $(seq 500); do echo line $n; done; printf 'a\\xe2\\x80\\xa8b\\xc2\\x85c\\nlast'"))
    lines = [event.data["line"] for event in events if event.type == "stdout"]
    assert lines == [f"line {n}" for n in range(1, 501)] + ["a\u2028b\x85c", "last"]
    assert events[-1].type == "exit" and events[-1].data["exit_code"] == 0


def test_options_work_as_in_exec(box):
    events = list(box.exec_stream("pwd; echo $A; sleep 300", {"cwd": "/tmp", "env": {"A": "b"}, "timeout": 5}))
    assert [event.data["line"] for event in events if event.type == "stdout"] == ["/tmp", "b"]
    assert events[-1].data["exit_code"] == 124


def test_leaving_early_ends_the_command(box):
    stream = box.exec.stream("echo up; exec sleep 6161")
    assert next(stream).data["line"] == "up"
    stream.close()
    gone = "for i in $(seq 50); do pgrep -f 'sleep 616[1]' >/dev/null || exit 0; sleep 0.1; done; exit 1"
    assert box.exec(gone).exit_code == 0


def test_a_missing_sandbox_is_an_error_not_an_empty_stream(client, box):
    other = client.sandboxes.get(box.id)
    other.id = "sbx_nosuchone"
    with pytest.raises(NotFoundError):
        list(other.exec.stream("true"))
