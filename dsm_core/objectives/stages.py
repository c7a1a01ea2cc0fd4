"""Which objective belongs to a stage, and which tensors does it move?"""

from __future__ import annotations

from dsm_core.config import Config, ConfigError
from dsm_core.data import Datalist, PatchSampler
from dsm_core.objectives.frozen import PRIOR_PARTS, FrozenMaps
from dsm_core.objectives.objective import STAGES, SiteObjective
from dsm_core.objectives.organs import ORGAN_PARTS, OrgansObjective, organ_classes
from dsm_core.objectives.prior import PriorObjective
from dsm_core.objectives.tumors import TUMOR_PARTS, TumorsObjective, lesion_classes

_TRAINED = dict(zip(STAGES, (ORGAN_PARTS, PRIOR_PARTS, TUMOR_PARTS), strict=True))


def trained_parts(stage: str) -> tuple[str, ...]:
    """Prefixes of the names of the tensors that move in a stage.

    Raises:
        ConfigError: no such stage.
    """
    if stage not in _TRAINED:
        raise ConfigError(f"a stage is one of {', '.join(STAGES)}; found {stage!r}")
    return _TRAINED[stage]


def make_objective(stage: str, maps: FrozenMaps, datalist: Datalist, config: Config) -> SiteObjective | None:
    """The objective of a stage at a site; None where the site has nothing to teach in it.

    Args:
        maps: of the site's volumes, shared by its stages.

    Raises:
        ConfigError: no such stage.
    """
    trained_parts(stage)
    if stage == "organs":
        names = organ_classes(datalist)
        if not names:
            return None
        patches = PatchSampler(maps.volumes, datalist, config.data, names=names)
        return OrgansObjective(maps.model, maps.text, patches, config.train)
    if stage == "prior":
        return PriorObjective(maps, datalist, config.train)
    return TumorsObjective(maps, datalist, config.train) if lesion_classes(datalist) else None
