"""The door of the model: DSM, its builder, and what goes in and out."""

from dsm_core.model.dsm import DSM, DSMOutput, Features, QueryDropout, build_model
from dsm_core.model.mamba import SampleWeight
from dsm_core.model.queries import QuerySet, Rows, SharedVector

__all__ = [
    "DSM",
    "DSMOutput",
    "Features",
    "QueryDropout",
    "QuerySet",
    "Rows",
    "SampleWeight",
    "SharedVector",
    "build_model",
]
