"""How is one computation timed beside others? In a process of its own, kept alive, that works only when asked."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")
_STOP_S = 20.0  # longest wait for a process that was told to end


class WorkerFault(RuntimeError):
    """A worker that failed, ended or did not answer in time; the message says which and what it said."""


class Timing(NamedTuple):
    """How long one computation took, in ms: by the clock, and of all processor cores together."""

    wall_ms: float
    cpu_ms: float


def clocked(function: Callable[[], T]) -> tuple[T, Timing]:
    """What a function returns, and how long it took; work that is still queued on a CUDA device counts."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result, Timing((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)


def timed(function: Callable[[], object], least_s: float = 0.2) -> Timing:
    """Median over the calls of one turn: a first one that is not counted, then as many as fill `least_s`.

    Others' work has emptied the caches when a turn begins.
    """
    function()
    timings = [clocked(function)[1]]
    while sum(timing.wall_ms for timing in timings) < least_s * 1e3:
        timings.append(clocked(function)[1])
    return Timing(*(statistics.median(values) for values in zip(*timings, strict=True)))


@dataclass
class Worker:
    """A process that holds one job and calls its methods on request, one at a time.

    Attributes:
        name: as the worker is called in faults.
        deadline_s: longest wait for an answer.
    """

    name: str
    deadline_s: float
    _process: Any
    _connection: Connection

    @classmethod
    def start(
        cls, name: str, make: Callable[..., Any], *words: Any, threads: int = 1, deadline_s: float = 900
    ) -> Worker:
        """A new process that makes its job by `make(*words)`, both picklable, with so many torch threads."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, threads, make, words), daemon=True)
        process.start()
        theirs.close()
        return cls(name, deadline_s, process, ours)

    def ask(self, method: str, *words: Any) -> Any:
        """What the job's method returns; raises as `answer` does."""
        self.send(method, *words)
        return self.answer(method)

    def send(self, method: str, *words: Any) -> None:
        """Ask without waiting; one `answer` is to follow."""
        try:
            self._connection.send((method, words))
        except OSError as error:
            raise self._ended() from error

    def answer(self, method: str) -> Any:
        """What the method that was sent returns.

        Raises:
            WorkerFault: it raised, the process ended, or no answer came within `deadline_s`.
        """
        try:
            if not self._connection.poll(self.deadline_s):
                self._process.kill()
                raise WorkerFault(f"{self.name}: no answer to {method} within {self.deadline_s:g} s")
            succeeded, result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if not succeeded:
            raise WorkerFault(f"{self.name}: {result}")
        return result

    def _ended(self) -> WorkerFault:
        self._process.join(_STOP_S)
        return WorkerFault(f"{self.name}: its process ended (exit code {self._process.exitcode})")

    def stop(self) -> None:
        """End the process, by force where it does not listen."""
        self._connection.close()
        self._process.join(_STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _serve(connection: Connection, threads: int, make: Callable[..., Any], words: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    job = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            job = make(*words) if job is None else job
            connection.send((True, getattr(job, method)(*arguments)))
        except Exception as error:  # whatever a peer raises is that peer's result, not the benchmark's end
            connection.send((False, f"{type(error).__name__}: {error}"))
