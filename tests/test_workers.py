"""Tasks on several processes: every result once, whoever dies."""

import os
import signal
import time
from pathlib import Path

import pytest
from distributed import LocalCluster

from afmol.data import workers
from afmol.data.workers import results
from afmol.errors import ConfigError


def square(x: int) -> int:
    return x * x


def process(_: int) -> int:
    return os.getpid()


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


@pytest.mark.parametrize("processes", [0, 2])
def test_each_task_is_done_once(processes):
    assert sorted(results(square, range(20), workers=processes)) == [x * x for x in range(20)]


def test_other_processes_work():
    assert os.getpid() not in set(results(process, range(8), workers=2))


def test_a_worker_that_dies_costs_nothing_but_time(tmp_path):
    mark = tmp_path / "died"
    found = results(dies_once, [(x, str(mark)) for x in range(20)], workers=2)
    assert sorted(found) == [x * x for x in range(20)]
    assert mark.exists()


def test_a_task_that_kills_its_workers():
    with pytest.raises(ConfigError, match="4 workers died over the same task"):
        list(results(dies, [3], workers=1))


@pytest.mark.parametrize("processes", [0, 1])
def test_a_mistake_stays_one_sentence(processes):
    with pytest.raises(ConfigError, match=r"3 is wrong\."):
        list(results(fails, [3], workers=processes))


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    monkeypatch.setattr(workers, "QUEUE", 0.5)


def test_a_scheduler_that_is_not_there(impatient):
    with pytest.raises(ConfigError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        list(results(square, range(3), scheduler="tcp://127.0.0.1:1"))


def test_a_scheduler_without_workers(impatient):
    with (
        LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.raises(ConfigError, match="has no workers"),
    ):
        list(results(square, range(3), scheduler=cluster.scheduler_address))


def moment(x: int) -> int:
    time.sleep(0.3)
    return os.getpid()


def test_workers_that_come_later_work_too():
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        found = results(moment, range(24), scheduler=cluster.scheduler_address)
        first = next(found)
        cluster.scale(3)
        assert len({first, *found}) == 3


def test_a_cluster_that_grows_with_its_tasks():
    """It has no worker until it sees tasks."""
    with LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster:
        cluster.adapt(minimum=0, maximum=2, interval="100ms")
        assert sorted(results(square, range(8), scheduler=cluster.scheduler_address)) == [x * x for x in range(8)]


def test_a_scheduler_that_dies(impatient):
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    found = results(moment, range(24), scheduler=cluster.scheduler_address)
    next(found)
    cluster.close()
    with pytest.raises(ConfigError, match="scheduler is gone"):
        list(found)


def test_a_cluster_that_is_there():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert sorted(results(square, range(20), scheduler=cluster.scheduler_address)) == [x * x for x in range(20)]
