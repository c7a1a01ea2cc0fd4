"""Which objective belongs to a stage, and which tensors does it move?"""

from __future__ import annotations

from dsm_core.config import Config, ConfigError
from dsm_core.data import Datalist, PatchSampler
from dsm_core.objectives.frozen import FrozenMaps
from dsm_core.objectives.objective import SiteObjective
from dsm_core.objectives.organs import OrgansObjective, organ_classes
from dsm_core.objectives.prior import PriorObjective
from dsm_core.objectives.tumors import TumorsObjective, lesion_classes
from dsm_core.stages import MOVING, ORGANS, PRIOR, STAGES


def trained_parts(stage: str) -> tuple[str, ...]:
    """Prefixes of the names of the tensors that move in a stage.

    Raises:
        ConfigError: no such stage.
    """
    if stage not in MOVING:
        raise ConfigError(f"a stage is one of {', '.join(STAGES)}; found {stage!r}")
    return MOVING[stage].prefixes


def make_objective(stage: str, maps: FrozenMaps, datalist: Datalist, config: Config) -> SiteObjective | None:
    """The objective of a stage at a site; None where the site has nothing to teach in it.

    Args:
        maps: of the site's volumes, shared by its stages.

    Raises:
        ConfigError: no such stage.
    """
    trained_parts(stage)
    if stage == ORGANS:
        names = organ_classes(datalist)
        if not names:
            return None
        patches = PatchSampler(maps.volumes, datalist, config.data, names=names)
        return OrgansObjective(maps.model, maps.text, patches, config.train)
    if stage == PRIOR:
        return PriorObjective(maps, datalist, config.train)
    return TumorsObjective(maps, datalist, config.train) if lesion_classes(datalist) else None
