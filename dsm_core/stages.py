"""Which stage does a round belong to, and what moves in it? Organs, then healthy tissue, then tumours.

A stage is a row of rounds in which one part of the model trains on what the stages before it have left; how, is said by
`dsm_core.objectives`. Nothing is imported here that takes seconds: messages name stages before PyTorch is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dsm_core.classes import ClassKind
from dsm_core.config import Config

ORGANS, PRIOR, TUMORS = STAGES = ("organs", "prior", "tumors")
Held = TypeVar("Held")


@dataclass(frozen=True)
class Moving:
    """The part of the model that trains. Everything else is frozen: it stays bit for bit, and no site sends it back.

    Attributes:
        prefixes: how the names of its tensors begin.
        kinds: of the classes whose rows move; a site must have labelled one of them to teach this part. Without any,
            every scan teaches it.
    """

    prefixes: tuple[str, ...]
    kinds: tuple[ClassKind, ...]

    def part(self, tensors: Mapping[str, Held]) -> dict[str, Held]:
        """The tensors that move, by name; a moment moves with its tensor."""
        return {key: held for key, held in tensors.items() if key.startswith(self.prefixes)}

    def is_taught_by(self, labelled: Collection[ClassKind]) -> bool:
        """Whether a site that has labelled classes of these kinds has something to teach."""
        return not self.kinds or not set(self.kinds).isdisjoint(labelled)


EVERYTHING = Moving(("",), tuple(ClassKind))
# The evidence of the class rows is declared and never trained, so it is not among them.
MOVING = {
    ORGANS: Moving(
        (
            "encoder.",
            "pixel_decoder.",
            "class_rows.residual.",
            "class_rows.bias.",
            "text_to_query.",
            "void.",
            "grouping.",
            "organ_head.",
            "to_text.",
        ),
        (ClassKind.ORGAN,),
    ),
    PRIOR: Moving(("prior.",), ()),
    TUMORS: Moving(("tumors.", "class_rows.residual."), (ClassKind.LESION,)),
}


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        before: rounds of the run before its first.
        rounds: its own, at least 1.
        lr: base learning rate; warm-up and decay run over the rounds of the stage.
    """

    name: str
    before: int
    rounds: int
    lr: float

    def round_of(self, round: int) -> int:
        """A round of the run, counted from the stage's first, which is 1."""
        return round - self.before


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages of a run in their order; one of 0 rounds is left out."""
    planned = (
        (ORGANS, config.rounds, config.train.lr),
        (PRIOR, config.prior.rounds, config.prior.lr),
        (TUMORS, config.tumors.rounds, config.tumors.lr),
    )
    factor = 1.0 if config.privacy.mode == "none" else config.privacy.lr_factor
    stages: list[Stage] = []
    for name, rounds, lr in planned:
        if rounds:
            stages.append(Stage(name, sum(stage.rounds for stage in stages), rounds, factor * lr))
    return tuple(stages)


def total_rounds(config: Config) -> int:
    """Rounds of all stages together."""
    return sum(stage.rounds for stage in stages_of(config))


def stage_of(config: Config, round: int) -> Stage:
    """The stage of a round of the run, which counts from 1.

    Raises:
        ValueError: the run has no such round.
    """
    for stage in stages_of(config):
        if 1 <= stage.round_of(round) <= stage.rounds:
            return stage
    raise ValueError(f"round {round} of a run of {total_rounds(config)} rounds")
