"""One process that does one job after another, and may be stopped at any time: by a limit, or by whoever asked.

    Worker.do(job, request, payload) -> "say", sentence, ... then "done", answer, bytes or "mistake", sentence

It keeps the model from job to job. What kills it, costs the job alone: the next one gets a new process.
"""

import contextlib
import multiprocessing
import resource
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from ..errors import AfmolError, out_of_memory

MEMORY = 10 * 2**30
"""Address space of the process, bytes; torch alone takes 4 GiB of it."""
SECONDS = 300.0
"""Time for a job."""
REFINING = 6.0
"""How many times that for one that is to "refine"."""
TICK = 0.2
"""How often the end of a process is looked for, s."""
Said = tuple[Any, ...]


class Worker:
    """See the module's text. For one thread at a time, but `stop`, which any may call."""

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self.memory, self.seconds = memory, seconds
        self.process: multiprocessing.process.BaseProcess | None = None
        self.pipe: Connection | None = None
        self.changing = threading.Lock()

    def do(self, job: str, request: dict[str, Any], payload: bytes) -> Iterator[Said]:
        """What the process says of a job, as it comes; the last is "done" or "mistake"."""
        process, pipe = self._started()
        limit = left = self.seconds * (REFINING if request.get("refine") else 1.0)
        try:
            pipe.send((job, request, payload))
            while True:
                if pipe.poll(TICK):
                    said = pipe.recv()
                    yield said
                    if said[0] != "say":
                        return
                elif not process.is_alive():
                    raise EOFError
                else:
                    left -= TICK
                if left <= 0:
                    self.stop()
                    yield "mistake", f"This took more than {limit:g} s and was stopped; try a smaller stack."
                    return
        except (EOFError, OSError):
            self.stop()
            yield "mistake", "The work was stopped: it took too much memory, or somebody stopped it. Try again."

    def stop(self) -> None:
        """End the process, and with it the job; nothing happens where there is none."""
        with self.changing:
            process, self.process = self.process, None
            if process is not None:
                process.kill()
                process.join()

    def _started(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        with self.changing:
            if self.process is None or not self.process.is_alive() or self.pipe is None:
                context = multiprocessing.get_context("spawn")
                self.pipe, theirs = context.Pipe()
                self.process = context.Process(target=_work, args=(theirs, self.memory), daemon=True)
                self.process.start()
                theirs.close()
            return self.process, self.pipe


def _work(pipe: Connection, memory: int) -> None:
    """The process: jobs until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    with contextlib.suppress(ValueError, OSError):  # a system without the limit, or with a lower one
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(EOFError, OSError):
        from .jobs import JOBS

        while True:
            job, request, payload = pipe.recv()
            try:
                answer, content = JOBS[job](request, payload, lambda text: pipe.send(("say", text)))
                pipe.send(("done", answer, content))
            except AfmolError as error:
                pipe.send(("mistake", str(error)))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                pipe.send(("mistake", f"The page and afmol do not understand each other ({error!r:.100}); reload it."))
            except Exception as error:
                too_much = "There is not memory enough for this; try a smaller stack."
                ours = f"This is our mistake, please report it ({type(error).__name__}: {error!s:.100})."
                pipe.send(("mistake", too_much if out_of_memory(error) else ours))
