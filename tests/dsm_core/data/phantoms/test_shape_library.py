"""Real tumour shapes: a ball stored on a coarse grid is the same ball in the patient, turned and scaled."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dsm_core.data.phantoms import (
    PHANTOM_LESIONS,
    Scanner,
    ShapeLibrary,
    ShapeLibraryError,
    folder_digest,
    generate_case,
    read_shapes,
)
from dsm_core.data.phantoms.lesions import HABITS, borne_mm
from dsm_core.data.phantoms.shape_library import tumor_shapes
from dsm_core.data.phantoms.shapes import GRID_MM, Space, rotation

SPACING_MM = (2.0, 2.0, 2.5)
SHARED = Path(__file__).parents[4] / ".." / "shared" / "data" / "kits_labels"


@pytest.fixture
def space() -> Space:
    axis = np.arange(-60, 61, GRID_MM)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).astype(np.float32)
    return Space(np.random.default_rng(0), (axis, axis, axis), points, np.ones(3), np.zeros(3), give_mm=6.0)


def kidney_map(*radii_mm: float) -> np.ndarray:
    """A label map with a kidney, and an ellipsoid of tumour and a cyst in it."""
    grid = np.stack(np.meshgrid(*[(np.arange(n) - n // 2) * s for n, s in zip((40, 40, 32), SPACING_MM, strict=True)]))
    values = (np.linalg.norm(grid, axis=0) < 35).astype(np.uint8)
    values[(np.abs(grid / np.reshape(radii_mm, (3, 1, 1, 1))) ** 2).sum(0) < 1] = 2
    values[:2] = 3
    return values


def write_map(path: Path, values: np.ndarray, spacing_mm=SPACING_MM) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([*spacing_mm, 1.0])), path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    write_map(tmp_path / "maps" / "a.nii.gz", kidney_map(14, 14, 14))
    write_map(tmp_path / "maps" / "b.nii.gz", kidney_map(24, 10, 10))
    return tmp_path / "maps"


def volume_ml(shape) -> float:
    return float(np.clip(0.5 - shape.distance / GRID_MM, 0, 1).sum()) * GRID_MM**3 / 1000


def test_a_ball_keeps_its_volume_place_and_distances(space):
    (ball,) = tumor_shapes(kidney_map(14, 14, 14), SPACING_MM)
    assert ball.diameter_mm == pytest.approx(28, rel=0.02)
    placed = ball.placed(space, np.array([6.0, -9.0, 3.0]), 40.0, rotation((30, 20, 10)))
    assert volume_ml(placed) == pytest.approx(4 / 3 * np.pi * 2**3, rel=0.04)
    points = space.points[(slice(None), *placed.window)]
    away = np.linalg.norm(points - np.reshape([6, -9, 3], (3, 1, 1, 1)), axis=0)
    near = np.abs(away - 20) < 6
    np.testing.assert_allclose(placed.distance[near], (away - 20)[near], atol=3.5)
    assert np.abs(placed.distance - (away - 20))[near].mean() < 1


def test_a_turned_shape_keeps_its_volume_and_leaves_its_axis(space):
    (long,) = tumor_shapes(kidney_map(26, 10, 10), SPACING_MM)
    volumes, longest = [], []
    for turn in (np.eye(3), rotation((0, 0, 90))):
        placed = long.placed(space, np.zeros(3), long.diameter_mm, turn)
        volumes.append(volume_ml(placed))
        longest.append(int(np.argmax(np.ptp(np.argwhere(placed.distance < 0), axis=0))))
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)
    assert longest[0] != longest[1]


def test_every_component_is_a_shape_unless_it_is_a_crumb():
    values = np.zeros((40, 20, 20), np.uint8)
    values[2:10, 4:12, 4:12] = values[20:26, 4:10, 4:10] = 2
    values[38, 18, 18] = 2
    found = tumor_shapes(values, (2.0, 2.0, 2.0))
    assert [round(np.pi * shape.diameter_mm**3 / 6) for shape in found] == [8**3 * 8, 6**3 * 8]


def test_a_folder_is_known_by_its_content(folder, tmp_path):
    library = read_shapes(folder)
    assert len(library.shapes) == 2
    assert library.digest == folder_digest(folder)
    folder.rename(tmp_path / "elsewhere")
    assert folder_digest(tmp_path / "elsewhere") == library.digest
    write_map(tmp_path / "elsewhere" / "b.nii.gz", kidney_map(23, 10, 10))
    assert folder_digest(tmp_path / "elsewhere") != library.digest


def test_sizes_are_what_the_host_bears():
    assert borne_mm("pancreas tumor", 90.0) == 41.0
    assert borne_mm("pancreas tumor", 5.0) == 17.0
    assert borne_mm("spleen tumor", 30.0) == 30.0
    assert set(HABITS) == set(PHANTOM_LESIONS)


def test_every_host_gets_real_shapes_and_equal_seeds_equal_voxels(folder):
    library = read_shapes(folder)
    scanner = Scanner(spacing_mm=(4.0, 4.0, 5.0), noise_hu=10.0)

    def make(shapes: ShapeLibrary | None):
        return generate_case(3, PHANTOM_LESIONS, scanner, (300.0, 230.0, 220.0), shapes)

    case, again, drawn = make(library), make(library), make(None)
    np.testing.assert_array_equal(case.truth, again.truth)
    assert (case.truth != drawn.truth).any()
    assert all(case.mask(name).any() for name in PHANTOM_LESIONS)


def test_folders_that_give_no_shape_are_refused(tmp_path):
    with pytest.raises(ShapeLibraryError, match="is no folder"):
        read_shapes(tmp_path / "missing")
    with pytest.raises(ShapeLibraryError, match="holds no label map"):
        read_shapes(tmp_path)
    write_map(tmp_path / "healthy.nii.gz", np.ones((8, 8, 8), np.uint8))
    with pytest.raises(ShapeLibraryError, match="in none a component of value 2"):
        read_shapes(tmp_path)


def test_maps_that_cannot_be_read_are_all_named_and_no_path_is(folder):
    (folder / "broken.nii.gz").write_bytes(b"no image")
    write_map(folder / "flat.nii.gz", np.ones((8, 8), np.uint8), SPACING_MM)
    write_map(folder / "soft.nii.gz", np.full((4, 4, 4), 1.5, np.float32))
    with pytest.raises(ShapeLibraryError, match="3 of 5") as fault:
        read_shapes(folder)
    assert all(name in str(fault.value) for name in ("broken.nii.gz", "flat.nii.gz", "soft.nii.gz"))
    assert str(folder) not in str(fault.value)


def test_real_kidney_tumours_make_a_library():
    if not SHARED.is_dir():
        pytest.skip("../shared/data/kits_labels is not here: 62 real label maps, see the data's README")
    library = read_shapes(SHARED)
    assert len(library.shapes) >= 62
    assert 15 < np.median([shape.diameter_mm for shape in library.shapes]) < 80
