"""A site's data: what the folder says, what is wrong with it, and the tensors made from it. Import from here.

Names are looked up late, so that reading a datalist or a label contract loads neither torch nor MONAI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsm_core.data.contract import (
        ClassContract,
        ContractError,
        LabelContract,
        contract_classes,
        find_conflicts,
        label_contract,
    )
    from dsm_core.data.datalist import Case, Datalist, read_datalist, site_folders, split_held_out
    from dsm_core.data.faults import DatalistError, Fault
    from dsm_core.data.fingerprint import Fingerprint, merge
    from dsm_core.data.inspection import Inspection, check_folder, inspect_folder, summarise
    from dsm_core.data.patches import PatchBatch, PatchSampler, join_patches
    from dsm_core.data.volumes import SiteVolumes, Volume, class_masks, load_volume, read_image

__all__ = [
    "Case",
    "ClassContract",
    "ContractError",
    "Datalist",
    "DatalistError",
    "Fault",
    "Fingerprint",
    "Inspection",
    "LabelContract",
    "PatchBatch",
    "PatchSampler",
    "SiteVolumes",
    "Volume",
    "check_folder",
    "class_masks",
    "contract_classes",
    "find_conflicts",
    "inspect_folder",
    "join_patches",
    "label_contract",
    "load_volume",
    "merge",
    "read_datalist",
    "read_image",
    "site_folders",
    "split_held_out",
    "summarise",
]

# Light rooms first: those before `volumes` need neither torch nor MONAI.
_ROOMS = ("faults", "datalist", "fingerprint", "contract", "inspection", "volumes", "patches")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = importlib.import_module(f"dsm_core.data.{room}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"dsm_core.data has no {name!r}; it offers {', '.join(__all__)}")
