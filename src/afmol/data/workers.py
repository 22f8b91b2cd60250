"""Many tasks on many processes, on this machine or on a cluster, by Dask; and files that can be made again at any time.

A task is a function of its arguments alone that says where its result lies, so that it does not matter who does it, or
how often: a worker that dies costs nothing but its time, and work that was stopped goes on where it was.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import AfmolError, ConfigError
from ..files import write_file

if TYPE_CHECKING:
    from distributed import Client

RETRIES = 3
"""How often a task that failed, or whose worker died, is given to another."""
AHEAD = 4
"""Tasks that wait at each worker: the scheduler's memory is bounded, and nobody is idle."""
PATIENCE = 20.0
"""How long a scheduler may take to answer, s."""
MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**33, "MALLOC_MMAP_MAX_": 0, "MALLOC_ARENA_MAX": 1}
"""The C library of a worker keeps what it freed. Dask asks it to give back all above 64 KiB, which makes the system
clear every large array anew: training took 1.75 times the time of the processor (LOG.md, 2026-11-25)."""
QUEUE = 3600.0
"""How long the first worker of a cluster may take to come, s: jobs wait in queues."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class FileTask(NamedTuple):
    """A file that anybody can make, again if it must be; its functions are of modules, so that other processes find
    them."""

    path: Path
    content: Callable[[], bytes]
    whole: Callable[[], object]
    """Something true if what lies there is whole and this task's; raises an AfmolError if it is not ours to replace."""


def make_file(task: FileTask) -> tuple[Path, str]:
    """Make a file unless it is there, and say what was done; with `results`, work that can be stopped at any time."""
    done = "made"
    if task.path.exists() and task.path.stat().st_size:
        if task.whole():
            return task.path, "kept"
        done = "made again, it was damaged"
    write_file(task.path, task.content())
    return task.path, done


def results(
    function: Callable[[_Task], _Result],
    tasks: Iterable[_Task],
    scheduler: str = "",
    workers: int | None = None,
) -> Iterator[_Result]:
    """function(task) of each task, in the order in which they are done.

    Args:
        function: of a module, so that other processes find it.
        tasks: arguments that can be pickled.
        scheduler: address of a Dask scheduler; its workers need afmol and the same files at the same paths.
        workers: processes on this machine where there is no scheduler, its cores if None; 0: this process alone.

    Raises:
        ConfigError: a scheduler that does not answer or has no workers; a task that kills its workers.
        AfmolError: the first that the function raised; what else it raised RETRIES + 1 times.
    """
    if workers is not None and workers < 0:
        raise ConfigError("The number of workers must not be negative.")
    if workers == 0 and not scheduler:
        yield from map(function, tasks)
        return
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    with _client(scheduler, workers or os.cpu_count()) as client:
        try:
            with hearing_ctrl_c() as raise_if_pressed:
                for found in _spread(client, function, iter(tasks)):
                    raise_if_pressed()
                    yield found
        except KilledWorker as error:
            text = f"{RETRIES + 1} workers died over the same task; is there memory enough for so many?"
            raise ConfigError(text) from error
        except TimeoutError as error:
            raise ConfigError(f"The Dask scheduler at {scheduler} has no workers; start some.") from error
        except (CommClosedError, CancelledError) as error:
            raise ConfigError("The Dask scheduler is gone; start it, and the same command goes on.") from error


@contextlib.contextmanager
def _client(scheduler: str, workers: int | None) -> "Iterator[Client]":
    """A connection to a scheduler; without an address to one of this machine, with as many workers."""
    import dask
    from distributed import Client

    # A port of its own, so that two commands at once do not get in each other's way, on loopback: without a host the
    # whole network is listened to. No words about workers that are stopped, on purpose or to be started again.
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    local["silence_logs"] = logging.CRITICAL
    limits: dict[str, Any] = {
        "distributed.scheduler.allowed-failures": RETRIES,
        "distributed.comm.timeouts.connect": PATIENCE,
    }
    # Dask keeps the last 1000 messages to each worker for its own developers, and with them the tasks.
    limits["distributed.admin.low-level-log-length"] = 2
    limits["distributed.worker.preload"] = [__name__]  # calls dask_setup
    limits |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in MEMORY.items()}
    with dask.config.set(limits), contextlib.nullcontext() if scheduler else _script_stays_here():
        try:
            with _children_ignore_ctrl_c():
                client = Client(scheduler, set_as_default=False) if scheduler else Client(set_as_default=False, **local)
        except (OSError, ValueError) as error:
            raise ConfigError(f"No Dask scheduler answers at {scheduler}; check the address.") from error
        with client:
            yield client


def _spread(client: "Client", function: Callable[[_Task], _Result], waiting: Iterator[_Task]) -> Iterator[_Result]:
    """The results of the tasks, AHEAD of them at each worker that there is by now."""
    from distributed import as_completed

    running = as_completed(loop=client.loop)

    def fill() -> None:
        # Before there are workers too: a cluster may start some when it sees tasks.
        room = AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"])) - running.count()
        more = islice(waiting, max(0, room))
        running.update(client.submit(_result_or_mistake, function, t, retries=RETRIES, pure=False) for t in more)

    fill()
    client.wait_for_workers(1, QUEUE)
    fill()
    for done in running:
        found = done.result()
        if isinstance(found, AfmolError):
            raise found
        yield found
        done.release()
        fill()


def dask_setup(_: object) -> None:
    """What Dask calls in each worker that it starts here."""
    die_with_parent()


def die_with_parent() -> None:
    """From now on this process, a child by multiprocessing, ends when its parent does, kill -9 included."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        # by the kernel, so that code without Python in between does not delay it; PR_SET_PDEATHSIG is 1
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if not parent.is_alive():
            os._exit(1)
    else:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _script_stays_here() -> Iterator[None]:
    """Processes that are started do not run the script of this one again, as multiprocessing makes them.

    They need nothing of it: functions of a script are sent as they are. And a script without `if __name__ ==
    "__main__"` would start workers in each of its workers, which multiprocessing refuses again and again.
    """
    script, stand_in = sys.modules["__main__"], ModuleType("__main__")  # which has no file

    def attribute(name: str) -> object:
        if name == "__file__":
            raise AttributeError(name)
        return getattr(script, name)

    vars(stand_in)["__getattr__"] = attribute
    sys.modules["__main__"] = stand_in
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextlib.contextmanager
def hearing_ctrl_c() -> Iterator[Callable[[], None]]:
    """What raises KeyboardInterrupt if Ctrl-C was pressed, for Python drops one that comes within a destructor or the
    callback of a weak reference, of which a cluster has many."""
    if threading.current_thread() is not threading.main_thread():  # only there can it be heard
        yield lambda: None
        return
    pressed = threading.Event()

    def heard(*_: object) -> None:
        pressed.set()
        raise KeyboardInterrupt

    def raise_if_pressed() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield raise_if_pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _children_ignore_ctrl_c() -> Iterator[None]:
    """Ctrl-C is for this process to tell; those that are started here would all complain."""
    if threading.current_thread() is not threading.main_thread():  # only there can it be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _result_or_mistake(function: Callable[[_Task], _Result], task: _Task) -> _Result | AfmolError:
    """A mistake of the user is a result: to try again would not mend it."""
    try:
        return function(task)
    except AfmolError as error:
        return error
