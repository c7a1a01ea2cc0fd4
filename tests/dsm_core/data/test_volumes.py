"""A scan becomes the same tensor however it is stored, and structures keep their place and size in mm."""

import threading
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from dsm_core.config import DataConfig
from dsm_core.data import Case, DatalistError, SiteVolumes, class_masks, load_volume, read_datalist, read_image

DATA = DataConfig(spacing_mm=(3.0, 3.0, 3.0), patch=(16, 16, 16))


@pytest.mark.parametrize(("axcodes", "dtype"), [("LPS", np.float32), ("LAS", np.int32), ("PIR", np.float64)])
def test_orientation_and_storage_do_not_matter(make_site, axcodes, dtype):
    plain = load_volume(read_datalist(make_site("plain")).cases[0], DATA)
    other = load_volume(read_datalist(make_site("other", axcodes=axcodes, dtype=dtype)).cases[0], DATA)
    assert plain.image.dtype == torch.float32
    assert plain.label.dtype == torch.int16
    assert plain.spacing_mm == other.spacing_mm == (3.0, 3.0, 3.0)
    # The working grid starts at the first stored voxel, which a flip moves: compare sizes, places and values in mm.
    for value in (1, 2):
        np.testing.assert_allclose(_centre_mm(plain, value), _centre_mm(other, value), atol=0.8)
        assert _volume_ml(plain, value) == pytest.approx(_volume_ml(other, value), rel=0.15)
        inside = [volume.image[volume.label == value].mean().item() for volume in (plain, other)]
        assert inside[0] == pytest.approx(inside[1], abs=0.03)


def _centre_mm(volume, value):
    voxels = (volume.label[0] == value).nonzero().double().mean(0)
    return (volume.affine @ torch.cat([voxels, torch.ones(1)]).double())[:3].numpy()


def _volume_ml(volume, value):
    return (volume.label == value).sum().item() * np.prod(volume.spacing_mm) / 1000


def _sphere_case(tmp_path, spacing_mm, radius_mm, shape_mm=(72, 72, 72)):
    shape = [round(length / step) for length, step in zip(shape_mm, spacing_mm, strict=True)]
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing_mm, strict=True)), indexing="ij"), -1)
    inside = np.linalg.norm(grid - 36.0, axis=-1) <= radius_mm
    affine = np.diag([*spacing_mm, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.where(inside, 100, -1000).astype(np.int16), affine), tmp_path / "i.nii.gz")
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8) * 3, affine), tmp_path / "l.nii.gz")
    return Case("ball", tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", ("ball",))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 0.8, 5.0), (6.0, 6.0, 6.0), (2.0, 3.0, 4.0)])
def test_a_sphere_keeps_its_place_and_volume(tmp_path, spacing_mm):
    volume = load_volume(_sphere_case(tmp_path, spacing_mm, 20.0), replace(DATA, spacing_mm=(4.0, 4.0, 4.0)))
    assert volume.label.unique().tolist() == [0, 3]
    assert volume.image.shape == volume.label.shape
    np.testing.assert_allclose(_centre_mm(volume, 3), 36.0, atol=1.0)
    assert _volume_ml(volume, 3) == pytest.approx(4 / 3 * np.pi * 20**3 / 1000, rel=0.08)
    # The image shows the sphere where the label says it is.
    bright = (volume.image > 0.4) == (volume.label == 3)
    assert bright.float().mean() > 0.99


def test_a_small_structure_survives_a_coarse_grid(tmp_path):
    for shift in range(4):
        case = _sphere_case(tmp_path, (1.0, 1.0, 1.0), 3.4, shape_mm=(72 + shift, 72, 72))
        assert (load_volume(case, replace(DATA, spacing_mm=(4.0, 4.0, 4.0))).label == 3).sum() >= 1


def test_the_window_maps_hu_to_unit_range(tmp_path):
    hu = np.array([-1000, -175, 37.5, 250, 3000], np.float32)[:, None, None] * np.ones((5, 4, 4), np.float32)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([3.0, 3.0, 3.0, 1])), tmp_path / "i.nii.gz")
    image = read_image(tmp_path / "i.nii.gz", DATA)
    np.testing.assert_allclose(image[0, :, 0, 0].numpy(), [0, 0, 0.5, 1, 1], atol=1e-4)


def test_an_organ_holds_its_lesions_and_a_lesion_only_itself(make_site):
    datalist = read_datalist(make_site())
    label = load_volume(datalist.cases[0], DATA).label
    liver, tumour, unknown = class_masks(label, ["liver", "liver tumor", "heart"], datalist)
    assert torch.equal(liver, label[0] > 0)
    assert torch.equal(tumour, label[0] == 2)
    assert not unknown.any()
    assert tumour.sum() > 0


@pytest.mark.parametrize("damage", ["truncated", "values", "shape", "affine", "4-D", "missing", "NaN"])
def test_a_broken_case_is_refused_when_loaded(make_site, damage):
    datalist = read_datalist(make_site())
    case = datalist.cases[0]
    scan = nibabel.load(case.label)
    voxels, affine = np.asanyarray(scan.dataobj).copy(), scan.affine
    if damage == "truncated":
        case.image.write_bytes(case.image.read_bytes()[:500])
    elif damage == "missing":
        case.image.unlink()
    elif damage == "4-D":
        nibabel.save(nibabel.Nifti1Image(np.zeros((*voxels.shape, 2), np.int16), affine), case.image)
    elif damage == "NaN":
        nibabel.save(nibabel.Nifti1Image(np.full(voxels.shape, np.nan, np.float32), affine), case.image)
    else:
        voxels = {"values": voxels * 9, "shape": voxels[1:], "affine": voxels}[damage]
        affine = affine + np.eye(4) * (damage == "affine")
        affine[3, 3] = 1
        nibabel.save(nibabel.Nifti1Image(voxels, affine), case.label)
    with pytest.raises(DatalistError, match="site_x") as error:
        SiteVolumes(datalist, DATA)[0]
    assert "pt_0" not in str(error.value)
    assert len(error.value.faults) == 1


def test_volumes_load_once_and_in_threads(make_site, monkeypatch):
    from dsm_core.data import volumes

    loaded = []
    real = volumes.load_volume
    monkeypatch.setattr(volumes, "load_volume", lambda case, *rest: loaded.append(case.name) or real(case, *rest))
    held = SiteVolumes(read_datalist(make_site(cases=3)), DATA)
    assert loaded == []
    threads = [threading.Thread(target=held.preload, args=(2,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loaded) == ["pt_0", "pt_1", "pt_2"]
    assert held.compact(0).image.dtype == torch.float16
    assert held.compact(0).label.dtype == torch.uint8
    exact = real(held.datalist.cases[1], DATA)
    assert torch.equal(held[1].label, exact.label)
    torch.testing.assert_close(held[1].image, exact.image, atol=1e-3, rtol=1e-3)
    assert [volume.case.name for volume in held] == ["pt_0", "pt_1", "pt_2"]


def test_a_case_without_label_map_has_an_image_only(make_site):
    case = replace(read_datalist(make_site()).cases[0], label=None, annotated=())
    assert load_volume(case, DATA).label is None


def test_an_oblique_scan_keeps_place_and_volume(tmp_path):
    case = _sphere_case(tmp_path, (2.0, 2.0, 2.0), 18.0)
    cos, sin = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[1, 0, 0, 5], [0, cos, -sin, -7], [0, sin, cos, 11], [0, 0, 0, 1.0]])
    for path in (case.image, case.label):
        scan = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asanyarray(scan.dataobj), tilt @ scan.affine), path)
    volume = load_volume(case, DATA)
    np.testing.assert_allclose(_centre_mm(volume, 3), (tilt @ [36, 36, 36, 1])[:3], atol=0.8)
    assert _volume_ml(volume, 3) == pytest.approx(4 / 3 * np.pi * 18**3 / 1000, rel=0.08)
    assert ((volume.image > 0.4) == (volume.label == 3)).float().mean() > 0.99
