"""How the deaths of a worker are classified."""

import os
import signal
from pathlib import Path

import pytest

from sweep.events import Setup
from sweep.worker import local
from sweep.worker.local import LocalWorker, WorkerDied


@pytest.mark.parametrize(("killed_for_memory", "reason"), [(3, "killed"), (4, "host_oom")])
def test_a_worker_that_the_kernel_killed_for_memory_is_known_by_the_kernel_s_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_for_memory: int, reason: str
) -> None:
    """The count is the test's: to use up a machine's memory for real would end the test too."""
    counts = iter([3, killed_for_memory])
    monkeypatch.setattr(local, "_oom_kills", lambda: next(counts))
    worker = LocalWorker(
        tmp_path / "worker.log",
        Setup(cache=tmp_path / "cache", base=tmp_path, device="cpu", checkpoint_every_s=120),
    )
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied) as death:
        worker.next_message(30)
    assert death.value.reason == reason
    worker.close()


@pytest.mark.parametrize(
    ("asked_to_stop", "expected"), [(False, ("killed", "SIGSEGV")), (True, ("hung", "does not end"))]
)
def test_a_worker_that_takes_its_time_to_crash_is_killed_and_not_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_to_stop: bool, expected: tuple[str, str]
) -> None:
    """A core dump, or GPU memory to free, keeps a process for seconds after its pipes are closed."""
    crash = tmp_path / "crash"
    now = tmp_path / "now"
    crash.write_text(
        f"#!/bin/sh\nuntil [ -e '{now}' ]; do sleep 0.05; done\nexec <&- >&-\nsleep 3\nkill -SEGV $$\n"
    )
    crash.chmod(0o755)
    monkeypatch.setattr(local.sys, "executable", str(crash))
    worker = LocalWorker(
        tmp_path / "worker.log",
        Setup(cache=tmp_path / "cache", base=tmp_path, device="cpu", checkpoint_every_s=120),
    )
    if asked_to_stop:
        worker.wake()
        assert worker.next_message(30) is None
    now.touch()
    with pytest.raises(WorkerDied, match=expected[1]) as death:
        worker.next_message(30)
    assert death.value.reason == expected[0]
    worker.close()


def test_the_kernel_s_count_is_read() -> None:
    places = [Path(place) for place in ("/sys/fs/cgroup/memory.events", "/proc/vmstat")]
    place = next((place for place in places if place.exists() and "oom_kill " in place.read_text()), None)
    if place is None:
        pytest.skip("this system tells nobody")
    (count,) = (line.split()[1] for line in place.read_text().splitlines() if line.startswith("oom_kill "))
    assert local._oom_kills() == int(count)
