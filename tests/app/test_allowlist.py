"""What the page lets through, over the network, and what it never reads, fetches or serves."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_client import PageClient
from small_page import draw, page_of
from waiting import until

from clca.app import PageSettings
from clca.app.upload_folder import UploadFolder, upload_folder

API = "/gradio_api"
FILE = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
TRAVERSAL = [
    "/etc/passwd", "../../../etc/passwd", "{folder}/../../etc/passwd", "{folder}/link", "/proc/self/environ",
    "file:///etc/passwd", "//etc/passwd", "http://127.0.0.1:1/x.png", "{folder}\x00.png", "{folder}/" + "a" * 5000,
    "{folder}", "{folder}/no-such-file", "{run}/config.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def link() -> str:
    """A link out of the folder of uploads, as no upload can make one."""
    path = upload_folder().path / "link"
    path.symlink_to("/etc/passwd")
    return str(path)


def join(address: str, data: list[Any], function: int = 0) -> httpx.Response:
    message = {"data": data, "fn_index": function, "trigger_id": None, "session_hash": "abc", "event_data": None}
    return httpx.post(f"{address}{API}/queue/join", json=message, timeout=30)


def upload(address: str, *files: tuple[str, bytes]) -> httpx.Response:
    return httpx.post(f"{address}{API}/upload", files=[("files", file) for file in files], timeout=60)


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs", "/gradio_api/proxy=http://127.0.0.1:1/",
     "/gradio_api/deep_link?session_hash=a", "/gradio_api/token", "/login_check", "/logout", "/monitoring",
     "/gradio_api/custom_component/1/client/component/x.js", "/gradio_api/stream/a/b/1/playlist.m3u8", "/pwa_icon",
     "/gradio_api/run-history/records", "/gradio_api/call/x/y", "/.git/config", "/gradio_api/file/etc/passwd"],
)  # fmt: skip
def test_what_the_page_does_not_use_is_not_there(address: str, path: str) -> None:
    answer = httpx.get(address + path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "path", ["run/predict", "api/predict", "call/identify", "call/v2/identify", "login", "stream/1", "component_server",
             "run-history/connect", "vibe-edit"]
)  # fmt: skip
def test_nothing_else_can_be_written(address: str, path: str) -> None:
    assert httpx.post(f"{address}{API}/{path}", json={"data": []}).status_code == 404


@pytest.mark.parametrize("name", TRAVERSAL)
def test_no_other_file_is_served(address: str, name: str, link: str, vines: Path) -> None:
    path = name.format(folder=upload_folder().path, run=vines)
    try:
        answer = httpx.get(f"{address}{API}/file={path}")
    except httpx.InvalidURL:
        return  # not even a request
    assert answer.status_code in (403, 404), answer.text[:200]
    assert "root:" not in answer.text


def test_a_traversal_that_httpx_would_tidy_is_refused(address: str, link: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    inside = upload_folder().path
    for path in (f"{inside}/../../../../etc/passwd", f"{inside}/%2e%2e/%2e%2e/etc/passwd", link, "%2fetc%2fpasswd"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                f"GET {API}/file={path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))  # type: ignore[misc]
        assert answer.startswith(b"HTTP/1.1 40"), answer[:200]
        assert b"root:" not in answer


@pytest.mark.parametrize("name", TRAVERSAL)
def test_no_other_file_is_named_to_the_page(address: str, name: str, link: str, vines: Path) -> None:
    path = name.format(folder=upload_folder().path, run=vines)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for data in ([file], [[file]], ["x", {"deep": [{"er": file}]}]):
        answer = join(address, data)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_uploaded")


def test_addresses_are_never_fetched(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        port = trap.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}/x.png", f"https://localhost:{port}/x.png"):
            file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
            assert join(address, [file]).status_code == 403
            assert httpx.get(f"{address}{API}/file={url}").status_code in (403, 404)
            assert httpx.get(f"{address}{API}/proxy={url}").status_code == 404
        with pytest.raises(TimeoutError):
            trap.accept()


def test_a_file_inside_a_message_is_refused(address: str, tmp_path: Path) -> None:
    uploaded = upload(address, ("a.png", draw(tmp_path / "a.png", 0, 0).read_bytes())).json()[0]
    data = {"path": uploaded, "url": "data:image/svg+xml;base64,PHN2Zy8+", "meta": {"_type": "gradio.FileData"}}
    assert join(address, [data]).status_code == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[" * 100_000, 400), (b"x" * (3 << 20), 413), (b'{"data": [' + b'{"a":' * 5000 + b"1", 400)],
)
def test_a_broken_message_is_refused(address: str, body: bytes, status: int) -> None:
    answer = httpx.post(f"{address}{API}/queue/join", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "name", ["../../up.png", "/etc/up.png", "..\\up.png", "a\x00.png", "<img src=x onerror=alert(1)>.png", "é" * 300,
             ".htaccess", "..", ""]
)  # fmt: skip
def test_names_of_uploads_lead_nowhere(address: str, name: str, tmp_path: Path) -> None:
    before = set(os.listdir("/etc")) | set(os.listdir(upload_folder().path.parent))
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\n'
        + draw(tmp_path / "a.png", 0, 0).read_bytes() + b"\r\n--x--\r\n"
    )  # fmt: skip
    answer = httpx.post(
        f"{address}{API}/upload", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    if answer.status_code == 200:
        for path in answer.json():
            assert Path(path).resolve().is_relative_to(upload_folder().path)
    assert set(os.listdir("/etc")) | set(os.listdir(upload_folder().path.parent)) <= before | {
        each for each in os.listdir(upload_folder().path.parent) if each.startswith(("clca-", "pytest", "tmp"))
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [("leaf.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
     ("leaf.html", b"<!doctype html><script>alert(1)</script>"),
     ("leaf.png", b"<!doctype html><script>alert(1)</script>")],
)  # fmt: skip
def test_a_page_that_was_uploaded_never_runs_here(address: str, name: str, content: bytes) -> None:
    uploaded = upload(address, (name, content)).json()[0]
    answer = httpx.get(f"{address}{API}/file={uploaded}")
    kind, disposition = answer.headers["content-type"], answer.headers.get("content-disposition", "")
    assert kind.startswith("image/png") or disposition.startswith("attachment")  # a PNG that is none shows nothing
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_the_page_loads_from_and_talks_to_nobody_else(address: str) -> None:
    policy = httpx.get(address).headers["content-security-policy"]
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy


def test_another_sites_name_for_this_machine_is_refused(address: str) -> None:
    for host, status in (("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost:80", 200), ("[::1]", 200)):
        assert httpx.get(address, headers={"Host": host}).status_code == status


def test_uploads_have_limits(vines: Path, tmp_path: Path) -> None:
    page = PageSettings(upload_bytes=200_000, folder_bytes=300_000 + upload_folder().size(), uploads=2)
    with page_of([vines], page, read_seconds=1, upload_seconds=2) as address:
        assert upload(address, ("a.bin", bytes(300_000))).status_code == 413
        assert upload(address, *((f"{n}.bin", bytes(80_000)) for n in range(4))).status_code == 413
        many = httpx.post(f"{address}{API}/upload", files=[("files", (f"{n}", b"x")) for n in range(1500)])
        assert many.status_code in (400, 413)
        # Without saying how long it will be.
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        endless = httpx.post(
            f"{address}{API}/upload", content=iter([start, *[bytes(50_000)] * 20]), headers=headers, timeout=30
        )
        assert (endless.status_code, endless.json()["error"]["code"]) == (413, "upload_too_long")
        slow = _slow_upload(address, start)
        assert b" 408 " in slow.split(b"\r\n")[0]
        for number in range(6):
            answer = upload(address, (f"{number}.bin", os.urandom(100_000)))
        assert (answer.status_code, answer.json()["error"]["code"]) in ((507, "no_room"), (413, "upload_too_long"))
        assert httpx.get(f"{address}/health").status_code == 200


def kept() -> set[Path]:
    return {Path(parent, name) for parent, _, names in os.walk(upload_folder().path) for name in names}


@pytest.mark.parametrize(
    ("body", "code"),
    [(b'--x\r\nContent-Disposition: form-data; name="field"\r\n\r\n' + bytes(1 << 20), "not_a_file"),
     (FILE + b"abc\r\n" + b'--x\r\nContent-Disposition: form-data; name="field"\r\n\r\na\r\n--x--\r\n', "not_a_file"),
     (FILE + b"abc", "broken_form"), (FILE + b"abc\r\n--x\r\n" + b"A" * 100_000, "broken_form"),
     (FILE + b"abc\r\n--x\r\nA: " + b"b" * 20_000, "broken_form"),
     ((FILE + b"\r\n") * 1001 + b"--x--\r\n", "too_many_files"), (b"nonsense", "broken_form"), (b"", "broken_form")],
)  # fmt: skip
def test_nothing_is_left_of_a_refused_upload(address: str, body: bytes, code: str) -> None:
    before = kept()
    answer = httpx.post(
        f"{address}{API}/upload", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.json()["error"]["code"] == code
    assert kept() == before


def test_nothing_is_left_of_an_upload_that_its_sender_leaves(address: str) -> None:
    before = kept()
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST {API}/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\n"
        connection.sendall(
            f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + FILE + bytes(99_999)
        )
        until(lambda: kept() != before)
    until(lambda: kept() == before)


def test_uploads_come_back_as_they_were_sent(address: str) -> None:
    files = [
        (f"leaf {k}.{ending}", os.urandom(70_000 * k)) for k, ending in enumerate(("png", "zip", "a/b", "", "JPG"))
    ]
    paths = [Path(path) for path in upload(address, *files).json()]
    assert [path.read_bytes() for path in paths] == [content for _, content in files]
    assert [path.suffix for path in paths] == [".png", ".zip", "", "", ".JPG"]
    assert httpx.get(f"{address}{API}/file={paths[1]}", headers={"Range": "bytes=0-1,3-4"}).content == files[1][1]


def test_for_new_uploads_old_ones_go_but_not_those_of_the_last_minutes(tmp_path: Path) -> None:
    folder = UploadFolder()
    for age, name in ((900, "oldest"), (600, "older"), (10, "new")):
        path = folder.path / name
        path.write_bytes(bytes(100_000))
        os.utime(path, (time.time() - age, time.time() - age))
    assert folder.free_space(400_000, 50_000, 300) == 300_000  # there is room
    assert folder.free_space(300_000, 50_000, 300) == 200_000
    assert {path.name for path in folder.path.iterdir()} == {"older", "new"}
    assert folder.free_space(100_000, 100_000, 300) == 100_000
    assert {path.name for path in folder.path.iterdir()} == {"new"}
    for number in range(10):
        (folder.path / f"empty {number}").touch()
    assert folder.size() > 200_000  # an empty file takes room as well
    folder.delete()


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}],
)  # fmt: skip
def test_other_sites_neither_send_nor_read(address: str, vines: Path, headers: dict[str, str]) -> None:
    for path in ("upload", "queue/join", "cancel"):
        answer = httpx.post(f"{address}{API}/{path}", headers=headers, files=[("files", ("a.png", b"x"))])
        assert answer.json()["error"]["code"] == "another_site"
    answer = httpx.get(f"{address}/config", headers=headers)
    assert "access-control-allow-origin" not in answer.headers


def test_its_own_page_sends(address: str) -> None:
    for headers in ({"Origin": address}, {"Sec-Fetch-Site": "same-origin", "Origin": address}):
        assert httpx.post(f"{address}{API}/upload", headers=headers, files=[("files", ("a", b"x"))]).status_code == 200


@pytest.mark.parametrize("function", [-1, 999, None, "0", True, 0.5, [], {}])
def test_what_is_no_function_is_not_called(address: str, function: Any) -> None:
    answer = join(address, [], function)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "broken_message")


def test_answers_are_not_kept_without_end_for_who_does_not_read_them(address: str) -> None:
    page, codes = PageClient(address), set()
    function = page.function("model", "input")["id"]
    for _ in range(300):
        codes.add(page.join(function, "vines").status_code)
        if codes & {429}:
            break
        time.sleep(0.005)
    assert codes <= {200, 429, 503}
    assert 429 in codes


def _slow_upload(address: str, start: bytes) -> bytes:
    """What is answered to one who sends the head of an upload and then nothing."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        head = f"POST {API}/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + start)
        return connection.recv(65536)


def test_a_page_sets_the_upload_folder_again(vines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs in the process may have removed the variable by which Gradio finds the folder."""
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    with page_of([vines]) as address:
        (path,) = upload(address, ("a.png", b"x")).json()
    assert Path(path).is_relative_to(upload_folder().path)


def test_old_uploads_are_deleted(tmp_path: Path) -> None:
    folder = upload_folder()
    old, new = folder.path / "old" / "a.png", folder.path / "new" / "b.png"
    for path in (old, new):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 4000, time.time() - 4000))
    folder.delete_older(3600)
    assert (old.exists(), new.exists()) == (False, True)
    assert folder.path.stat().st_mode & 0o077 == 0  # nobody else on this machine reads it


def test_what_a_killed_page_left_is_deleted_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, own = tmp_path / f"clca-page-{ended.pid}-abc", tmp_path / f"clca-page-{os.getpid()}-abc"
    others = [own, tmp_path / "clca-page-notes", tmp_path / f"other-{ended.pid}"]
    for folder in (dead, *others):
        folder.mkdir()
        (folder / "leaf.png").write_bytes(b"x")
    (tmp_path / f"clca-page-{ended.pid}-link").symlink_to(others[2])
    folder = UploadFolder()
    assert not dead.exists()
    assert all((each / "leaf.png").exists() for each in others)
    folder.delete()


def test_a_token_guards_page_and_uploads(vines: Path) -> None:
    token = "0123456789abcdef0123"
    with page_of([vines], token=token) as address:
        for path in ("/", "/config", "/v1/models", f"{API}/startup-events"):
            answer = httpx.get(address + path)
            assert answer.status_code == 401
            assert "basic" in answer.headers["www-authenticate"].lower()
            assert httpx.get(address + path, auth=("anyone", token)).status_code == 200
        assert upload(address, ("a.png", b"x")).status_code == 401
        assert json.loads(httpx.get(f"{address}/health").text)["ready"]
