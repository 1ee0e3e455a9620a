"""`clca serve`: what it refuses before a model is loaded."""

import socket
from pathlib import Path

import httpx
import pytest
from small_endpoint import tiny_model

from clca.cli import serving
from clca.cli.commands import serve
from clca.cli.main import main
from clca.errors import ClcaError
from clca.serve import loading, server

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "RUN is missing: Run folders"),
        (["x", "--max-batch", "0"], "--max-batch 0"),
        (["x", "--queue", "-1"], "--queue -1"),
        (["x", "--file-mib", "inf"], "--file-mib inf: should be a finite number"),
        (["x", "--megapixels", "nan"], "--megapixels nan: should be a finite number"),
        (["x", "--token-file", "empty"], "empty"),
        (["x", "--token-file", "short"], "fewer than 16"),
        (["x", "--token-file", "bytes"], "not text"),
        (["x", "--port", "99999999"], "cannot listen"),
        (["x", "--host", "no.such.host.invalid"], "cannot listen"),
        (["x", "--maxbatch", "3"], "did you mean --max-batch"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    Path("short").write_text("abc")
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClcaError, match=told):
        serve.run(options)


def test_a_missing_token_file_and_a_missing_package_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):  # the command line says it in one line
        serve.run(["x", "--token-file", "nowhere"])
    monkeypatch.setitem(serving._PACKAGES, "serve", ("fastapi", "no_such_package"))
    with pytest.raises(ClcaError, match=r"needs no_such_package: pip install 'clca\[serve\]'"):
        serve.run(["x"])


def test_a_port_that_is_taken_is_told_before_the_run_is_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ClcaError, match="cannot listen"):
        serve.run(["no-such-run", "--port", str(taken.getsockname()[1])])
    with pytest.raises(ClcaError, match="no-such-run"):
        serve.run(["no-such-run", "--port", "0"])


def test_a_port_is_taken_from_the_start_by_a_server_that_is_still_loading() -> None:
    with server.listen("127.0.0.1", 0) as loading, pytest.raises(ClcaError, match="cannot listen"):
        server.listen("127.0.0.1", loading.getsockname()[1])


def test_an_address_of_ipv6_is_listened_on_told_and_taken_as_any_other() -> None:
    try:
        listening = server.listen("::1", 0)
    except ClcaError:
        pytest.skip("this machine has no IPv6 loopback")
    with listening, loading.answered_meanwhile(listening):
        port = listening.getsockname()[1]
        address = serving.Serving(host="::1").address(port)
        assert address == f"http://[::1]:{port}" == serving.Serving(host="[::1]").address(port)
        assert httpx.get(f"{address}/health/live", timeout=30, trust_env=False).status_code == 200
        with pytest.raises(ClcaError, match=f"cannot listen on ::1 port {port}"):
            server.listen("::1", port)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False),
     ("[::1]", True), ("[::]", False), ("leaves.example", False)],
)  # fmt: skip
def test_whether_others_can_ask(host: str, local: bool) -> None:
    assert serving.Serving(host=host).is_local is local


def test_it_warns_where_others_can_ask_and_shows_how_to_send_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained(str(tmp_path / "leaves"))
    token_file = tmp_path / "a token"
    token_file.write_text("0123456789abcdef0123\n")
    real = server.listen
    monkeypatch.setattr(server, "listen", lambda host, port: real("127.0.0.1", 0))  # tests open nothing to others
    monkeypatch.setattr(server, "serve", lambda app, listening, ready: (ready(), listening.close()))
    asked = [str(tmp_path / "leaves"), "--device", "cpu"]
    with_token = ["--host", "::", "--token-file", str(token_file)]
    for options, warns in ([], False), (["--host", "0.0.0.0"], True), (with_token, False):
        assert main(["serve", *asked, *options]) == 0
        told = capsys.readouterr()
        assert ("clca: warning: anyone who can reach 0.0.0.0 can query this server" in told.err) is warns
        assert "0123456789abcdef" not in told.out + told.err
    assert f"-H \"Authorization: Bearer $(cat '{token_file}')\"" in told.out
    assert "http://[::1]:" in told.out


def test_a_run_whose_name_holds_a_command_for_the_terminal_is_told_harmlessly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained(str(tmp_path / "red\x1b[31m\nleaves"))
    monkeypatch.setattr(server, "serve", lambda app, listening, ready: (ready(), listening.close()))
    assert serve.run([str(tmp_path / "red\x1b[31m\nleaves"), "--device", "cpu", "--port", "0"]) == 0
    assert capsys.readouterr().out.startswith("serving red\\x1b[31m\\nleaves at http://127.0.0.1:")
