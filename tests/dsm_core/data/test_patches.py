"""Patches are drawn as promised, by the generator alone, and mark what is unknown."""

import numpy as np
import pytest
import torch

from dsm_core.config import DataConfig
from dsm_core.data import Case, PatchSampler, SiteVolumes, Volume, read_datalist
from dsm_core.data.augmentation import Geometry, change_intensity, draw_geometry, sample_box

DATA = DataConfig(spacing_mm=(2.0, 2.0, 3.0), patch=(16, 16, 16))


def _volume(shape=(40, 40, 40), spacing_mm=(1.0, 1.0, 1.0), ball=None, radius=8.0):
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(n) * s for n, s in zip(shape, spacing_mm, strict=True)), indexing="ij")
    )
    centre = torch.tensor(ball or [n * s / 2 for n, s in zip(shape, spacing_mm, strict=True)]).view(3, 1, 1, 1)
    inside = (grid - centre).norm(dim=0, keepdim=True) <= radius
    return Volume(
        inside.float(), inside.to(torch.int16) * 3, Case("c", None, None, ("ball",)), torch.eye(4), spacing_mm
    )


@pytest.fixture
def site(make_site):
    def edit(content):
        content["training"][0]["annotated"] = ["liver"]

    datalist = read_datalist(make_site(cases=3, edit=edit))
    return SiteVolumes(datalist, DATA), datalist


def test_equal_generators_give_equal_patches(site):
    batches = []
    for _ in range(2):
        sampler = PatchSampler(*site, DATA)
        generator = np.random.default_rng(7)
        batches.append([sampler.sample(generator, 4) for _ in range(3)][-1])
    first, second = batches
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.masks, second.masks)
    other = PatchSampler(*site, DATA).sample(np.random.default_rng(8), 4)
    assert not torch.equal(first.image, other.image)


def test_shapes_and_what_is_known(site):
    batch = PatchSampler(*site, DATA).sample(np.random.default_rng(0), 60)
    assert batch.names == ("liver", "liver tumor")
    assert batch.image.shape == (60, 1, 16, 16, 16)
    assert batch.image.dtype == torch.float32
    assert batch.masks.shape == (60, 2, 16, 16, 16)
    assert batch.masks.dtype == torch.bool
    assert batch.annotated[:, 0].all()
    assert 0 < (~batch.annotated[:, 1]).sum() < 60
    assert not (batch.masks[:, 1] & ~batch.masks[:, 0]).any()  # the tumour lies in the liver
    assert batch.image.isfinite().all()


def test_lesions_are_drawn_twice_as_often_even_where_few_cases_know_one(make_site):
    def edit(content):
        for item in content["training"][1:]:
            item["annotated"] = ["liver"]

    datalist = read_datalist(make_site(cases=6, edit=edit))
    data = DataConfig(spacing_mm=(2.0, 2.0, 3.0), patch=(16, 16, 16), foreground_share=1.0)
    batch = PatchSampler(SiteVolumes(datalist, data), datalist, data, augment=False).sample(
        np.random.default_rng(0), 300
    )
    share = batch.annotated[:, 1].float().mean().item()
    assert share == pytest.approx(2 / 3 + 1 / 3 / 6, abs=0.09)  # every tumour crop, and a sixth of the liver crops
    assert batch.masks.flatten(2).any(2)[batch.annotated].float().mean() > 0.95


def test_patches_of_one_case_stay_in_it(site):
    batch = PatchSampler(*site, DATA).sample_case(0, np.random.default_rng(0), 5)
    assert not batch.annotated[:, 1].any()


def test_a_volume_smaller_than_the_patch_is_padded_with_air():
    volume = _volume(shape=(10, 20, 40), radius=4.0)
    image, label = sample_box(volume, (5, 10, 20), (16, 16, 16), None)
    assert image[:, 3:13].sum() == volume.image[:, :, 2:18, 12:28].sum()
    assert image[:, :3].sum() == image[:, 13:].sum() == label[:, 13:].sum() == 0
    far, _ = sample_box(volume, (500, 10, 20), (16, 16, 16), None)
    assert far.sum() == 0


def test_no_change_of_geometry_equals_a_cut():
    volume = _volume(ball=[17.0, 22.0, 20.0])
    cut = sample_box(volume, (18, 20, 22), (16, 16, 32), None)
    resampled = sample_box(volume, (18, 20, 22), (16, 16, 32), Geometry(1.0, 0.0))
    torch.testing.assert_close(cut[0], resampled[0], atol=1e-4, rtol=0)
    assert torch.equal(cut[1], resampled[1])


@pytest.mark.parametrize("zoom", [0.85, 1.2])
def test_a_zoom_scales_a_ball(zoom):
    _, plain = sample_box(_volume(), (20, 20, 20), (32, 32, 32), None)
    _, zoomed = sample_box(_volume(), (20, 20, 20), (32, 32, 32), Geometry(zoom, 0.0))
    assert (zoomed > 0).sum() / (plain > 0).sum() == pytest.approx(zoom**3, rel=0.05)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0)])
def test_a_turn_moves_a_ball_on_its_circle_and_keeps_its_size(spacing_mm):
    shape = [round(60 / step) for step in spacing_mm]
    volume = _volume(shape, spacing_mm, ball=[42.0, 30.0, 30.0], radius=6.0)
    middle = [n / 2 for n in shape]
    _, label = sample_box(volume, middle, shape, Geometry(1.0, 12.0))
    scale = torch.tensor(spacing_mm)
    found = ((label[0] > 0).nonzero().float().mean(0) - torch.tensor(middle)) * scale
    # The patch is read 12 degrees ahead, so the ball appears 12 degrees behind.
    wanted = torch.tensor([12 * np.cos(np.radians(-12)), 12 * np.sin(np.radians(-12)), 0.0])
    assert (found - wanted).norm() < 0.75
    assert (label > 0).sum() / (volume.label > 0).sum() == pytest.approx(1, rel=0.1)


def test_left_never_becomes_right():
    volume = _volume(ball=[10.0, 20.0, 20.0])
    generator = np.random.default_rng(0)
    drawn = [draw_geometry(generator) for _ in range(200)]
    changed = [geometry for geometry in drawn if geometry]
    assert 40 < len(changed) < 120
    for geometry in changed[:30]:
        _, label = sample_box(volume, (20, 20, 20), (32, 32, 32), geometry)
        assert (label[0] > 0).nonzero()[:, 0].float().mean() < 14


def test_intensity_changes_stay_small_and_keep_structure():
    image = _volume().image * 0.5 + 0.2
    generator = np.random.default_rng(0)
    for _ in range(40):
        changed = change_intensity(image, generator)
        assert type(changed) is torch.Tensor
        assert (changed - image).abs().mean() < 0.25
        assert changed[image > 0.6].mean() > changed[image < 0.6].mean() + 0.2


def test_a_site_without_annotation_or_with_missing_volumes_is_refused(site):
    volumes, datalist = site
    with pytest.raises(ValueError, match="one volume a case"):
        PatchSampler([volumes[0]], datalist, DATA)
    with pytest.raises(ValueError, match="no annotated case"):
        PatchSampler([], datalist.subset([]), DATA)
