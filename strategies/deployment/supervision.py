"""Who keeps programs running? A supervisor: starts them in order, starts anew what has ended, gives up with a reason.

A program that cannot run is started again with growing pauses, and five ends in a row without a minute of life between
them are the end: the programs are stopped and the last one's own words are shown.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strategies.deployment.errors import DeploymentError
from strategies.deployment.processes import POLL_S, Place, Program, launch, running_pid, stop

START_TIMEOUT_S = 180.0
SETTLED_S = 60.0  # a program that lived this long has not failed at its start
MOST_FAILURES = 5
LONGEST_PAUSE_S = 30.0
PAUSE_AT_START_S = 5.0
LOG_TAIL = 1500  # characters of a log that an error shows

Say = Callable[[str], None]


@dataclass
class Service:
    """A program under supervision.

    Attributes:
        is_ready: True once it does its work; is given what the program has logged since its start.
        explain: what its words mean, in ours; empty where they mean nothing to us.
        patience_s: how long what `explain` knows may last before it counts, because it can pass by itself.
    """

    program: Program
    is_ready: Callable[[str], bool] = lambda _: True
    explain: Callable[[str], str] = lambda _: ""
    patience_s: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    log_start: int = 0
    failures: int = 0
    failing_since: float = 0.0
    due: float = math.inf


class Supervisor:
    """Keeps services running until `stop`.

    Those that ran before it came, as after a supervisor was killed, are left as they are while they run.
    """

    def __init__(self, place: Place, services: Sequence[Service], say: Say) -> None:
        self.place, self.services, self._say = place, list(services), say

    def start(self) -> None:
        """Start what does not run, one after the other, each once the one before it is ready.

        Raises:
            DeploymentError: one does not start; those started here are stopped again.
        """
        try:
            for service in self.services:
                name = service.program.name
                if pid := running_pid(self.place, name):
                    self._say(f"{name} runs already, process {pid}")
                    continue
                self._launch(service)
                self._await(service)
                self._say(f"{name} is up")
        except BaseException:
            self.stop()
            raise

    def tend(self) -> None:
        """Look after the services once: start anew those that have ended and whose pause is over.

        Raises:
            DeploymentError: one has ended five times in a row.
        """
        now = time.monotonic()
        for service in self.services:
            if service.process is None:
                self._take_over(service)
                continue
            if service.process.poll() is None:
                continue
            if now >= service.due:
                self._launch(service)
            elif service.due == math.inf:
                if now - service.started > SETTLED_S:
                    service.failures = 0
                if not service.failures:
                    service.failing_since = now
                service.failures += 1
                if service.failures >= MOST_FAILURES and now - service.failing_since >= service.patience_s:
                    raise DeploymentError(self._ended(service, f"has ended {service.failures} times in a row"))
                pause_s = min(LONGEST_PAUSE_S, 2.0 ** (service.failures - 1))
                service.due = now + pause_s
                self._say(self._ended(service, "has ended"))
                self._say(f"{service.program.name} starts again in {pause_s:g} s")

    def stop(self) -> None:
        """End the services that were started here, the last one first."""
        started = [service for service in reversed(self.services) if service.process is not None]
        stop(self.place, [service.program.name for service in started])
        for service in started:
            service.process = None

    def _launch(self, service: Service) -> None:
        log = self.place.log(service.program.name)
        service.log_start = log.stat().st_size if log.exists() else 0
        service.process = launch(self.place, service.program)
        service.started, service.due = time.monotonic(), math.inf

    def _take_over(self, service: Service) -> None:
        """Start anew what ran before this supervisor came, once it has ended: nobody else does."""
        name = service.program.name
        if running_pid(self.place, name) is None:
            self._say(f"{name} has ended, which ran already; it is started anew")
            self._launch(service)

    def _await(self, service: Service) -> None:
        began, told = time.monotonic(), False
        while (waited_s := time.monotonic() - began) < START_TIMEOUT_S:
            if service.process is not None and (code := service.process.poll()) is not None:
                if waited_s >= service.patience_s or not service.explain(self._words(service)):
                    raise DeploymentError(self._ended(service, f"ended with code {code} at its start"))
                if not told:
                    told = True
                    self._say(self._ended(service, f"is tried again for {service.patience_s:g} s"))
                time.sleep(PAUSE_AT_START_S)
                self._launch(service)
            if service.is_ready(self._words(service)):
                return
            time.sleep(POLL_S)
        raise DeploymentError(self._ended(service, f"is not ready after {START_TIMEOUT_S:g} s"))

    def _ended(self, service: Service, what: str) -> str:
        words, log = self._words(service), self.place.log(service.program.name)
        if meaning := service.explain(words):
            return f"{service.program.name} {what}: {meaning}"
        return f"{service.program.name} {what}; the end of {log}:\n{words.strip()[-LOG_TAIL:] or '(nothing)'}"

    def _words(self, service: Service) -> str:
        with self.place.log(service.program.name).open("rb") as log:
            log.seek(service.log_start)
            return log.read().decode(errors="replace")
