"""Commands, from the SDK's side."""

import time

import pytest


def test_output_and_exit_code(box):
    result = box.exec("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert result.duration_ms > 0


def test_the_default_directory_and_another_one(box):
    assert box.exec("pwd").stdout == "/workspace\n"
    assert box.exec("pwd", {"cwd": "/tmp"}).stdout == "/tmp\n"
    assert box.exec("pwd", {"working_dir": "/etc"}).stdout == "/etc\n"


def test_environment_of_one_call(box):
    assert box.exec("echo $A-$B", {"env": {"A": "1 2", "B": "ü$x"}}).stdout == "1 2-ü$x\n"
    assert box.exec("echo [$A]").stdout == "[]\n"


@pytest.mark.parametrize("text", ["grüße 🦀", "a\u2028b\u2029c\x85d", "tab\tbell\x07", '"quoted" \\n'])
def test_unicode_both_ways(box, text):
    assert box.exec('printf %s "$TEXT"', {"env": {"TEXT": text}}).stdout == text


def test_bytes_that_are_no_text_become_text(box):
    assert box.exec(r"printf 'a\xffb'").stdout == "a\ufffdb"


def test_a_megabyte_of_output(box):
    result = box.exec("head -c 1048576 /dev/zero | tr '\\0' x; echo; echo end")
    assert len(result.stdout) == 1048576 + len("\nend\n")
    assert result.stdout.endswith("x\nend\n")


def test_death_by_signal(box):
    assert box.exec("kill -9 $$").exit_code == 137
    assert box.exec("kill -TERM $$").exit_code == 143


def test_a_timeout_kills_the_whole_group(box):
    began = time.monotonic()
    result = box.exec("echo before; sleep 333 & sleep 333", {"timeout": 5})
    assert time.monotonic() - began < 60
    assert result.exit_code == 124
    assert result.stdout == "before\n" and "5 s" in result.stderr
    assert box.exec("pgrep -fc 'sleep 33[3]'").stdout == "0\n"


def test_standard_input_is_closed(box):
    result = box.exec("cat; read line || echo none", {"timeout": 60})
    assert (result.stdout, result.exit_code) == ("none\n", 0)


def test_a_background_child_does_not_hold_the_call(box):
    began = time.monotonic()
    result = box.exec("nohup sleep 555 & echo started")
    assert result.stdout == "started\n"
    assert time.monotonic() - began < 60
    assert box.exec("pkill -xf 'sleep 555'").exit_code == 0, "the child is gone"


def test_a_heredoc(box):
    result = box.exec("python3 - <<'END'\nfor n in range(3):\n    print(f'line {n}')\nEND")
    assert (result.stdout, result.exit_code) == ("line 0\nline 1\nline 2\n", 0)


def test_pipes_quotes_and_unset_programs(box):
    assert box.exec("""printf '%s\\n' "a b" 'c"d' | sort -r | head -1""").stdout == 'c"d\n'
    missing = box.exec("no-such-program")
    assert missing.exit_code == 127 and "no-such-program" in missing.stderr


def test_the_other_spellings_of_exec(box):
    assert box.exec.run("echo a").stdout == "a\n"
    assert box.run("echo b").stdout == "b\n"
    assert box.commands.run("echo c").stdout == "c\n"


def test_what_one_command_leaves_the_next_one_finds(box):
    box.exec("echo kept > /tmp/left")
    assert box.exec("cat /tmp/left; rm /tmp/left").stdout == "kept\n"


def test_git_works(box):
    result = box.exec("cd $(mktemp -d) && git init -q . && echo x > f && git add f && "
                      "git -c user.name=a -c user.email=a@b commit -qm one && git log --format=%s")
    assert result.stdout == "one\n", result.stderr
