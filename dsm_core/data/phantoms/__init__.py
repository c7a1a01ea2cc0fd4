"""Generated patients: a CT case with its full truth, made from one seed. Import from here."""

from dsm_core.data.phantoms.case import PHANTOM_CLASSES, PHANTOM_LESIONS, PHANTOM_ORGANS, PhantomCase, generate_case
from dsm_core.data.phantoms.scanner import Scanner
from dsm_core.data.phantoms.shape_library import ShapeLibrary, ShapeLibraryError, folder_digest, read_shapes

__all__ = [
    "PHANTOM_CLASSES",
    "PHANTOM_LESIONS",
    "PHANTOM_ORGANS",
    "PhantomCase",
    "Scanner",
    "ShapeLibrary",
    "ShapeLibraryError",
    "folder_digest",
    "generate_case",
    "read_shapes",
]
