"""Files, from the SDK's side."""

import pytest
from miosa.errors import InvalidPathError, NotFoundError, ValidationError

EVERY_BYTE = bytes(range(256)) * 40


def test_text_and_bytes_come_back(box, place):
    box.files.write(f"{place}/deep/er/text.txt", "grüße\nzwei\n")
    assert box.files.read_text(f"{place}/deep/er/text.txt") == "grüße\nzwei\n"
    box.files.write(f"{place}/bytes", EVERY_BYTE)
    assert box.files.read(f"{place}/bytes") == EVERY_BYTE
    assert box.exec(f"wc -c < {place}/bytes").stdout.strip() == str(len(EVERY_BYTE))


def test_an_empty_file_and_an_overwritten_one(box, place):
    box.files.write(f"{place}/f", b"")
    assert box.files.read(f"{place}/f") == b""
    box.files.write(f"{place}/f", "long content")
    box.files.write(f"{place}/f", "short")
    assert box.files.read_text(f"{place}/f") == "short"


@pytest.mark.parametrize("name", ["a b#1.py", "größe.txt", "50%.txt", "q?x=1&y", "tab\there", "🦀", "+plus", "'\"$(x)"])
def test_any_name(box, place, name):
    path = f"{place}/{name}"
    box.write_file(path, name)
    assert box.read_file(path) == name
    assert box.files.stat(path)["size"] == len(name.encode())
    assert path in [entry["path"] for entry in box.files.list(place)["entries"]]


def test_a_json_file_is_a_file(box, place):
    text = '{"data": {"content": "eA=="}}'
    box.files.write(f"{place}/x.json", text)
    assert box.files.read_text(f"{place}/x.json") == text


def test_eight_mebibytes_there_and_back(box, place):
    content = bytes(i * 7 % 256 for i in range(4096)) * 2048
    box.files.write(f"{place}/large", content)
    assert box.exec(f"stat -c %s {place}/large").stdout.strip() == str(8 << 20)
    assert box.files.read(f"{place}/large") == content


def test_list_and_stat(box, place):
    box.files.write(f"{place}/b", "12345")
    box.files.write(f"{place}/a/inner", "1")
    box.exec(f"ln -s b {place}/link && chmod 0755 {place}/b")
    listing = box.files.list(place)
    assert listing["path"] == place
    assert [(entry["name"], entry["is_dir"]) for entry in listing["entries"]] == [("a", True), ("b", False), ("link", False)]
    assert [entry["name"] for entry in box.files.list(place, depth=2)["entries"]] == ["a", "inner", "b", "link"]
    stat = box.files.stat(f"{place}/b")
    assert (stat["path"], stat["size"], stat["is_dir"], stat["mode"]) == (f"{place}/b", 5, False, "0755")
    assert stat["modified_at"].endswith("Z")
    assert box.files.stat(place)["is_dir"] is True
    assert "workspace" in [entry["name"] for entry in box.files.list("/")["entries"]]


def test_write_many(box, place):
    answer = box.files.write_many([
        {"path": f"{place}/one", "content": "1"},
        {"path": f"{place}/sub/two", "content": EVERY_BYTE},
        {"path": "relative", "content": "x"},
    ])
    assert [written["path"] for written in answer["written"]] == [f"{place}/one", f"{place}/sub/two"]
    assert answer["written"][1]["size_bytes"] == len(EVERY_BYTE)
    assert [failed["path"] for failed in answer["failed"]] == ["relative"]
    assert box.files.read(f"{place}/sub/two") == EVERY_BYTE


def test_what_is_missing_is_not_found(box, place):
    for call in (box.files.read, box.files.stat, box.files.list):
        with pytest.raises(NotFoundError):
            call(f"{place}/nothing")


def test_a_path_that_cannot_be_is_refused(box, place):
    with pytest.raises(InvalidPathError):
        box.files.write("relative.txt", "x")
    with pytest.raises(InvalidPathError):
        box.files.read("/workspace")
    with pytest.raises((InvalidPathError, ValidationError)):
        box.files.write("/workspace", "over a directory")


def test_a_program_written_as_a_file_runs(box, place):
    box.files.write(f"{place}/sum.py", "import sys\nprint(sum(int(word) for word in sys.argv[1:]))\n")
    assert box.exec(f"python3 {place}/sum.py 1 2 39").stdout == "42\n"
