"""One run, many processes: if processes race, die, sleep or run out of space, at most one continues."""

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

import clca.study.run.claim as module
from clca.errors import ClcaError, WorkError
from clca.study.run.claim import LOST, Claim, Watch, claim, holder

pytestmark = pytest.mark.slow

processes = multiprocessing.get_context("fork")  # plain functions without torch; a new start of Python loads it
long_ago = time.time() - 2 * 86400


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def take() -> Iterator[Callable[..., Claim]]:
    """Claims that must succeed, released when the test ends."""
    taken: list[Claim] = []

    def take(folder: Path, **settings: Any) -> Claim:
        taken.append(claim(folder, **{"beat": 60.0, **settings}) or pytest.fail(f"{folder} is held"))
        return taken[-1]

    yield take
    for each in taken:
        each.release()


def alive_elsewhere(folder: Path, generation: int = 1, **changes: Any) -> Path:
    """A claim of a process on another machine."""
    content = {
        "token": "t",
        "host": "far",
        "machine": "far 123",
        "pid": 7,
        "started": "1",
        "state": "held",
        "time": 1.5,
    }
    path = folder / f"claim.{generation}"
    path.write_text(json.dumps({**content, **changes}))
    return path


def is_lost(held: Claim) -> bool:
    """Whether the next heartbeat finds the claim lost."""
    return not held._renew()


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_links(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EPERM, "Operation not permitted")


started: list[Any] = []


def start(work: Callable[..., None], *arguments: Any) -> Any:
    process = processes.Process(target=work, args=arguments, daemon=True)
    process.start()
    started.append(process)
    return process


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    """A test that fails leaves no process that waits, nor one that stands still and hears no SIGTERM."""
    yield
    for process in started:
        process.kill()
        process.join()
    started.clear()


# One process


def test_one_at_a_time(tmp_path: Path, take: Callable[..., Claim]) -> None:
    assert holder(tmp_path) is None
    first = take(tmp_path)
    assert claim(tmp_path) is None
    who = holder(tmp_path)
    assert who is not None
    assert (who.host, who.pid) == (os.uname().nodename, os.getpid())
    assert abs(who.since - time.time()) < 60
    first.release()
    assert holder(tmp_path) is None
    second = take(tmp_path)
    assert (first.generation, second.generation) == (1, 2)
    assert claim(tmp_path) is None
    assert sorted(os.listdir(tmp_path)) == ["claim.1", "claim.2"]


def test_a_block_releases_also_when_it_fails(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held is not None
    with pytest.raises(RuntimeError), held:
        raise RuntimeError
    assert holder(tmp_path) is None
    held.release()  # again: nothing


def test_a_late_release_leaves_the_next_owner_alone(tmp_path: Path, take: Callable[..., Claim]) -> None:
    first = take(tmp_path)
    alive_elsewhere(tmp_path, 2)
    before = first.path.read_bytes()
    first.release()
    assert first.path.read_bytes() == before
    assert holder(tmp_path).host == "far"


def test_generations_count_as_numbers(tmp_path: Path, take: Callable[..., Claim]) -> None:
    for generation in (1, 2, 9, 10):
        alive_elsewhere(tmp_path, generation, state="released")
    (tmp_path / "claim.99x").touch()
    (tmp_path / "claim.012").touch()
    assert take(tmp_path).generation == 11


def test_no_folder(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") is None
    with pytest.raises(ClcaError, match="no such folder"):
        claim(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ClcaError, match="no such folder"):
        claim(tmp_path / "file")


# Races


def race(folders: list[Path], barrier: Any, links: bool, won: Any) -> None:
    if not links:
        os.link = no_links
    mine = []
    for folder in folders:
        barrier.wait()
        if held := claim(folder, beat=60):
            mine.append((folder.name, held.generation, os.getpid()))
    barrier.wait()  # none ends before: its claims would be free
    won.put(mine)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("before", ["nothing", "released", "dead"])
def test_one_wins(tmp_path: Path, before: str, links: bool) -> None:
    folders = [tmp_path / str(number) for number in range(150)]
    for folder in folders:
        folder.mkdir()
        if before == "released":
            alive_elsewhere(folder, state="released")
        if before == "dead":
            alive_elsewhere(folder, machine=module.machine(), pid=os.getpid(), started="another time")
    racers, won = 6, processes.Queue()
    barrier = processes.Barrier(racers)
    racing = [start(race, folders, barrier, links, won) for _ in range(racers)]
    winners = sorted(each for _ in range(racers) for each in won.get(timeout=60))
    for process in racing:
        process.join()
    generation = 1 if before == "nothing" else 2
    assert [(name, n) for name, n, _ in winners] == sorted((folder.name, generation) for folder in folders)
    assert not list(tmp_path.glob("*/.claim*"))


def relay(folder: Path, goal: int, log: Path, ending: str) -> None:
    """Take the run over and over, alone or not at all; end by a release or, with the process, by kill -9."""
    while True:
        held = claim(folder, beat=60)
        if held is None:
            time.sleep(0.0005)
            continue
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails when two are
        with open(log, "a") as file:
            file.write(f"{held.generation}\n")
        os.unlink(folder / "inside")
        if held.generation >= goal:
            os._exit(0)
        if ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        held.release()


@pytest.mark.parametrize(("ending", "runners", "goal"), [("release", 5, 300), ("kill", 40, 40)])
def test_take_overs_one_after_another(tmp_path: Path, ending: str, runners: int, goal: int) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    relays = [start(relay, folder, goal, log, ending) for _ in range(runners)]
    end = time.monotonic() + 60
    for process in relays:
        process.join(max(0.0, end - time.monotonic()))
    ended = [process.exitcode for process in relays]
    killed = runners - 1 if ending == "kill" else 0
    assert sorted(ended) == [-signal.SIGKILL] * killed + [0] * (runners - killed)
    last = goal if ending == "kill" else goal + runners - 1  # from `goal` on each ends with its claim
    assert [int(line) for line in log.read_text().split()] == list(range(1, last + 1))


def test_a_slow_process_does_not_win_a_generation_that_has_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the folder and its claim, others came and went."""
    alive_elsewhere(tmp_path, 1, state="released")
    link = os.link

    def slow(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        for _ in range(4):
            with claim(tmp_path):
                pass
        link(source, target)

    monkeypatch.setattr(os, "link", slow)
    assert claim(tmp_path) is None
    assert holder(tmp_path) is None
    assert sorted(os.listdir(tmp_path)) == [f"claim.{n}" for n in range(1, 6)]


def test_a_link_whose_answer_was_lost_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with claim(tmp_path) as held:
        assert held.still_held()
        assert claim(tmp_path) is None


# Owners that end


def own(folder: Path, beat: float, lost: Path | None) -> None:
    on_lost = None if lost is None else lambda: lost.write_text(str(os.getpid()))
    held = claim(folder, beat=beat, on_lost=on_lost)
    (folder / "owned").touch()
    while held:
        time.sleep(0.01)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_is_followed_at_once(tmp_path: Path, take: Callable[..., Claim], reaped: bool) -> None:
    process = start(own, tmp_path, 60, None)
    until((tmp_path / "owned").exists)
    assert holder(tmp_path).pid == process.pid
    assert claim(tmp_path) is None
    os.kill(process.pid, signal.SIGKILL)
    if reaped:
        process.join()
    else:  # a zombie, until its parent asks
        until(lambda: b") Z" in Path(f"/proc/{process.pid}/stat").read_bytes())
    until(lambda: holder(tmp_path) is None, 5)  # once its last thread has ended
    assert take(tmp_path).generation == 2
    process.join()


@pytest.mark.parametrize("with_callback", [True, False])
def test_an_owner_that_stood_still_is_told_when_it_wakes(
    tmp_path: Path, take: Callable[..., Claim], with_callback: bool
) -> None:
    folder, lost = tmp_path / "run", tmp_path / "lost"
    folder.mkdir()
    watch = Watch(patience=0.9)
    process = start(own, folder, 0.05, lost if with_callback else None)
    until((folder / "owned").exists)
    end = time.monotonic() + 2
    while time.monotonic() < end:  # alive: held much longer than `patience`
        assert claim(folder, watch=watch) is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    held = until(lambda: claim(folder, beat=0.05, watch=watch))
    assert time.monotonic() - stopped > 0.8
    os.kill(process.pid, signal.SIGCONT)
    if with_callback:
        until(lambda: lost.exists() and lost.read_text() == str(process.pid))
        process.kill()
    process.join(20)
    assert process.exitcode == (-signal.SIGKILL if with_callback else LOST)
    assert held.still_held()
    held.release()


def test_a_child_does_not_release(tmp_path: Path, take: Callable[..., Claim]) -> None:
    held = take(tmp_path)
    process = start(held.release)
    process.join()
    assert process.exitcode == 0
    assert holder(tmp_path).pid == os.getpid()


def test_a_process_number_given_again_is_not_the_owner(tmp_path: Path) -> None:
    alive_elsewhere(tmp_path, machine=module.machine(), pid=os.getpid(), started="another time")
    assert holder(tmp_path) is None
    alive_elsewhere(tmp_path, machine=module.machine(), pid=os.getpid(), started=module.start_time(os.getpid()))
    assert holder(tmp_path).pid == os.getpid()


def test_a_process_that_cannot_be_seen_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc mounted so that it hides the processes of other users."""
    alive_elsewhere(tmp_path, machine=module.machine(), pid=7)

    def hidden(path: Path) -> bytes:
        raise FileNotFoundError(path)

    def of_another(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", hidden)
    monkeypatch.setattr(os, "kill", of_another)
    assert holder(tmp_path).pid == 7
    monkeypatch.undo()
    monkeypatch.setattr(module, "machine", lambda: "")  # the machine cannot be identified
    alive_elsewhere(tmp_path, machine="", pid=2**30)
    assert holder(tmp_path).pid == 2**30


# Other machines


def test_a_silent_owner_elsewhere_has_patience(tmp_path: Path, take: Callable[..., Claim]) -> None:
    alive_elsewhere(tmp_path)
    watch = Watch(patience=90, clock=(clock := Clock()))
    for clock.now in (0, 20, 40, 60, 80, 89.9):
        assert claim(tmp_path, watch=watch) is None
        assert claim(tmp_path) is None  # who has not looked on does not know
        assert holder(tmp_path, watch).host == "far"
    clock.now = 90.1
    assert holder(tmp_path, watch) is None
    alive_elsewhere(tmp_path, 2)  # another was faster: watched from the start
    clock.now = 110
    assert claim(tmp_path, watch=watch) is None


def test_what_a_watch_saw_counts_in_another_process(tmp_path: Path, take: Callable[..., Claim]) -> None:
    """The driver looks on, its worker claims."""
    watch = Watch(patience=3, clock=(clock := Clock()))
    assert watch.gone(tmp_path) is None
    path = alive_elsewhere(tmp_path)
    for clock.now in range(3):
        assert watch.gone(tmp_path) is None
    clock.now = 3
    assert holder(tmp_path, watch) is None
    seen = watch.gone(tmp_path)
    assert seen == watch.gone(tmp_path) == (1, int(path.stat().st_mtime))
    os.utime(path, (0, path.stat().st_mtime + 10))  # its heart beat since
    assert claim(tmp_path, gone=seen) is None
    os.utime(path, (0, seen[1] + 0.25))  # the same, on a mount that shows other fractions of a second
    mine = take(tmp_path, gone=seen)
    assert claim(tmp_path, gone=seen) is None  # said of the claim before
    assert watch.gone(tmp_path) is None
    mine.release()
    assert watch.gone(tmp_path) == (2, int(mine.path.stat().st_mtime))
    assert watch.gone(tmp_path / "none") is None


def test_a_released_one_elsewhere_is_free_at_once(tmp_path: Path, take: Callable[..., Claim]) -> None:
    alive_elsewhere(tmp_path, state="released")
    assert holder(tmp_path) is None
    assert take(tmp_path).generation == 2


def test_an_observer_that_was_away_starts_to_watch_anew(tmp_path: Path) -> None:
    """Both waited for the file server: the owner's next heartbeat is on its way."""
    alive_elsewhere(tmp_path)
    watch = Watch(patience=90, clock=(clock := Clock()))
    assert claim(tmp_path, watch=watch) is None
    clock.now = 10_000
    assert claim(tmp_path, watch=watch) is None


@given(
    beats=st.lists(st.floats(0.1, 60), min_size=1, max_size=30),
    looks=st.lists(st.floats(0.1, 200), min_size=1, max_size=30),
    skew=st.integers(-(10**9), 10**9),
)
@settings(max_examples=60, deadline=None)
def test_who_beats_is_never_stale_and_who_does_not_is_at_last(
    tmp_path_factory: pytest.TempPathFactory, beats: list[float], looks: list[float], skew: int
) -> None:
    """Heartbeats less than `patience` apart, looks at any time, and file times of any clock that goes on."""
    folder = tmp_path_factory.mktemp("run")
    path = alive_elsewhere(folder)
    watch = Watch(patience=90, forgotten=1e12, clock=(clock := Clock()))
    events = [(sum(beats[: n + 1]), "beat") for n in range(len(beats))]
    events += [(sum(looks[: n + 1]), "look") for n in range(len(looks)) if sum(looks[: n + 1]) < sum(beats) + 30]
    for clock.now, event in sorted(events):
        if event == "beat":
            os.utime(path, (0, 2 * 10**9 + skew + clock.now))
        else:
            assert holder(folder, watch) is not None
    looked = clock.now
    while holder(folder, watch):
        clock.now += 29
        assert clock.now - looked < 90 + 2 * 29
    assert clock.now - looked >= 30


def test_file_times_of_other_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = alive_elsewhere(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "server_time", lambda folder: pytest.fail("a look at a claim in use writes nothing"))
        for ahead in (86400, -1800, -3500):
            os.utime(path, (0, time.time() + ahead))
            assert claim(tmp_path) is None
    for last_beat in (time.time() - 3700, long_ago):
        os.utime(path, (0, last_beat))
        assert holder(tmp_path) is None
    assert os.listdir(tmp_path) == ["claim.1"]
    assert holder(tmp_path, Watch(forgotten=3 * 86400)) is not None
    monkeypatch.setattr(module, "server_time", lambda folder: long_ago + 60)  # it is this machine's clock that is wrong
    assert holder(tmp_path) is not None
    monkeypatch.setattr(module, "server_time", full)  # the file server's clock cannot be asked
    assert holder(tmp_path) is not None


# Claims that cannot be read


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 200,
        b'{"token": "t"',
        b"[" * 5000,
        b"[]",
        b"{}",
        b'{"a": 1}',
        b"\xff",
        b'{"token": "t", "host": "h", "machine": "m", "pid": -1, "started": "", "state": "", "time": 0.0}',
        b'{"token": "t", "host": 1, "machine": "m", "pid": 1, "started": "", "state": "", "time": 0.0}',
        None,
    ],
)
def test_what_cannot_be_read_is_held_until_it_is_old(
    tmp_path: Path, take: Callable[..., Claim], content: bytes | None
) -> None:
    path = tmp_path / "claim.3"
    path.mkdir() if content is None else path.write_bytes(content)
    assert claim(tmp_path) is None
    assert holder(tmp_path).host == "unknown"
    watch = Watch(patience=3, clock=(clock := Clock()))
    for clock.now in range(4):
        assert claim(tmp_path, watch=watch) is None or clock.now == 3
    os.utime(path, (0, long_ago))
    assert holder(tmp_path) is None or holder(tmp_path).pid == os.getpid()


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_an_answer(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "claim.1").write_bytes(content)
    assert holder(folder) is not None


def test_claims_removed_by_hand_are_lost(tmp_path: Path, take: Callable[..., Claim]) -> None:
    first = take(tmp_path, on_lost=lambda: None)
    first.path.unlink()
    second = take(tmp_path)  # the same number, another owner
    assert not first.still_held()
    first.release()
    assert holder(tmp_path) is not None
    assert is_lost(first)
    assert not is_lost(second)


def test_a_removed_folder_is_lost(tmp_path: Path) -> None:
    calls: list[int] = []
    (tmp_path / "run").mkdir()
    held = claim(tmp_path / "run", beat=60, on_lost=lambda: calls.append(1))
    (tmp_path / "run").rename(tmp_path / "gone")
    assert is_lost(held)
    assert is_lost(held)
    assert calls == [1]
    held.release()
    assert not (tmp_path / "run").exists()


# Disks


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("step", ["write", "link", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_no_claim_without_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[..., Claim], step: str, links: bool, number: int
) -> None:
    real = getattr(os, step)

    def fails(*arguments: Any, **settings: Any) -> Any:
        if step == "open" and not arguments[1] & os.O_CREAT:
            return real(*arguments, **settings)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if not links:
            patch.setattr(os, "link", no_links)
        patch.setattr(os, step, fails)
        with pytest.raises(WorkError, match="no space left" if number == errno.ENOSPC else "read-only") as caught:
            claim(tmp_path)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    assert take(tmp_path).generation == 1


def test_without_links_a_half_written_claim_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[..., Claim]
) -> None:
    write, calls = os.write, []

    def fills_up(file: int, content: bytes) -> int:
        calls.append(content)
        return write(file, content) if len(calls) == 1 else write(file, content[:20]) if len(calls) == 2 else full()

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        patch.setattr(os, "write", fills_up)
        with pytest.raises(WorkError, match="no space left"):
            claim(tmp_path)
    assert os.listdir(tmp_path) == ["claim.1"]  # the name stays used
    assert holder(tmp_path) is None
    assert take(tmp_path).generation == 2


def test_a_release_needs_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[..., Claim]) -> None:
    held = take(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        held.release()
    assert os.listdir(tmp_path) == ["claim.1"]
    assert holder(tmp_path) is None
    assert take(tmp_path).generation == 2


def test_a_file_server_that_is_away_loses_no_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[..., Claim]
) -> None:
    held = take(tmp_path, on_lost=lambda: pytest.fail("not lost"))
    before = held.path.stat().st_mtime_ns

    def away(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    for step in ("utime", "listdir", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, away)
            assert not is_lost(held)
    assert not is_lost(held)
    assert held.path.stat().st_mtime_ns > before
    monkeypatch.setattr(os, "listdir", away)
    with pytest.raises(WorkError, match="cannot be read"):
        holder(tmp_path)
