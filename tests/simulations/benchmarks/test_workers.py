"""Does a worker answer, and does it say so when it cannot?"""

import os
import time

import pytest

from simulations.benchmarks.workers import Worker, WorkerFault, timed


def test_worker_answers_and_names_what_went_wrong():
    with (
        Worker.start("a list", list, (1, 2, 2)) as worker,
        Worker.start("a leaver", os._exit, 3) as leaver,
        Worker.start("a sleeper", time.sleep, 60, deadline_s=0.5) as sleeper,
    ):
        assert worker.ask("count", 2) == 2
        with pytest.raises(WorkerFault, match="a list: ValueError: 9 is not in list"):
            worker.ask("index", 9)
        assert worker.ask("count", 1) == 1, "a failed request must not end the worker"
        with pytest.raises(WorkerFault, match=r"a leaver: its process ended \(exit code 3\)"):
            leaver.ask("anything")
        with pytest.raises(WorkerFault, match=r"a sleeper: no answer to anything within 0\.5 s"):
            sleeper.ask("anything")


def test_a_turn_does_not_count_its_first_call():
    waits = iter([0.2, *[0.01] * 50])
    timing = timed(lambda: time.sleep(next(waits)), least_s=0.05)
    assert 9 < timing.wall_ms < 100
    assert timing.cpu_ms < timing.wall_ms
