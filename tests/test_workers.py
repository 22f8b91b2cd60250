"""Tasks on several processes: every result once, whoever dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from distributed import LocalCluster

from afmol.data import workers
from afmol.data.workers import FileTask, hearing_ctrl_c, make_file, results
from afmol.errors import ConfigError


def square(x: int) -> int:
    return x * x


def square_process_and_setting(x: int) -> tuple[int, int, str | None]:
    return x * x, os.getpid(), os.environ.get("MALLOC_TRIM_THRESHOLD_")


def dies_once(task: tuple[int, str]) -> int:
    x, mark = task
    if x == 7 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def dies(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def fails(x: int) -> int:
    raise ConfigError(f"{x} is wrong.")


def listening(process: psutil.Process) -> set[str]:
    """Addresses at which a process and its children take connections."""
    tree = [process, *process.children(recursive=True)]
    return {c.laddr.ip for p in tree for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


class Told(NamedTuple):
    """What two workers said of twenty tasks, and the addresses at which they and this process listened meanwhile."""

    squares: list[int]
    processes: set[int]
    settings: set[str | None]
    heard: set[str]


@pytest.fixture(scope="module")
def told() -> Told:
    with pytest.MonkeyPatch.context() as patch:
        for name in workers.MEMORY:  # what a cluster of another test left in this process, which goes before
            patch.delenv(name, raising=False)
        found = results(square_process_and_setting, range(20), workers=2)
        first = next(found)
        heard = listening(psutil.Process())
        squares, processes, settings = zip(first, *found, strict=True)
    return Told(sorted(squares), {*processes}, {*settings}, heard)


def test_each_task_is_done_once_by_other_processes(told):
    assert sorted(results(square, range(20), workers=0)) == [x * x for x in range(20)]
    assert told.squares == [x * x for x in range(20)]
    assert os.getpid() not in told.processes


def test_workers_keep_their_memory(told):
    """Dask's own setting has the system clear every large array anew."""
    assert told.settings == {str(2**33)}


def test_nobody_listens_to_the_network(told):
    assert told.heard <= {"127.0.0.1", "::1"}
    assert told.heard
    with socket.create_server(("0.0.0.0", 0)):
        assert "0.0.0.0" in listening(psutil.Process())  # the test sees what it looks for


UNGUARDED = """
from afmol.data.workers import results
print("the script runs", flush=True)
def cube(x):
    return x ** 3
print(sorted(results(cube, range(4), workers=1)), __file__)
"""


def test_a_script_without_a_guard_is_run_once(tmp_path):
    """Multiprocessing would run it again in each worker, which would start workers, which is refused, for minutes."""
    path = tmp_path / "script.py"
    path.write_text(UNGUARDED)
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.splitlines() == ["the script runs", f"[0, 1, 8, 27] {path}"]


BUSY = """
import os, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from afmol.data.loader import Batches, loader
from afmol.data.workers import results

def busy(path):
    Path(f"{path}.{os.getpid()}").touch()
    sum(range(10**10))  # without a word to the interpreter

class Source:
    size, origin = 1, {}
    def batch(self, q):
        busy(sys.argv[2])

if sys.argv[1] == "dask":
    list(results(busy, [sys.argv[2]] * 2, workers=2))
else:
    list(loader(Batches(Source(), 9), workers=2))
"""


@pytest.mark.parametrize("kind", ["dask", "torch"])
def test_workers_end_with_their_parent(kind, tmp_path):
    """At kill -9, in the middle of something that never asks."""
    (tmp_path / "script.py").write_text(BUSY)
    run = subprocess.Popen([sys.executable, tmp_path / "script.py", kind, tmp_path / "mark"])
    until = time.monotonic() + 60
    while len(marks := list(tmp_path.glob("mark.*"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    workers = [psutil.Process(int(mark.suffix[1:])) for mark in marks]
    assert len(workers) == 2
    assert all(w.is_running() for w in workers)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=0.5)
    assert [w for w in alive if w.status() != psutil.STATUS_ZOMBIE] == []


def test_a_worker_that_dies_costs_nothing_but_time(tmp_path):
    mark = tmp_path / "died"
    found = results(dies_once, [(x, str(mark)) for x in range(20)], workers=2)
    assert sorted(found) == [x * x for x in range(20)]
    assert mark.exists()


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as found:
        yield found


def test_a_mistake_stays_one_sentence(cluster):
    for where in ({"workers": 0}, {"scheduler": cluster.scheduler_address}):
        with pytest.raises(ConfigError, match=r"3 is wrong\."):
            list(results(fails, [3], **where))


def test_a_task_that_kills_its_workers(cluster, monkeypatch):
    assert cluster.scheduler.allowed_failures == workers.RETRIES
    for holder, name in ((cluster.scheduler, "allowed_failures"), (workers, "RETRIES")):
        monkeypatch.setattr(holder, name, 1)  # each worker takes seconds to start
    with pytest.raises(ConfigError, match="2 workers died over the same task"):
        list(results(dies, [3], scheduler=cluster.scheduler_address))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    monkeypatch.setattr(workers, "QUEUE", 0.5)


def test_a_scheduler_that_is_not_there(impatient):
    with pytest.raises(ConfigError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        list(results(square, range(3), scheduler="tcp://127.0.0.1:1"))


def test_a_scheduler_without_workers(impatient):
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(ConfigError, match="has no workers"),
    ):
        list(results(square, range(3), scheduler=cluster.scheduler_address))


def moment(x: int) -> int:
    time.sleep(0.3)
    return os.getpid()


def test_workers_that_come_later_work_too(cluster):
    found = results(moment, range(24), scheduler=cluster.scheduler_address)
    first = next(found)
    cluster.scale(3)
    assert len({first, *found}) == 3


def test_a_cluster_that_grows_with_its_tasks():
    """It has no worker until it sees tasks."""
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="100ms")
        assert sorted(results(square, range(8), scheduler=cluster.scheduler_address)) == [x * x for x in range(8)]


def test_a_scheduler_that_dies(impatient):
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    found = results(moment, range(24), scheduler=cluster.scheduler_address)
    next(found)
    cluster.close()
    with pytest.raises(ConfigError, match="scheduler is gone"):
        list(found)


# Files


def content(path: Path, log: Path) -> bytes:
    with log.open("a") as file:
        file.write("made\n")
    return b"whole"


def whole(path: Path) -> bool:
    if path.read_bytes() == b"a letter":
        raise ConfigError(f"{path} is not ours.")
    return path.read_bytes() == b"whole"


def test_a_file_is_kept_made_or_made_again(tmp_path):
    log = tmp_path / "log"
    log.touch()
    before = {"none": None, "empty": b"", "whole": b"whole", "damaged": b"who"}
    tasks = {}
    for name, there in before.items():
        path = tmp_path / name
        if there is not None:
            path.write_bytes(there)
        tasks[path] = FileTask(path, partial(content, path, log), partial(whole, path))
    done = {path.name: word for path, word in results(make_file, tasks.values(), workers=0)}
    assert done == {"none": "made", "empty": "made", "whole": "kept", "damaged": "made again, it was damaged"}
    assert {path.read_bytes() for path in tasks} == {b"whole"}
    assert log.read_text().count("made") == 3
    path.write_bytes(b"a letter")
    with pytest.raises(ConfigError, match="is not ours"):
        make_file(tasks[path])
    assert path.read_bytes() == b"a letter"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_python_drops_is_heard_later():
    """One that comes within a destructor."""

    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # until the interpreter looks at its signals
                pass

    before = signal.getsignal(signal.SIGINT)
    with hearing_ctrl_c() as raise_if_pressed:
        raise_if_pressed()
        Dying()
        with pytest.raises(KeyboardInterrupt):
            raise_if_pressed()
    assert signal.getsignal(signal.SIGINT) == before
