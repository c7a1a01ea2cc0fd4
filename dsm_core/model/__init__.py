"""The door of the model: DSM, its builder, and what goes in and out."""

from dsm_core.model.anatomy import Anatomy, stack_anatomies
from dsm_core.model.diffusion import Corruption, draw_corruption
from dsm_core.model.dsm import DSM, DSMOutput, Features, QueryDropout, build_model
from dsm_core.model.layers import space_to_depth
from dsm_core.model.lesions import TumorAnswer
from dsm_core.model.mamba import SampleWeight
from dsm_core.model.prompt import OrganReading, VisualPrompt, stack_prompts
from dsm_core.model.queries import QuerySet, Rows, SharedVector, organs_meant
from dsm_core.model.symmetry import Symmetry, draw_symmetry

__all__ = [
    "DSM",
    "Anatomy",
    "Corruption",
    "DSMOutput",
    "Features",
    "OrganReading",
    "QueryDropout",
    "QuerySet",
    "Rows",
    "SampleWeight",
    "SharedVector",
    "Symmetry",
    "TumorAnswer",
    "VisualPrompt",
    "build_model",
    "draw_corruption",
    "draw_symmetry",
    "organs_meant",
    "space_to_depth",
    "stack_anatomies",
    "stack_prompts",
]
