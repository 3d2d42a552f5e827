"""Trees of files: drawing, watching, moving, and taking them out."""

import base64
import io
import os
import tarfile
import threading
import time

import httpx
import pytest
from miosa.errors import InvalidPathError, NotFoundError


def call(method, path, **more):
    headers = {"Authorization": f"Bearer {os.environ['MIOSA_API_KEY']}"}
    with httpx.Client(timeout=60, trust_env=False) as client:
        return client.request(method, f"{os.environ['MIOSA_BASE_URL']}{path}", headers=headers, **more)


def names(node):
    """A tree as nested dictionaries of names."""
    children = node.get("children")
    return None if children is None else {child["name"]: names(child) for child in children}


def test_a_tree_has_what_is_there(box, place):
    for name in ("a/b/c/deep", "a/file", ".hidden/inside", "z"):
        box.files.write(f"{place}/{name}", name)
    tree = box.files.tree(place)
    assert (tree["path"], tree["type"]) == (place, "directory")
    assert names(tree) == {"a": {"b": {"c": None}, "file": None}, "z": None}
    assert names(box.files.tree(place, depth=1)) == {"a": None, "z": None}
    leaf = next(child for child in tree["children"] if child["name"] == "z")
    assert (leaf["type"], leaf["size"], leaf["path"]) == ("file", 1, f"{place}/z")
    answer = call("GET", f"/sandboxes/{box.id}/files/tree", params={"path": place, "include_hidden": "true"})
    assert names(answer.json()["data"])[".hidden"] == {"inside": None}
    with pytest.raises(NotFoundError):
        box.files.tree(f"{place}/nothing")
    with pytest.raises(InvalidPathError):
        box.files.tree(f"{place}/z")


def test_a_watch_tells_what_happens(box, place):
    box.files.write(f"{place}/before", "1")
    seen, ended = [], threading.Event()

    def follow():
        for event in box.files.watch(place):
            seen.append((event.event, event.path.removeprefix(f"{place}/"), event.is_dir, event.old_path))
            if event.path.endswith("/end"):
                break
        ended.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    # The SDK does not tell when the watch has begun.
    deadline = time.monotonic() + 60
    while not seen:
        assert time.monotonic() < deadline, "the watch does not begin"
        box.files.write(f"{place}/before", "2")
        time.sleep(0.5)
    box.exec(f"cd {place} && mkdir -p new/deep && echo 1 > new/deep/f && mv new/deep/f new/g && rm before")
    box.files.write(f"{place}/end", "")
    assert ended.wait(60), seen
    told = [change for change in seen if change[1] != "before"]
    assert ("created", "new", True, None) in told and ("created", "new/deep", True, None) in told, told
    assert ("created", "new/deep/f", False, None) in told or ("created", "new/g", False, None) in told, told
    assert ("deleted", "before", False, None) in seen
    assert seen[-1] == ("created", "end", False, None)


def test_directories_are_made_moved_and_removed(box, place):
    post = lambda route, body: call("POST", f"/sandboxes/{box.id}/files/{route}", json=body)
    assert post("mkdir", {"path": f"{place}/a/b"}).json() == {"data": {"path": f"{place}/a/b"}}
    assert post("mkdir", {"path": f"{place}/a/b"}).status_code == 200
    box.files.write(f"{place}/a/b/f", "x")
    moved = post("move", {"from": f"{place}/a", "to": f"{place}/other/place"})
    assert moved.json()["data"] == {"from": f"{place}/a", "to": f"{place}/other/place"}
    assert box.files.read_text(f"{place}/other/place/b/f") == "x"
    remove = lambda **query: call("DELETE", f"/sandboxes/{box.id}/files", params=query)
    full = remove(path=f"{place}/other")
    assert (full.status_code, full.json()["error"]["code"]) == (400, "INVALID_PATH")
    assert remove(path=f"{place}/other", recursive="true").json()["data"]["deleted"] is True
    assert remove(path=f"{place}/other").status_code == 404
    assert remove().json()["error"]["details"]["field"] == "path"
    assert post("move", {"from": f"{place}/none", "to": f"{place}/x"}).status_code == 404


def test_the_batch_of_old_clients(box, place):
    encoded = base64.b64encode(b"\x00\xff").decode()
    body = {"files": [{"path": f"{place}/one", "content": encoded}, {"path": f"{place}/bad", "content": "?"}]}
    answer = call("POST", f"/sandboxes/{box.id}/files/batch", json=body).json()["data"]
    assert [written["path"] for written in answer["written"]] == [f"{place}/one"]
    assert [failed["path"] for failed in answer["failed"]] == [f"{place}/bad"]
    assert box.files.read(f"{place}/one") == b"\x00\xff"


def test_exports(box, place):
    content = os.urandom(300_000)
    box.files.write(f"{place}/dir/random", content)
    box.files.write(f"{place}/ü b", "text")
    box.exec(f"ln -s 'ü b' {place}/dir/link && mkfifo {place}/dir/pipe")
    one = box.create_export(f"{place}/ü b", label="mine", filename="renamed.txt")
    assert (one["status"], one["label"], one["sandbox_id"], one["archive_download_url"]) == ("ready", "mine", box.id, None)
    assert one["files"][0]["filename"] == "renamed.txt"
    headers = {"Authorization": f"Bearer {os.environ['MIOSA_API_KEY']}"}
    answer = httpx.get(one["files"][0]["download_url"], headers=headers, trust_env=False)
    assert answer.content == b"text" and "renamed.txt" in answer.headers["content-disposition"]

    assert box.download_export(f"{place}/ü b") == b"text"
    packed = box.download_export([f"{place}/dir", f"{place}/ü b"], filename="both.tgz")
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        assert sorted(archive.getnames()) == ["dir", "dir/link", "dir/random", "ü b"]
        assert archive.extractfile("dir/random").read() == content
        assert archive.getmember("dir/link").linkname == "ü b"
    folder = box.download_export(f"{place}/dir")
    with tarfile.open(fileobj=io.BytesIO(folder), mode="r:gz") as archive:
        assert archive.extractfile("dir/random").read() == content
    several = box.create_export([f"{place}/dir", f"{place}/ü b"])
    assert len(several["files"]) == 2 and several["archive_download_url"]
    with pytest.raises(NotFoundError):
        box.create_export(f"{place}/nothing")
    with pytest.raises(NotFoundError):
        box.download_export([f"{place}/dir", f"{place}/nothing"])


def test_artifacts(box):
    box.files.write("/workspace/report.txt", "done")
    box.files.write("/workspace/.secret", "x")
    artifacts = box.get_artifacts()
    listed = {file["path"]: file for file in artifacts.artifacts["files"]}
    assert listed["/workspace/report.txt"]["size"] == 4 and "/workspace/.secret" not in listed
    assert box.artifacts.list()["artifacts"]["path"] == "/workspace"
    assert "url" in artifacts.preview
    box.exec("rm /workspace/report.txt /workspace/.secret")


def test_a_full_disk_says_so(box, place):
    # A file system of one mebibyte inside; the sandbox's own disk would take minutes to fill.
    box.exec(f"mkdir -p {place}/small && mount -t tmpfs -o size=1m tmpfs {place}/small")
    try:
        answer = call("PUT", f"/sandboxes/{box.id}/files{place}/small/f", content=os.urandom(3 << 20))
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "DISK_FULL"), answer.text
        assert box.files.list(f"{place}/small")["entries"] == []
    finally:
        box.exec(f"umount {place}/small")
