"""What leaves the audited site in a round? The product's own training of a round, private or open, on a small model.

Nothing of DP-SGD is written here: sampling, clipping, noise, accountant and ledger are those of `client.privacy`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from client.ledger import Ledger
from client.privacy import PatientAccountant, train_private_round
from client.trainer import Arrays, StepSeed, Trainer
from dsm_core.classes import describe_class
from dsm_core.config import ModelConfig, PrivacyConfig, TextConfig, TrainConfig
from dsm_core.model import build_model
from dsm_core.objectives import OrgansObjective
from dsm_core.stages import ORGANS
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace
from simulations.privacy_audit.planted import CLASSES, SITE, PlantedSite
from strategies.messages import TrainOrder

# Small, so that thousands of rounds take minutes; every kind of layer of the large ones is in it.
MODEL = ModelConfig(
    name="audited", widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8
)


@dataclass(frozen=True)
class Schedule:
    """How a run trains.

    Attributes:
        rate: learning rate of every round. The server names it, so an attacking one may choose it.
        expected: patients of a step on average; without privacy, patches of a step.
    """

    rounds: int
    local_steps: int
    rate: float
    expected: int

    def order(self, round: int, seed: int) -> TrainOrder:
        """What the server asks for in one round: organs, the stage that has a query for every canary's labels."""
        return TrainOrder(
            round, self.rounds, ORGANS, round, self.rounds, self.rate, self.local_steps, seed, share_moments=True
        )


@dataclass
class AuditedSite:
    """A site that trains as hospitals do.

    Attributes:
        privacy: mode none trains openly.
        seed: of everything random, noise included: the one thing that differs from a hospital, whose key is secret.
    """

    planted: PlantedSite
    privacy: PrivacyConfig
    seed: int
    model: ModelConfig = field(default_factory=lambda: MODEL)
    text: TextSpace = field(init=False)
    objective: OrgansObjective = field(init=False)
    trainer: Trainer = field(init=False)
    start: Arrays = field(init=False)

    def __post_init__(self) -> None:
        self.text = build_text_space([describe_class(name) for name in CLASSES], TextConfig(encoder="offline"))
        torch.manual_seed(self.seed)
        model = build_model(self.model, self.text)
        model.class_rows.evidence[:] = float(len(self.planted.images))
        # Without dropped rows and text noise a patient's gradient is what the attacker expects it to be.
        config = TrainConfig(text_only=0.0, text_noise=0.0, weight_decay=0.0)
        self.objective = OrgansObjective(model, self.text, self.planted, config)
        self.trainer = Trainer(model, self.objective, config)
        self.start = self.trainer.arrays()

    def run(self, schedule: Schedule, number: int) -> Iterator[tuple[Arrays, dict[str, float]]]:
        """Tensors with moments, and metrics, that leave after each round of one run from the start; `number` tells
        runs apart.
        """
        trainer, privacy = self.trainer, self.privacy
        trainer.load(self.start)
        trainer.load_moments({}, steps=0)
        trainer.config.batch = schedule.expected
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder) / "ledger.jsonl", SITE, PatientAccountant(privacy.accountant))
            if privacy.mode != "none":
                ledger.create(privacy.epsilon, privacy.delta or 0.0)
            for round in range(1, schedule.rounds + 1):
                order = schedule.order(round, self.seed)
                metrics: dict[str, float] = {}
                if privacy.mode == "none":
                    seed = StepSeed(self.seed, f"{SITE} {number}", round)
                    metrics = trainer.steps(schedule.local_steps, schedule.rate, seed)
                else:
                    key = hashlib.sha256(f"{self.seed} {privacy.epsilon} {number} {round}".encode()).digest()
                    train_private_round(
                        trainer, self.objective, order, schedule.rate, schedule.expected, privacy, ledger, key
                    )
                yield trainer.arrays() | trainer.moments(), metrics
