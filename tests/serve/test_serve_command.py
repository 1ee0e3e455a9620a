"""`clca serve`: what it refuses before a model is loaded."""

import socket
from pathlib import Path

import pytest

from clca.commands import serve
from clca.errors import ClcaError


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "RUN|run"),
        (["x", "--max-batch", "0"], "max_batch"),
        (["x", "--queue", "-1"], "queue"),
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
    monkeypatch.setattr(serve, "_PACKAGES", ("fastapi", "no_such_package"))
    with pytest.raises(ClcaError, match=r"needs no_such_package: pip install 'clca\[serve\]'"):
        serve.run(["x"])


def test_a_port_that_is_taken_is_told_before_the_run_is_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ClcaError, match="cannot listen"):
        serve.run(["no-such-run", "--port", str(taken.getsockname()[1])])
    with pytest.raises(ClcaError, match="no-such-run"):
        serve.run(["no-such-run", "--port", "0"])


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False),
     ("leaves.example", False)],
)  # fmt: skip
def test_whether_others_can_ask(host: str, local: bool) -> None:
    assert serve._is_local(host) is local
