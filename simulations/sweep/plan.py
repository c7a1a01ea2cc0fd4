"""Which runs make a sweep? Words as Hydra's multirun has them (`privacy.epsilon=1,2,4 seed=0,1`), and presets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsm_core.config import Config, ConfigError
from dsm_core.config_words import compose_config

EPSILON = "privacy.epsilon"
PUBLIC = "public."  # words of the run that trains on public data first
CHECKPOINT = f"{PUBLIC}checkpoint="  # names one instead, also in the place of a preset's
ALONE, OPEN = 0.0, math.inf  # epsilon of the start alone, and of training without privacy
_OWN = ("name", "out", "dry_run")  # of the sweep as a whole
_FOLLOWS = {
    "privacy.mode": "it follows from privacy.epsilon: inf is training without privacy, 0 the start alone",
    "resume": "the same command again goes on with a sweep",
    "start": "public.KEY=VALUE words train one, or public.checkpoint=FOLDER names one",
}

# Stage organs alone. 64 patients a site; public data are other patients, scanned without contrast agent.
# All patients in every step, and few steps: noise shrinks with the patients of a step and grows with steps.
PRESETS: Mapping[str, tuple[str, ...]] = {
    "full": (
        "privacy.epsilon=0,1,2,4,8,inf", "seed=0,1,2", "phantom.cases=64", "phantom.held_out=8",
        "data.spacing_mm=[8,8,8]", "data.patch=[32,32,32]", "model.widths=[8,16,24,32]", "model.mamba_blocks=[0,0,0,1]",
        "model.decoder_width=24", "model.query_width=32", "model.mask_width=16",
        "rounds=20", "prior.rounds=0", "tumors.rounds=0", "train.local_steps=2", "train.batch=64",
        "privacy.patches_per_patient=1", "privacy.trained=queries", "privacy.clip_norm=0.02", "privacy.lr_factor=10",
        "public.seed=1000", "public.phantom.cases=32", "public.phantom.held_out=1", "public.phantom.contrast=native",
        "public.rounds=60", "public.train.local_steps=5", "public.train.batch=4",
    ),
    "quick": (
        "privacy.epsilon=0,1,8,inf", "seed=0", "sites=2", "phantom.cases=8", "phantom.held_out=2",
        "data.spacing_mm=[8,8,8]", "data.patch=[32,32,32]", "model.widths=[8,16,24,32]", "model.mamba_blocks=[0,0,0,1]",
        "model.decoder_width=24", "model.query_width=32", "model.mask_width=16",
        "rounds=10", "prior.rounds=0", "tumors.rounds=0", "train.local_steps=4", "train.batch=4",
        "privacy.patches_per_patient=1", "privacy.trained=adapters",
        "public.seed=1000", "public.phantom.cases=8", "public.phantom.held_out=1", "public.phantom.contrast=native",
        "public.rounds=40",
    ),
}  # fmt: skip
_PRIVATE = ("sites_dir", "eval_dir", "data.held_out")  # where the private patients are; never taken over as public
ROUNDS = ("rounds", "prior.rounds", "tumors.rounds")  # of the three stages
_EVERY_RUN = ("compare=none", "overlays=0")  # unless asked for otherwise


class SweepError(ConfigError):
    """A sweep that cannot be run as asked; the message says what was found and what is wanted."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: of its run folder.
        epsilon: claimed; ALONE and OPEN are the two without private training.
        swept: value of every other swept key, as it was typed.
        words: for dsm-simulate, without name, out and start.
    """

    name: str
    epsilon: float
    swept: Mapping[str, str]
    words: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Runs of a kind take about as long as each other."""
        return {ALONE: "start alone", OPEN: "not private"}.get(self.epsilon, "private")


@dataclass(frozen=True)
class Plan:
    """A sweep before it is run.

    Attributes:
        name: of the sweep's folder; None: the time of day.
        public: words of the run on public data, () for none.
        checkpoint: folder of a public checkpoint instead.
        fixed: words that all runs share, by which a sweep is known again.
    """

    name: str | None
    out: str
    dry_run: bool
    points: tuple[Point, ...]
    public: tuple[str, ...]
    checkpoint: str | None
    fixed: tuple[str, ...]

    @property
    def has_lesions(self) -> bool:
        """Whether a run or its start learns lesions; where none does, their Dice says nothing."""
        trained = [*(point.words for point in self.points), *([self.public] if self.public else [])]
        return self.checkpoint is not None or any(composed(words).tumors.rounds for words in trained)


def plan_sweep(words: Sequence[str]) -> Plan:
    """The runs that the words of a command line ask for; of a word said twice the last counts.

    Raises:
        SweepError: words that are no overrides, no sweep or not for a sweep; settings that cannot be, all at once.
    """
    kept = _last_of_each(_with_preset(words))
    own = {key: kept.pop(key) for key in _OWN if key in kept}
    public = {key: kept.pop(key) for key in list(kept) if key.startswith(PUBLIC)}
    if wrong := [f"{key}: {why}" for key, why in _FOLLOWS.items() if key in kept]:
        raise SweepError("not for a sweep: " + "; ".join(wrong))
    kept.setdefault(EPSILON, f"{EPSILON}=inf")
    for word in _EVERY_RUN:
        kept.setdefault(_key(word), word)
    runs, swept = _combinations(list(kept.values()), [*public.values(), *own.values()])
    checkpoint = public.pop(f"{PUBLIC}checkpoint", None)
    if checkpoint and public:
        raise SweepError(f"{PUBLIC}checkpoint names a start and {', '.join(public)} would train one; leave one of them")
    fixed = {key: word for key, word in kept.items() if key not in swept and key != EPSILON}
    points = _points(runs, swept, has_start=bool(public or checkpoint))
    public_words = {k: word for k, word in fixed.items() if k not in _PRIVATE and not k.startswith("privacy.")}
    public_words |= {key.removeprefix(PUBLIC): word.removeprefix(PUBLIC) for key, word in public.items()}
    _check([*((p.name, p.words) for p in points), *([("public", tuple(public_words.values()))] if public else [])])
    if public:
        _refuse_private_patients(compose_config(list(public_words.values())), points)
    settings: Config = compose_config([word for key, word in own.items() if key != "name"])
    return Plan(
        own["name"].partition("=")[2] if "name" in own else None,
        settings.out,
        settings.dry_run,
        points,
        tuple(public_words.values()) if public else (),
        checkpoint.partition("=")[2] if checkpoint else None,
        tuple(sorted([*fixed.values(), *public.values(), *([checkpoint] if checkpoint else [])])),
    )


def _combinations(words: Sequence[str], single: Sequence[str]) -> tuple[list[list[str]], set[str]]:
    """Words of each run as Hydra's own sweeper makes them, and the keys with several values.

    Args:
        single: further words, which may have one value only.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides([*words, *single])
        if several := [o.key_or_group for o in parsed[len(words) :] if o.is_sweep_override()]:
            raise SweepError(f"{', '.join(several)}: one value is wanted, a sweep has one name and one public start")
        (runs,) = BasicSweeper.split_arguments(parsed[: len(words)], max_batch_size=None)
    except OverrideParseException as error:
        raise SweepError(f"{error.override} is no override: {f'{error}'.splitlines()[0]}") from error
    except HydraException as error:
        raise SweepError(f"{error}") from error
    return runs, {override.key_or_group for override in parsed if override.is_sweep_override()}


def _refuse_private_patients(public: Config, points: Sequence[Point]) -> None:
    """Public data are other patients: another seed where both are generated, another folder where neither is."""
    for point in points:
        private = composed(point.words)
        if public.sites_dir is None and private.sites_dir is None and public.seed == private.seed:
            raise SweepError(
                f"public.seed={public.seed} generates the very patients of {point.name}; public data must be others, "
                f"set another public.seed"
            )
        if (
            public.sites_dir
            and private.sites_dir
            and Path(public.sites_dir).resolve() == Path(private.sites_dir).resolve()
        ):
            raise SweepError(
                f"public.sites_dir={public.sites_dir} is what {point.name} trains privately on; name another"
            )


def composed(words: Sequence[str]) -> Config:
    """The configuration of a run; one of the start alone counts no rounds, which only a start allows."""
    return compose_config([word for word in words if word != "rounds=0"])


def _with_preset(words: Sequence[str]) -> list[str]:
    presets = [word for word in words if "=" not in word]
    if unknown := [word for word in presets if word not in PRESETS]:
        raise SweepError(f"{', '.join(unknown)}: neither KEY=VALUE nor a preset; presets are {', '.join(PRESETS)}")
    if len(presets) > 1:
        raise SweepError(f"one preset is wanted, found {' and '.join(presets)}")
    own = [word for word in words if "=" in word]
    names_start = any(word.startswith(CHECKPOINT) for word in own)
    preset = PRESETS[presets[0]] if presets else ()
    return [*(word for word in preset if not (names_start and word.startswith(PUBLIC))), *own]


def _last_of_each(words: Sequence[str]) -> dict[str, str]:
    return {_key(word): word for word in words}


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _points(runs: Sequence[Sequence[str]], swept: set[str], has_start: bool) -> tuple[Point, ...]:
    """Runs that differ in privacy only are one run where there is none."""
    points: dict[str, Point] = {}
    for run in runs:
        of_run = _last_of_each(run)
        text = of_run.pop(EPSILON).partition("=")[2]
        try:
            epsilon = float(text)
        except ValueError:
            raise SweepError(f"{EPSILON} wants numbers, 0 or inf, found {text!r}") from None
        if epsilon == ALONE and not has_start:
            raise SweepError(
                f"{EPSILON}=0 scores the public start alone, and there is none: add public.KEY=VALUE words"
            )
        if epsilon in (ALONE, OPEN):
            of_run = {key: word for key, word in of_run.items() if not key.startswith("privacy.")}
            of_run |= {key: f"{key}=0" for key in ROUNDS} if epsilon == ALONE else {}
        else:
            of_run |= {"privacy.mode": "privacy.mode=dp_sgd", EPSILON: f"{EPSILON}={text}"}
        others = {key: of_run[key].partition("=")[2] for key in of_run if key in swept and key != EPSILON}
        if epsilon == ALONE:
            others = {key: value for key, value in others.items() if key not in ROUNDS}
        parts = [f"epsilon_{epsilon:g}", *(f"{key.rpartition('.')[2]}_{value}" for key, value in others.items())]
        name = "-".join(re.sub(r"[^\w.+-]", "_", part) for part in parts)  # Hydra wants quotes around anything else
        point = Point(name, epsilon, others, tuple(of_run.values()))
        if points.setdefault(name, point) != point:
            raise SweepError(
                f"two different runs would both be named {name}; choose values that differ in more than punctuation, "
                f"or in the first six digits of epsilon"
            )
    return tuple(sorted(points.values(), key=lambda point: list(point.swept.values())))


def _check(runs: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    faults: dict[str, list[str]] = {}
    for name, words in runs:
        try:
            composed(words)
        except ConfigError as error:
            faults.setdefault(f"{error}", []).append(name)
    if faults:
        raise SweepError("; ".join(f"{fault} ({', '.join(names)})" for fault, names in faults.items()))
