"""What does a stage of training learn, from what, by which loss? The stages in their order; import from here."""

from dsm_core.objectives.frozen import FrozenMaps
from dsm_core.objectives.objective import Objective, SiteObjective, freeze_others
from dsm_core.objectives.organs import OrgansObjective, noise_patches, organ_classes
from dsm_core.objectives.prior import PriorBatch, PriorObjective
from dsm_core.objectives.stages import make_objective, trained_parts
from dsm_core.objectives.tumors import TumorBatch, TumorsObjective, lesion_classes

__all__ = [
    "FrozenMaps",
    "Objective",
    "OrgansObjective",
    "PriorBatch",
    "PriorObjective",
    "SiteObjective",
    "TumorBatch",
    "TumorsObjective",
    "freeze_others",
    "lesion_classes",
    "make_objective",
    "noise_patches",
    "organ_classes",
    "trained_parts",
]
