"""Who takes part in a step? Poisson sampling of patients, and the patches that each of them shows."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.privacy.faults import PrivacyError
from client.privacy.noise import SecretStream
from dsm_core.data import Datalist
from dsm_core.objectives import SiteObjective

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patients:
    """The patients of a site and their cases.

    Attributes:
        cases: indices into the datalist's cases, one tuple a patient.
        expected: patients that take part in a step on average.
    """

    cases: tuple[tuple[int, ...], ...]
    expected: int

    @classmethod
    def of(cls, datalist: Datalist, expected: int) -> Patients:
        """The patients behind the annotated cases: those of equal `patient`, else one a case.

        Raises:
            PrivacyError: more patients are wanted in a step than there are; how many there are stays in the site's log.
        """
        held: dict[tuple[str, str], list[int]] = {}
        for index, case in enumerate(datalist.cases):
            if case.annotated:
                key = ("case", case.name) if case.patient is None else ("patient", case.patient)
                held.setdefault(key, []).append(index)
        if expected > len(held):
            log.error("train.batch=%d patients a step, and %s has %d", expected, datalist.site, len(held))
            raise PrivacyError(f"train.batch={expected} patients a step, and this site has fewer; lower train.batch")
        return cls(tuple(map(tuple, held.values())), expected)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def sampling_rate(self) -> float:
        """Probability that a patient takes part in a step."""
        return self.expected / len(self)

    def draw(self, stream: SecretStream) -> np.ndarray:
        """Patients of one step, each by a draw of their own; there may be none."""
        return np.flatnonzero(stream.uniforms(len(self)) < self.sampling_rate)


def sample_patches(
    patients: Patients, chosen: Iterable[int], objective: SiteObjective, generator: np.random.Generator, patches: int
) -> Any:
    """`patches` patches of each chosen patient, side by side; each of a case of theirs drawn evenly."""
    parts = []
    for patient in chosen:
        cases = patients.cases[patient]
        for _ in range(patches):
            parts.append(objective.sample_case(cases[int(generator.integers(len(cases)))], generator, 1))
    return objective.join(parts)
