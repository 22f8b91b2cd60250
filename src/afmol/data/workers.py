"""Many tasks on many processes: on this machine or on a cluster, by Dask.

A task is a function of its arguments alone that says where its result lies, so that it does not matter who does it, or
how often: a worker that dies costs nothing but its time.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from ..errors import AfmolError, ConfigError

RETRIES = 3
"""How often a task that failed, or whose worker died, is given to another."""
AHEAD = 4
"""Tasks that wait at each worker: the scheduler's memory is bounded, and nobody is idle."""
PATIENCE = 20.0
"""How long a scheduler may take to answer, s."""
QUEUE = 3600.0
"""How long the first worker of a cluster may take to come, s: jobs wait in queues."""

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


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
    import dask
    from distributed import CancelledError, Client, KilledWorker, as_completed
    from distributed.comm import CommClosedError

    # A port of its own, so that two commands at once do not get in each other's way; no words about workers that are
    # stopped, on purpose or to be started again.
    local = {"n_workers": workers or os.cpu_count(), "threads_per_worker": 1, "dashboard_address": ":0"}
    local["silence_logs"] = logging.CRITICAL
    limits = {"distributed.scheduler.allowed-failures": RETRIES, "distributed.comm.timeouts.connect": PATIENCE}
    # Dask keeps the last 1000 messages to each worker for its own developers, and with them the tasks.
    limits["distributed.admin.low-level-log-length"] = 2
    with dask.config.set(limits):
        try:
            with _deaf():
                client = Client(scheduler, set_as_default=False) if scheduler else Client(set_as_default=False, **local)
        except (OSError, ValueError) as error:
            raise ConfigError(f"No Dask scheduler answers at {scheduler}; check the address.") from error
        with client:
            waiting = iter(tasks)
            running = as_completed(loop=client.loop)

            def fill() -> None:
                """Give AHEAD tasks to each worker that there is by now; a cluster may start some when it sees tasks."""
                room = AHEAD * max(1, len(client.scheduler_info(n_workers=-1)["workers"])) - running.count()
                more = islice(waiting, max(0, room))
                running.update(client.submit(_tried, function, t, retries=RETRIES, pure=False) for t in more)

            try:
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
            except KilledWorker as error:
                text = f"{RETRIES + 1} workers died over the same task; is there memory enough for so many?"
                raise ConfigError(text) from error
            except TimeoutError as error:
                raise ConfigError(f"The Dask scheduler at {scheduler} has no workers; start some.") from error
            except (CommClosedError, CancelledError) as error:
                raise ConfigError("The Dask scheduler is gone; start it, and the same command goes on.") from error


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here do not hear Ctrl-C, which is for this one to tell: they would all complain."""
    if threading.current_thread() is not threading.main_thread():  # only there can it be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _tried(function: Callable[[_Task], _Result], task: _Task) -> _Result | AfmolError:
    """A mistake of the user is a result: to try again would not mend it."""
    try:
        return function(task)
    except AfmolError as error:
        return error
