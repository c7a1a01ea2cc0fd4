"""Can the runs of a sweep read their sites, and have these enough patients? Asked before the first of them trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dsm_core.config import Config
from simulations.site_sources import find_sites, refuse_large_batches, with_held_out
from simulations.sweep.plan import composed


def check_data(runs: Iterable[Sequence[str]]) -> None:
    """Open the folders that runs name, each once, and count patients; what is generated is not generated for this.

    Args:
        runs: words of each.

    Raises:
        ConfigError: a folder that is none, holds no site or too few patients for a private step.
        DatalistError: a site's folder has faults.
    """
    seen = set()
    for config in (with_held_out(composed(words)) for words in runs):
        if (key := _data_of(config)) not in seen:
            seen.add(key)
            if config.sites_dir is None:
                refuse_large_batches(config)
            else:
                find_sites(config)


def _data_of(config: Config) -> tuple[object, ...]:
    is_private = config.privacy.mode != "none"
    patients = (config.phantom.cases, config.train.batch) if is_private else ()
    return is_private, config.compare, config.sites_dir, config.eval_dir, config.data.held_out, *patients
