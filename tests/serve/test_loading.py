"""What a client is told while the models still load, and that the server takes over from there."""

import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from small_endpoint import make_app, photo
from waiting import until

from clca.serve.loading import answered_meanwhile, stopped_by_signals
from clca.serve.server import listen, make_server


@pytest.fixture
def listening() -> socket.socket:
    return listen("127.0.0.1", 0)


def address(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_while_it_loads_health_says_so_and_everything_else_is_refused(listening: socket.socket) -> None:
    client = httpx.Client(base_url=address(listening), timeout=30, trust_env=False)
    with listening, client, answered_meanwhile(listening, "/cultivars"):
        for path in ("/health", "/health/ready", "/cultivars/health", "/health?x=1"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (503, {"live": True, "ready": False})
            assert answer.headers["retry-after"] == "5"
        for path in ("/health/live", "/cultivars/health/live"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"live": True, "ready": False})
        for path in ("/", "/v1/models", "/health/../metrics", "/" + "x" * 9000):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        head = client.head("/health")
        assert (head.status_code, head.content) == (503, b"")
        big = client.post("/v1/predict", content=bytes(3 << 20))
        assert (big.status_code, big.json()["error"]["status"]) == (503, 503)


def test_who_sends_no_request_is_left_and_disturbs_nobody(listening: socket.socket) -> None:
    place = listening.getsockname()
    silent, odd = (socket.create_connection(place, timeout=30) for _ in range(2))
    with listening, silent, odd, answered_meanwhile(listening):
        odd.sendall(b"x" * 100_000)
        assert b"HTTP" not in _all_of(odd)
        socket.create_connection(place).close()
        assert httpx.get(f"{address(listening)}/health", timeout=30, trust_env=False).status_code == 503
        assert silent.recv(1000) == b""  # after some seconds


def test_the_server_takes_over_and_who_came_at_the_end_is_answered(listening: socket.socket) -> None:
    with answered_meanwhile(listening):
        app = make_app()
    late = socket.create_connection(listening.getsockname(), timeout=30)  # between the two
    late.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        assert _all_of(late).startswith(b"HTTP/1.1 200")
        until(lambda: app.state.service.accepts)
        answer = httpx.post(f"{address(listening)}/v1/predict", content=photo(1), timeout=30, trust_env=False)
        assert answer.status_code == 200
    finally:
        server.handle_exit(15)
        thread.join(30)
        listening.close()
        late.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_loads_ends_the_process_whatever_an_import_would_make_of_it(number: signal.Signals) -> None:
    script = f"""
import signal
from clca.serve.loading import answered_meanwhile, stopped_by_signals
from clca.serve.server import listen
with stopped_by_signals(), answered_meanwhile(listen("127.0.0.1", 0)):
    try:
        signal.raise_signal({number.value})
    except BaseException:
        print("swallowed")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 128 + number
    assert (ended.stdout, ended.stderr) == ("", "clca: stopped while the models were loading\n")


def test_signals_are_what_they_were_once_it_is_loaded() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stopped_by_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_error_while_it_loads_ends_the_answers(listening: socket.socket) -> None:
    with listening:
        with pytest.raises(ValueError, match="no such run"), answered_meanwhile(listening):
            raise ValueError("no such run")
        assert not any(thread.name == "clca-loading" for thread in threading.enumerate())


def _all_of(connection: socket.socket) -> bytes:
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""
