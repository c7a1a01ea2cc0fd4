"""Is this site able to take part? Everything that could stop it, each thing on a line with its remedy, under deadlines.

The report names folders and addresses, and is for the site's own screen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from client.deadlines import DeadlinePassed, within
from strategies.tls import TlsFiles


class State(StrEnum):
    """How a thing is: good, good enough for now, or a reason why the site cannot take part."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        remedy: what to do; empty where all is well.
        is_known: False for a thing that could not be looked at; what depends on it cannot be either.
    """

    name: str
    state: State
    found: str
    remedy: str = ""
    is_known: bool = True


@dataclass(frozen=True)
class SiteSetup:
    """What is examined. A site that has not joined yet lacks addresses and certificate; the rest is examined.

    Attributes:
        data: the site's data folder.
        state: folder that the site writes to: text space, logs, audit log.
        service: HOST:PORT of the coordinator's gRPC service. fleet: HOST:PORT where its SuperNode connects.
        tls: this site's certificate and key, and the consortium's authority.
        timeout_s: for each probe.
    """

    data: Path | None = None
    state: Path = Path("site")
    device: str = "cpu"
    service: str | None = None
    fleet: str | None = None
    tls: TlsFiles | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True)
class Probe:
    """A question to the site's setup.

    Attributes:
        names: of the findings that `ask` gives, in order.
        needs: names of earlier findings without whose success `ask` is of no use.
    """

    names: tuple[str, ...]
    ask: Callable[[SiteSetup], Sequence[Finding]]
    needs: Collection[str] = ()


@dataclass(frozen=True)
class Report:
    """Every finding, in the order in which things depend on each other."""

    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def is_able(self) -> bool:
        """True where no fault was found."""
        return all(finding.state is not State.FAULT for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"is_able": self.is_able, "findings": [asdict(finding) for finding in self.findings]}

    def to_text(self) -> str:
        """The report for a person; a remedy stands below its finding."""
        wide = max((len(finding.name) for finding in self.findings), default=0)
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.state:<8}{finding.name:<{wide}}  {finding.found}")
            lines += [f"{'':<{8 + wide}}  -> {finding.remedy}"] * bool(finding.remedy)
        counts = [sum(finding.state is state for finding in self.findings) for state in State]
        return "\n".join([*lines, f"{counts[2]} fault(s), {counts[1]} warning(s), {counts[0]} ok"])


def examine(setup: SiteSetup, probes: Iterable[Probe]) -> Report:
    """Ask every probe whose needs are met; none can hang, and none can end the examination."""
    findings: dict[str, Finding] = {}
    for probe in probes:
        unmet = [name for name in probe.needs if findings[name].state is State.FAULT or not findings[name].is_known]
        found = [not_checked(name, unmet[0]) for name in probe.names] if unmet else _asked(probe, setup)
        findings |= {finding.name: finding for finding in found}
    return Report(tuple(findings.values()))


def _asked(probe: Probe, setup: SiteSetup) -> Sequence[Finding]:
    first, *others = probe.names
    try:
        return within(setup.timeout_s, first, lambda: probe.ask(setup))
    except DeadlinePassed:
        found = f"no answer within {setup.timeout_s:g} s"
        fault = Finding(first, State.FAULT, found, "look for a network disk, firewall or service that hangs")
    except Exception as error:  # whatever a broken machine raises is a finding, not the end of the report
        found = f"{type(error).__name__}: {error}"
        fault = Finding(first, State.FAULT, found, "report this with the output of `dsm-site doctor --json`")
    return [fault, *(not_checked(name, first) for name in others)]


def not_checked(name: str, cause: str) -> Finding:
    """The finding about a thing that depends on another, which is not well."""
    return Finding(name, State.WARNING, "not checked", f"first see to: {cause}", is_known=False)
