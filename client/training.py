"""What a site keeps between the rounds of a run: its volumes, its model and its optimiser.

PyTorch and MONAI are imported by the first message that trains: a SuperNode starts a process for every message, and
importing them costs several seconds of a core, which enrolment and text space need not pay.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.budget import Budget
from client.ledger import LedgerFault
from dsm_core.config import Config, config_hash
from dsm_core.data import Datalist, read_datalist, split_held_out
from dsm_core.stages import MOVING
from strategies.messages import LOSS, NUM_CASES, SECONDS, MessageFault, TrainOrder

if TYPE_CHECKING:
    from client.trainer import Arrays, Trainer
    from dsm_core.data import Volume
    from dsm_core.objectives import FrozenMaps, SiteObjective
    from dsm_core.text_space import TextSpace

_KEPT_SESSIONS = 64
_sessions: OrderedDict[tuple[str, str, str, str], SiteSession] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class TrainResult:
    """What a site's training pass gives: the tensors that its stage trains, and metrics for the server."""

    arrays: Arrays
    metrics: dict[str, Any]


@dataclass
class SiteSession:
    """A site in training. What the stages share is its scans, its model, and what frozen parts make of each scan.

    Attributes:
        stage: that of the trainer; empty before the first order.
    """

    datalist: Datalist
    maps: FrozenMaps
    config: Config
    stage: str = ""
    trainer: Trainer = field(init=False)
    objective: SiteObjective = field(init=False)

    def begin(self, stage: str) -> None:
        """Train this stage from now on; an optimiser of another stage is given up, with its moments.

        Raises:
            MessageFault: the site has labelled nothing that the stage trains.
        """
        from client.trainer import Trainer
        from dsm_core.objectives import make_objective

        if stage == self.stage:
            return
        objective = make_objective(stage, self.maps, self.datalist, self.config)
        if objective is None:
            raise MessageFault(f"this site has labelled nothing that the stage {stage!r} trains")
        self.objective, self.trainer = objective, Trainer(self.maps.model, objective, self.config.train)
        self.stage = stage

    def optimizer_arrays(self) -> Arrays:
        """The optimiser's moments, to be kept at the site between rounds."""
        return self.trainer.moments()

    def load_optimizer_arrays(self, moments: Arrays, steps: int = 0) -> None:
        """Go on with these moments after so many optimiser steps; empty ones begin anew."""
        self.trainer.load_moments(moments, steps)


def site_session(site_dir: Path | str, config: Config, text: TextSpace, device: str = "cpu") -> SiteSession:
    """The session of a site's folder, made once per process for a text space and a configuration.

    Args:
        device: of the site's own choice, see `dsm_core.device`.

    Raises:
        DatalistError: the folder has faults.
        DeviceError: the device is not there.
    """
    key = (str(site_dir), text.hash, config_hash(config), device)
    with _lock:
        if key not in _sessions:
            earlier = [session for other, session in _sessions.items() if (other[0], *other[2:]) == (key[0], *key[2:])]
            _sessions[key] = _open_session(Path(site_dir), config, text, device, earlier[-1] if earlier else None)
            while len(_sessions) > _KEPT_SESSIONS:
                _sessions.popitem(last=False)
        _sessions.move_to_end(key)
        return _sessions[key]


def training_cases(site_dir: Path | str, held_out: float) -> Datalist:
    """The cases that a site trains on and counts as its evidence: all of its folder, less the share held out."""
    datalist = read_datalist(site_dir)
    return split_held_out(datalist, held_out, seed=0)[0] if held_out else datalist


def open_datalist(site_dir: Path | str, config: Config) -> Datalist:
    """The cases that a site trains on in this run."""
    return training_cases(site_dir, config.data.held_out)


def _open_session(
    site_dir: Path, config: Config, text: TextSpace, device: str, earlier: SiteSession | None
) -> SiteSession:
    """A session; the volumes of an `earlier` one with another text space serve on."""
    from dsm_core.data import SiteVolumes
    from dsm_core.device import find_device
    from dsm_core.model import build_model
    from dsm_core.objectives import FrozenMaps

    place = find_device(device)
    if earlier is None:
        datalist = open_datalist(site_dir, config)
        volumes: Sequence[Volume] = SiteVolumes(datalist, config.data)
    else:
        datalist, volumes = earlier.datalist, earlier.maps.volumes
    maps = FrozenMaps(build_model(config.model, text).to(place), text, volumes, config.data)
    return SiteSession(datalist, maps, config)


def train_round(session: SiteSession, arrays: Arrays, order: TrainOrder, budget: Budget) -> TrainResult:
    """Train on from the global tensors for one round.

    Args:
        session: the site, which has begun the stage of the order. arrays: the global model's tensors.
        order: what the server asks.
        budget: what the site may spend of its patients' privacy, if it keeps a ledger of that.

    Raises:
        LedgerFault: the site's ledger does not allow the round.
        PrivacyError: private training cannot keep its promise here.
    """
    from client.trainer import StepSeed, learning_rate

    started = time.perf_counter()
    trainer = session.trainer
    trainer.load(arrays)
    if order.share_moments:
        trainer.load_moments(arrays, steps=(order.stage_round - 1) * order.local_steps)
    rate = learning_rate(order.lr, trainer.config.warmup, order.stage_round, order.stage_rounds)
    metrics: dict[str, Any] = {}
    if session.config.privacy.mode == "dp_sgd":
        _train_privately(session, order, rate, budget)
    elif budget.wants_privacy:
        raise LedgerFault(
            f"{budget.ledger} is this site's, so it trains privately only; the server asked for mode none"
        )
    else:
        seed = StepSeed(order.seed, session.datalist.site, order.round)
        losses = trainer.steps(order.local_steps, rate, seed)
        metrics = {
            NUM_CASES: len(session.datalist.annotated_cases),
            LOSS: losses["loss"],
            SECONDS: time.perf_counter() - started,
        }
    trained = MOVING[order.stage].part(trainer.arrays())
    return TrainResult(trained | (trainer.moments() if order.share_moments else {}), metrics)


def _train_privately(session: SiteSession, order: TrainOrder, rate: float, budget: Budget) -> None:
    from client.privacy import PatientAccountant, train_private_round  # Opacus takes seconds to import

    ledger = budget.open(session.datalist.site, PatientAccountant())
    # In every stage alike: one sampling rate is what the noise of the whole run is found from.
    expected, privacy = session.config.train.batch, session.config.privacy
    train_private_round(session.trainer, session.objective, order, rate, expected, privacy, ledger)
