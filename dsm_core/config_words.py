"""How do the words of a command line become a configuration, and a configuration words again?

Hydra composes the YAML choices of `dsm_core/conf` with overrides. A key that does not exist is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsm_core.config import Config, ConfigError


def compose_config(overrides: Sequence[str] = ()) -> Config:
    """The configuration of `conf/config.yaml` with command-line overrides such as `rounds=20` or `train.lr=1e-3`.

    Raises:
        ConfigError: an unknown key, an unknown choice or a value outside its range.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="schema", node=Config)
    try:
        if GlobalHydra.instance().is_initialized():
            GlobalHydra.instance().clear()
        with initialize_config_dir(str(Path(__file__).parent / "conf"), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        config: Any = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"{error}".strip().splitlines()[0] + "; `dsm-simulate --help` lists every key") from error
    if config.privacy.mode == "none" and any(word.startswith("privacy.epsilon=") for word in overrides):
        raise ConfigError("privacy.epsilon is given, and privacy.mode=none trains openly; add privacy.mode=dp_sgd")
    return config


def describe_config(config: Config) -> str:
    """Every key with its value, one a line, as they are typed on a command line."""

    def lines(prefix: str, values: dict[str, Any]) -> list[str]:
        found = []
        for key, value in values.items():
            found += lines(f"{prefix}{key}.", value) if isinstance(value, dict) else [f"  {prefix}{key}={value}"]
        return found

    return "\n".join(lines("", asdict(config)))
