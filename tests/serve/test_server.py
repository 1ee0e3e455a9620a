"""Many clients at once, slow ones, those that go, and the end: against a real server on this machine."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from small_endpoint import TOLERANCE, alone, by_class, make_app, photo, running, tiny_model
from waiting import until

pytestmark = pytest.mark.slow

MODEL = tiny_model()
CLIENTS = 32


def slowed(app: Any, seconds: float) -> None:
    """Make the model of an application slow."""
    served = app.state.service.models["tiny"]
    quick = served.answers

    def slow(*args: Any) -> Any:
        time.sleep(seconds)
        return quick(*args)

    served.answers = slow


@contextmanager
def held(app: Any) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The model of an application sets the first event once it has begun to compute, and then waits for the second."""
    served = app.state.service.models["tiny"]
    quick, begun, go = served.answers, threading.Event(), threading.Event()

    def waits(*args: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return quick(*args)

    served.answers = waits
    try:
        yield begun, go
    finally:
        go.set()


async def ask(client: httpx.AsyncClient, data: bytes, **params: Any) -> httpx.Response:
    return await client.post("/v1/predict", files={"images": data}, params={"top_k": 5, **params})


def test_clients_at_once_with_different_images_and_keep_rates_each_get_their_own_answer() -> None:
    rates = [None, 0.25, 0.75]
    sent = [(photo(k, (40 + k, 36)), rates[k % 3]) for k in range(2 * CLIENTS)]
    expected = torch.stack([alone(MODEL, data, rate) for data, rate in sent])
    apart = torch.cdist(expected, expected, p=float("inf")) + torch.eye(len(sent))
    assert apart.min() > 100 * TOLERANCE  # so that a mixed-up answer is seen

    async def work(address: str) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(base_url=address, timeout=30, limits=limits, trust_env=False) as client:
            jobs = (ask(client, data, **({} if rate is None else {"keep_rate": rate})) for data, rate in sent)
            return await asyncio.gather(*jobs)

    app = make_app(MODEL, max_batch=8)
    with running(app) as (address, _):
        answers = asyncio.run(work(address))
        text = httpx.get(f"{address}/metrics", trust_env=False).text
    assert {answer.status_code for answer in answers} == {200}
    for answer, probabilities, (_, rate) in zip(answers, expected, sent, strict=True):
        assert answer.json()["keep_rate"] == (rate or 0.5)
        torch.testing.assert_close(by_class(answer.json()["results"][0]), probabilities, atol=TOLERANCE, rtol=0)
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines())
    assert float(numbers['clca_batch_images_sum{model="tiny"}']) == len(sent)
    assert float(numbers['clca_batch_images_count{model="tiny"}']) < len(sent)  # some were computed together


def test_beyond_the_queue_some_are_told_to_come_back_and_nobody_gets_a_wrong_answer() -> None:
    sent = [photo(k) for k in range(CLIENTS)]
    expected = [alone(MODEL, data) for data in sent]

    async def work(address: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as client:
            return await asyncio.gather(*(ask(client, data) for data in sent))

    app = make_app(MODEL, queue=6, max_batch=4)
    slowed(app, 0.05)
    with running(app) as (address, _):
        answers = asyncio.run(work(address))
        several = httpx.post(f"{address}/v1/predict", files=[("i", data) for data in sent[:7]], trust_env=False)
        after = httpx.post(f"{address}/v1/predict", files={"i": sent[0]}, trust_env=False)
    counts = Counter(answer.status_code for answer in answers)
    assert set(counts) == {200, 429}
    assert counts[200] >= 6
    for answer, probabilities in zip(answers, expected, strict=True):
        if answer.status_code == 200:
            torch.testing.assert_close(by_class(answer.json()["results"][0]), probabilities, atol=TOLERANCE, rtol=0)
        else:
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "busy"
    assert several.status_code == 413  # there will never be room for as many
    assert after.status_code == 200
    assert (app.state.service.under_way, app.state.service.held_bytes) == (0, 0)


def test_bytes_held_are_bounded_too() -> None:
    app = make_app(MODEL, held_bytes=1000)
    with running(app) as (address, _):
        refused = httpx.post(f"{address}/v1/predict", content=photo(1, (60, 60)), trust_env=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "busy")
    assert app.state.service.held_bytes == 0


HEAD = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n"


def exchange(address: str, sent: bytes, drip: bytes = b"", every: float = 0.05) -> bytes:
    """Send something, then a byte now and then until there is an answer; all that comes back."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        connection.settimeout(every)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            try:
                return connection.recv(65536)
            except TimeoutError:
                if drip:
                    connection.sendall(drip)
    raise AssertionError("no answer")


def test_slow_uploads_are_ended_and_others_do_not_notice() -> None:
    app = make_app(MODEL, read_seconds=0.4, upload_seconds=0.8)
    with running(app) as (address, _):
        stuck = HEAD.format(1000).encode() + b"\x89PNG"
        answer = exchange(address, stuck)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in answer.lower()
        assert exchange(address, stuck, drip=b"x").startswith(b"HTTP/1.1 408")  # a byte now and then helps nobody
        with socket.create_connection(tuple(address.removeprefix("http://").split(":"))) as idle:  # type: ignore[arg-type]
            idle.sendall(stuck)
            assert httpx.post(f"{address}/v1/predict", content=photo(1), trust_env=False).status_code == 200
    assert (app.state.service.under_way, app.state.service.held_bytes) == (0, 0)


def test_ten_thousand_files_are_refused_before_they_are_sent() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name=images; filename="a.png"\r\n\r\nx\r\n'
    head = HEAD.format(10_000 * len(part)).replace("image/png", "multipart/form-data; boundary=b").encode()
    with running(make_app(MODEL, files=8)) as (address, _):
        assert exchange(address, head + 9 * part).startswith(b"HTTP/1.1 413")  # nine have come, and are enough


def test_too_late_is_504_and_what_is_left_of_it_is_dropped() -> None:
    app = make_app(MODEL, answer_seconds=0.3)
    with running(app) as (address, _), held(app):
        answer = httpx.post(f"{address}/v1/predict", content=photo(1), timeout=30, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "too_late")
        assert app.state.service.under_way == 0


def test_a_client_that_goes_gives_its_place_back() -> None:
    app = make_app(MODEL)
    data = photo(1)
    with running(app) as (address, _), held(app) as (begun, go):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(HEAD.format(len(data)).encode() + data)
            assert begun.wait(30)
            assert app.state.service.under_way == 1
        until(lambda: app.state.service.under_way == 0)  # before the model is done
        go.set()
        assert httpx.post(f"{address}/v1/predict", content=data, trust_env=False).status_code == 200


def test_an_error_in_the_model_says_nothing_of_the_machine_and_the_next_is_answered() -> None:
    app = make_app(MODEL)
    served = app.state.service.models["tiny"]
    right = served.answers

    def wrong(*args: Any) -> Any:
        served.answers = right
        raise RuntimeError("a secret in /root/place")

    served.answers = wrong
    with running(app) as (address, _):
        answer = httpx.post(f"{address}/v1/predict", content=photo(1), trust_env=False)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "failed"
        assert "secret" not in answer.text
        assert httpx.post(f"{address}/v1/predict", content=photo(1), trust_env=False).status_code == 200


def test_told_to_stop_it_answers_what_it_has_and_refuses_the_rest() -> None:
    app = make_app(MODEL, max_batch=1)
    data, found = photo(1), []

    def client(address: str) -> None:
        found.append(httpx.post(f"{address}/v1/predict?top_k=5", content=data, timeout=60, trust_env=False))

    with running(app) as (address, server), held(app) as (begun, go):
        clients = [threading.Thread(target=client, args=(address,)) for _ in range(3)]
        for thread in clients:
            thread.start()
        assert begun.wait(30)
        until(lambda: app.state.service.under_way == 3)
        server.handle_exit(15)
        refused = httpx.post(f"{address}/v1/predict", content=data, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert httpx.get(f"{address}/health", trust_env=False).status_code == 503
        assert httpx.get(f"{address}/health/live", trust_env=False).status_code == 200
        go.set()
        for thread in clients:
            thread.join(60)
    assert [answer.status_code for answer in found] == [200] * 3
    for answer in found:
        torch.testing.assert_close(by_class(answer.json()["results"][0]), alone(MODEL, data), atol=TOLERANCE, rtol=0)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", trust_env=False)


@pytest.mark.parametrize("later", [False, True])
def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_ends_it(
    later: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    app = make_app(MODEL)
    found = []

    def client(address: str) -> None:
        try:
            found.append(httpx.post(f"{address}/v1/predict", content=photo(1), timeout=60, trust_env=False).status_code)
        except httpx.HTTPError:
            found.append(0)

    with running(app) as (address, server), held(app) as (begun, go):
        asks = threading.Thread(target=client, args=(address,))
        asks.start()
        assert begun.wait(30)
        server.handle_exit(signal.SIGTERM)
        until(lambda: not app.state.service.accepts)
        monkeypatch.setattr("clca.serve.server._SAME_SIGNAL_SECONDS", -1.0 if later else 1e6)
        server.handle_exit(signal.SIGTERM)
        if later:
            asks.join(60)  # while the model is still at work
        go.set()
        asks.join(60)
    assert (found == [200]) is not later
    assert "Traceback" not in "".join(capfd.readouterr())


def test_the_command_says_where_it_listens_and_ends_in_order_at_sigterm(tmp_path: Path) -> None:
    MODEL.save_pretrained(str(tmp_path / "leaves"))
    program = "import sys; from clca.cli.commands.serve import run; sys.exit(run(sys.argv[1:]))"
    options = ["leaves", "--port", "0", "--device", "cpu", "--threads", "1", "--wait-ms", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *options], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line, curl = process.stdout.readline(), process.stdout.readline()
        address = line.split(" at ")[1].split(";")[0]
        assert "serving leaves at http://127.0.0.1:" in line
        assert f"curl -F images=@leaf.jpg '{address}/v1/predict?top_k=3'" in curl
        assert httpx.post(f"{address}/v1/predict", content=photo(1), timeout=20, trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
        assert (process.returncode, rest) == (0, "stopped\n")
    finally:
        process.kill()
        process.wait()
