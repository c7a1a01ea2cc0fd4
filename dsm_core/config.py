"""Every knob, typed, on one page.

Below the entry points travels only the `Config` dataclass; `config_words` makes one from a command line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A configuration value or key that cannot be used; the message says what was found and what is wanted."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass
class ModelConfig:
    """Sizes of DSM. `tiny` trains on two CPU cores, `base` wants a GPU."""

    name: str = "tiny"
    widths: tuple[int, ...] = (16, 32, 64, 96)  # channels at 1/2, 1/4, 1/8, 1/16 of the volume
    mamba_blocks: tuple[int, ...] = (0, 0, 1, 2)  # Mamba blocks per stage
    state_size: int = 16  # N of the state-space model
    decoder_width: int = 48  # channels of the pixel decoder at 1/4 and below
    query_width: int = 64  # channels of a query
    mask_width: int = 32  # channels of the pixel map at 1/2, from which masks are read
    prior_widths: tuple[int, ...] = (16, 32, 48)  # channels of the denoiser at 1/2, 1/4, 1/8
    refine_steps: int = 1  # DDIM steps from noise to the healthy scan; 1 predicts it at once
    lesion_width: int = 16  # channels of the map from which lesions are read
    fusion: bool = True  # the denoiser's hidden map is fused into the lesion map
    scan_backend: str = "auto"  # auto | native | torch | cuda
    precision: str = "float32"  # float32 | bfloat16: of encoder and pixel decoder; the scan stays in float32
    checkpointing: bool = False  # the encoder's stages are computed again on the way back: less memory, more time

    def __post_init__(self) -> None:
        self.widths, self.mamba_blocks = tuple(self.widths), tuple(self.mamba_blocks)
        self.prior_widths = tuple(self.prior_widths)
        _require(len(self.prior_widths) == 3, f"model.prior_widths wants 3 levels, found {len(self.prior_widths)}")
        _require(
            self.precision in ("float32", "bfloat16"),
            f"model.precision wants float32 or bfloat16, found {self.precision!r}",
        )
        _require(self.refine_steps > 0, f"model.refine_steps wants at least 1, found {self.refine_steps}")
        _require(
            len(self.widths) == len(self.mamba_blocks) == 4,
            f"model.widths and model.mamba_blocks want 4 stages, found {len(self.widths)} and {len(self.mamba_blocks)}",
        )
        _require(self.query_width % 4 == 0, f"model.query_width wants a multiple of 4 heads, found {self.query_width}")


@dataclass
class DataConfig:
    """How a scan becomes a tensor."""

    spacing_mm: tuple[float, ...] = (4.0, 4.0, 4.0)
    intensity_hu: tuple[float, ...] = (-175.0, 250.0)  # window mapped to [0, 1]
    patch: tuple[int, ...] = (48, 48, 48)
    crop: tuple[int, ...] = (32, 32, 32)  # voxels of a crop from which prior and tumour queries learn
    foreground_share: float = 2 / 3  # share of crops around a voxel of a labelled class; the others lie anywhere
    held_out: float = 0.0  # share of a site's cases kept out of training; dsm-simulate takes 0.2 without an eval_dir

    def __post_init__(self) -> None:
        self.spacing_mm, self.intensity_hu = tuple(self.spacing_mm), tuple(self.intensity_hu)
        self.patch, self.crop = tuple(self.patch), tuple(self.crop)
        _require(
            len(self.spacing_mm) == 3 and min(self.spacing_mm) > 0,
            f"data.spacing_mm wants three positive lengths in mm, found {self.spacing_mm}",
        )
        _require(
            len(self.patch) == 3 and all(p > 0 and p % 16 == 0 for p in self.patch),
            f"data.patch wants three multiples of 16 voxels, found {self.patch}",
        )
        _require(
            len(self.crop) == 3 and all(c > 0 and c % 8 == 0 for c in self.crop),
            f"data.crop wants three multiples of 8 voxels, found {self.crop}",
        )
        _require(
            len(self.intensity_hu) == 2 and self.intensity_hu[0] < self.intensity_hu[1],
            f"data.intensity_hu wants (low, high) in HU, found {self.intensity_hu}",
        )
        _require(0 <= self.held_out < 1, f"data.held_out wants a share in [0, 1), found {self.held_out}")


@dataclass
class TrainConfig:
    """Local training at a site; `lr` is that of the organs, the later stages have rates of their own."""

    local_steps: int = 5  # optimiser steps of a site per round
    batch: int = 2  # patches per step of the organs; under privacy, patients per step in every stage
    crops: int = 2  # crops per step of prior and tumours
    lr: float = 2e-3  # base rate; sites that share moments step with sqrt(sites) times it
    weight_decay: float = 1e-4
    warmup: float = 0.05  # share of a stage's rounds with a rising learning rate
    text_only: float = 0.3  # probability that a class row is dropped, so that its text alone is a working query
    text_noise: float = 0.05  # length of the noise added to a unit text vector
    clip_norm: float = 1.0  # longest gradient of a step, L2 over all parameters

    def __post_init__(self) -> None:
        _require(
            min(self.local_steps, self.batch, self.crops) > 0,
            "train.local_steps, train.batch and train.crops want at least 1",
        )
        _require(self.lr > 0, f"train.lr wants a positive number, found {self.lr}")
        _require(self.clip_norm > 0, f"train.clip_norm wants a positive number, found {self.clip_norm}")
        for name in ("warmup", "text_only"):
            _require(0 <= getattr(self, name) < 1, f"train.{name} wants a share in [0, 1), found {getattr(self, name)}")


@dataclass
class PriorConfig:
    """The stage that learns what healthy tissue looks like, with the organ model frozen."""

    rounds: int = 100  # 0 leaves the stage out
    lr: float = 2e-3

    def __post_init__(self) -> None:
        _check_stage("prior", self)


@dataclass
class TumorsConfig:
    """The stage that trains the tumour queries, with organ model and prior frozen."""

    rounds: int = 200  # 0 leaves the stage out
    lr: float = 2e-3

    def __post_init__(self) -> None:
        _check_stage("tumors", self)


def _check_stage(name: str, stage: PriorConfig | TumorsConfig) -> None:
    _require(stage.rounds >= 0, f"{name}.rounds wants 0 (leave the stage out) or more, found {stage.rounds}")
    _require(stage.lr > 0, f"{name}.lr wants a positive number, found {stage.lr}")


PRIVACY_MODES = ("none", "dp_sgd")
TRAINED_PARTS = ("everything", "queries", "adapters")


@dataclass
class PrivacyConfig:
    """What the patients of every site are promised about a whole run, all its stages together, and how it is kept.

    A site counts its own patients, so it finds its own noise; its ledger may allow less than is asked here, never more.
    """

    mode: str = "none"  # none | dp_sgd
    epsilon: float = 8.0  # of the whole run, for every patient of a site
    delta: float | None = None  # chance that epsilon does not hold; absent: that of the site's ledger
    clip_norm: float = 1.0  # longest gradient of a patient, L2 over all trained tensors
    lr_factor: float = 1.0  # times every stage's base rate: few trained numbers want longer steps than a whole model
    patches_per_patient: int = 2  # averaged before clipping, so that more of them cost time and no privacy
    accountant: str = "prv"  # prv | rdp
    # everything | queries (class rows, text to query, heads) | adapters (biases and scales)
    trained: str = "everything"

    def __post_init__(self) -> None:
        _require(self.mode in PRIVACY_MODES, f"privacy.mode wants one of {PRIVACY_MODES}, found {self.mode!r}")
        _require(self.trained in TRAINED_PARTS, f"privacy.trained wants one of {TRAINED_PARTS}, found {self.trained!r}")
        _require(self.accountant in ("prv", "rdp"), f"privacy.accountant wants prv or rdp, found {self.accountant!r}")
        _require(0 < self.epsilon < math.inf, f"privacy.epsilon wants a number above 0, found {self.epsilon}")
        _require(
            self.delta is None or 0 < self.delta < 1, f"privacy.delta wants a chance in (0, 1), found {self.delta}"
        )
        _require(0 < self.clip_norm < math.inf, f"privacy.clip_norm wants a length above 0, found {self.clip_norm}")
        _require(0 < self.lr_factor < math.inf, f"privacy.lr_factor wants a number above 0, found {self.lr_factor}")
        _require(
            self.patches_per_patient > 0,
            f"privacy.patches_per_patient wants at least 1, found {self.patches_per_patient}",
        )


SITE_WEIGHTS = ("cases", "equal", "exclusive")
METHODS = ("federated", "fedavg", "local", "pooled")


@dataclass
class ServerConfig:
    """How the coordinator combines the sites' updates."""

    site_weight: str = "equal"  # cases | equal | exclusive: shared tensors are averaged by this
    class_rows: str = "evidence"  # evidence | shared (plain FedAvg treats them like any tensor)
    moments: str = "shared"  # shared | local: AdamW's moments are averaged with the tensors, or stay at each site
    row_step: float = 1.0  # step of a class row towards its labelling sites' average
    server_step: str = "fixed"  # fixed | fedexp
    server_lr: float = 1.0  # step of the shared tensors; the upper bound of the step under fedexp
    momentum: float = 0.0
    max_update_norm: float = 100.0  # a larger update of a site is refused
    participation: float = 1.0  # share of the sites that a round asks, drawn from the seed among those connected
    quorum: float = 0.5  # share of the asked sites that must answer
    round_timeout_s: float = 600.0
    save_every: int = 1  # rounds from one saved state to the next

    def __post_init__(self) -> None:
        _require(
            self.site_weight in SITE_WEIGHTS,
            f"server.site_weight wants one of {SITE_WEIGHTS}, found {self.site_weight!r}",
        )
        _require(self.class_rows in ("evidence", "shared"), "server.class_rows wants evidence or shared")
        _require(self.moments in ("shared", "local"), "server.moments wants shared or local")
        _require(self.server_step in ("fixed", "fedexp"), "server.server_step wants fixed or fedexp")
        _require(self.server_lr > 0, f"server.server_lr wants a positive step, found {self.server_lr}")
        _require(0 <= self.momentum < 1, f"server.momentum wants a number in [0, 1), found {self.momentum}")
        _require(0 < self.quorum <= 1, f"server.quorum wants a share in (0, 1], found {self.quorum}")
        _require(self.round_timeout_s > 0, "server.round_timeout_s wants seconds above 0")
        _require(
            0 < self.participation <= 1, f"server.participation wants a share in (0, 1], found {self.participation}"
        )
        _require(self.save_every > 0, f"server.save_every wants at least 1 round, found {self.save_every}")


PROMPTS = (
    "A computerized tomography of a {}",  # of the published DSM
    "a CT scan of the {}",
    "a CT image showing the {}",
    "an axial CT slice through the {}",
    "a contrast-enhanced CT of the {}",
    "a radiology image of the {}",
    "a medical image of the {} of a patient",
    "there is a {} in this CT scan",
)


@dataclass
class TextConfig:
    """Where the class embeddings come from."""

    encoder: str = "auto"  # auto | offline | open_clip | bank
    model: str = "ViT-B-32"  # open_clip architecture, or hf-hub:OWNER/NAME
    weights: str | None = None  # open_clip pretrained tag, a safetensors file, or a folder with open_clip_config.json
    bank: str | None = None  # a saved bank (.safetensors) instead of an encoder
    prompts: tuple[str, ...] = PROMPTS  # sentences around a phrase, averaged; hashed words do without
    detail: str = "auto"  # name | synonyms | attributes: what of a class is averaged; auto: synonyms for a text tower

    def __post_init__(self) -> None:
        self.prompts = tuple(self.prompts)
        _require(
            self.encoder in ("auto", "offline", "open_clip", "bank"),
            f"text.encoder wants auto, offline, open_clip or bank, found {self.encoder!r}",
        )
        _require(
            self.detail in ("auto", "name", "synonyms", "attributes"),
            f"text.detail wants auto, name, synonyms or attributes, found {self.detail!r}",
        )
        odd = [prompt for prompt in self.prompts if prompt.count("{}") != 1]
        _require(
            bool(self.prompts) and not odd,
            f"text.prompts wants one or more sentences with one {{}} each for the phrase, found {odd or 'none'}",
        )

    def with_absolute_paths(self) -> TextConfig:
        """The same for a process that works in another folder."""

        def absolute(value: str | None) -> str | None:
            return os.path.abspath(value) if value and Path(value).exists() else value

        return replace(self, weights=absolute(self.weights), bank=absolute(self.bank))


@dataclass
class PhantomConfig:
    """Generated abdominal sites."""

    cases: int = 32  # training cases per site: with a dozen, lesions are learned by heart
    held_out: int = 16  # held-out cases per site, with the full truth
    size_mm: tuple[float, ...] = (320.0, 256.0, 256.0)
    lesion_shapes: str | None = None  # a folder of KiTS style label maps: their tumours instead of drawn ones
    contrast: str = "portal"  # portal | native: scanned with contrast agent, or without

    def __post_init__(self) -> None:
        self.size_mm = tuple(self.size_mm)
        _require(
            self.contrast in ("portal", "native"), f"phantom.contrast wants portal or native, found {self.contrast!r}"
        )
        _require(self.cases > 0 and self.held_out > 0, "phantom.cases and phantom.held_out want at least 1")
        _require(
            len(self.size_mm) == 3 and all(s >= low for s, low in zip(self.size_mm, (240, 200, 200), strict=True)),
            f"phantom.size_mm wants at least 240 x 200 x 200 mm, so that every organ is in it; found {self.size_mm}",
        )


@dataclass
class Config:
    """One run."""

    name: str | None = None  # run folder under `out`; the time of day when absent
    out: str = "runs"
    seed: int = 0
    sites: int = 4  # generated sites; ignored when sites_dir is given
    sites_dir: str | None = None  # a folder of site folders
    eval_dir: str | None = None  # held-out truth: one folder for all sites, or one sub-folder a site
    rounds: int = 60  # of the first stage, organs; 0 with `start`: that checkpoint holds them
    start: str | None = None  # a checkpoint folder to start from; under privacy it must be public, or paid for already
    resume: str | None = None  # folder of a run that was stopped: goes on with that run's own configuration
    compare: str = "local"  # none | local | all
    threads: int = 0  # sites trained, or cases scored, side by side; 0 = one a core
    dry_run: bool = False
    overlays: int = 6  # overlay pictures a status
    nsd_tolerance_mm: float = 4.0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    tumors: TumorsConfig = field(default_factory=TumorsConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    phantom: PhantomConfig = field(default_factory=PhantomConfig)

    def __post_init__(self) -> None:
        _require(self.sites > 0, f"sites wants at least 1, found {self.sites}")
        least = 0 if self.start else 1
        _require(
            self.rounds >= least, f"rounds wants at least 1 (0 with start=CHECKPOINT: its organs), found {self.rounds}"
        )
        _require(self.threads >= 0, f"threads wants 0 (one a core) or more, found {self.threads}")
        _require(self.nsd_tolerance_mm > 0, f"nsd_tolerance_mm wants mm above 0, found {self.nsd_tolerance_mm}")
        _require(
            self.privacy.mode == "none" or (self.model.precision == "float32" and not self.model.checkpointing),
            "private training reads each patient's gradient layer by layer, which wants model.precision=float32 and "
            "model.checkpointing=false",
        )
        _require(
            self.privacy.mode == "none" or self.privacy.trained != "queries" or self.prior.rounds == 0,
            "privacy.trained=queries trains nothing of the prior, which holds no query; set prior.rounds=0 as well",
        )
        _require(self.compare in ("none", "local", "all"), f"compare wants none, local or all, found {self.compare!r}")


def config_hash(config: Config) -> str:
    """First 12 hex digits of the SHA-256 of the configuration as canonical JSON; says which run two results share."""
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:12]


def config_from_dict(content: Mapping[str, Any]) -> Config:
    """The configuration that `dataclasses.asdict` was given.

    Raises:
        ConfigError: keys that this release does not know, or a value outside its range.
    """
    parts: dict[str, Any] = {name: type(part) for name, part in vars(Config()).items() if is_dataclass(part)}
    try:
        return Config(**{key: parts[key](**value) if key in parts else value for key, value in content.items()})
    except TypeError as error:
        raise ConfigError(
            f"a configuration of another release ({error}); read it with the release that wrote it"
        ) from None
