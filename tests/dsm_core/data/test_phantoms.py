"""A generated case: organs where they belong, as bright as they should be, tumours in their hosts, all from a seed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from dsm_core.classes import ATLAS, ClassKind
from dsm_core.data.phantoms import PHANTOM_CLASSES, PHANTOM_LESIONS, PHANTOM_ORGANS, Scanner, generate_case

SIZE_MM = (300.0, 230.0, 220.0)
SCANNER = Scanner(spacing_mm=(4.0, 4.0, 5.0), noise_hu=10.0)
ADULT_ML = {
    "liver": (700, 2000),
    "spleen": (70, 350),
    "kidney": (130, 480),
    "pancreas": (45, 180),
    "stomach": (90, 600),
    "aorta": (35, 150),
    "vertebrae": (200, 500),
}


@pytest.fixture(scope="module", params=[0, 1, 2])
def case(request):
    return generate_case(request.param, PHANTOM_LESIONS, SCANNER, SIZE_MM)


@pytest.fixture(scope="module")
def healthy():
    return generate_case(5, (), SCANNER, SIZE_MM)


def centre(case, name):
    """Centre of mass in mm: right, front, up are positive."""
    return np.argwhere(case.mask(name)).mean(0) * case.spacing_mm


def test_every_class_is_in_the_atlas_and_there(case):
    assert case.names == PHANTOM_CLASSES == PHANTOM_ORGANS + PHANTOM_LESIONS
    for name in PHANTOM_CLASSES:
        assert ATLAS[name].kind is (ClassKind.LESION if name in PHANTOM_LESIONS else ClassKind.ORGAN)
        assert case.mask(name).any(), name
    assert all(ATLAS[name].host in PHANTOM_ORGANS for name in PHANTOM_LESIONS)


def test_organs_have_the_volumes_of_an_adult(case):
    for name, (low, high) in ADULT_ML.items():
        assert low < case.mask(name).sum() * np.prod(case.spacing_mm) / 1000 < high, name


def test_organs_lie_where_they_belong(case):
    at = {name: centre(case, name) for name in PHANTOM_ORGANS}
    right, front, up = range(3)
    assert at["liver"][right] > at["vertebrae"][right] + 30
    assert at["spleen"][right] < at["vertebrae"][right] - 60
    assert at["stomach"][right] < at["vertebrae"][right]
    assert at["stomach"][front] > at["spleen"][front] + 20
    assert at["aorta"][front] > at["vertebrae"][front] + 15
    assert at["aorta"][right] < at["vertebrae"][right]
    assert at["pancreas"][front] > at["aorta"][front] + 10
    assert at["kidney"][up] < min(at["spleen"][up], at["liver"][up])
    sides = np.argwhere(case.mask("kidney"))[:, 0] * case.spacing_mm[0] > at["vertebrae"][right]
    assert 0.3 < sides.mean() < 0.7


def test_organs_are_as_bright_as_in_the_portal_venous_phase(case):
    mean = {name: case.image_hu[case.truth == 1 + case.names.index(name)].mean() for name in PHANTOM_ORGANS}
    for name, hu, spread in (("liver", 105, 50), ("spleen", 115, 35), ("kidney", 160, 45), ("aorta", 150, 50)):
        assert abs(mean[name] - hu) < spread, name
    assert mean["vertebrae"] > mean["aorta"] > mean["pancreas"]
    fat, air = ((case.image_hu > -150) & (case.image_hu < -60)).mean(), (case.image_hu < -700).mean()
    assert fat > 0.1
    assert air > 0.1


def test_tumours_grow_in_or_on_their_host(case):
    for name in PHANTOM_LESIONS:
        host = case.truth == 1 + case.names.index(ATLAS[name].host)
        tumour = case.truth == 1 + case.names.index(name)
        reach = binary_dilation(host, iterations=6)
        assert (tumour & reach).sum() > 0.8 * tumour.sum(), name
        assert case.mask(ATLAS[name].host)[tumour].all(), name


def test_only_the_named_kinds_of_tumour_are_drawn(healthy):
    assert not any(healthy.mask(name).any() for name in PHANTOM_LESIONS)
    one = generate_case(5, ["spleen tumor"], SCANNER, SIZE_MM)
    assert [name for name in PHANTOM_LESIONS if one.mask(name).any()] == ["spleen tumor"]


def test_equal_seeds_give_equal_voxels(healthy):
    again = generate_case(5, (), SCANNER, SIZE_MM)
    np.testing.assert_array_equal(again.image_hu, healthy.image_hu)
    np.testing.assert_array_equal(again.truth, healthy.truth)
    other = generate_case(6, (), SCANNER, SIZE_MM)
    assert np.abs(other.image_hu - healthy.image_hu).mean() > 30


def test_another_scanner_sees_the_same_patient(healthy):
    finer = generate_case(5, (), replace(SCANNER, spacing_mm=(3.0, 3.0, 3.0)), SIZE_MM)
    assert finer.image_hu.shape == finer.truth.shape == (100, 77, 73)
    for name in PHANTOM_ORGANS:
        volumes = [c.mask(name).sum() * np.prod(c.spacing_mm) for c in (healthy, finer)]
        assert volumes[0] == pytest.approx(volumes[1], rel=0.12), name


def test_calibration_shifts_and_scales_the_scan(healthy):
    tuned = generate_case(5, (), replace(SCANNER, shift_hu=8.0, gain=1.02), SIZE_MM)
    soft = np.abs(healthy.image_hu) < 300
    wanted = 1.02 * (healthy.image_hu + 1000) - 1000 + 8
    np.testing.assert_allclose(tuned.image_hu[soft], wanted[soft], atol=0.01)


def test_noise_is_what_the_scanner_says(healthy):
    noisy = generate_case(5, (), replace(SCANNER, noise_hu=20.0), SIZE_MM)
    quiet = generate_case(5, (), replace(SCANNER, noise_hu=0.0), SIZE_MM)
    middle = healthy.mask("pancreas")
    for scan, noise_hu in ((healthy, 10), (noisy, 20)):
        assert (scan.image_hu - quiet.image_hu)[middle].std() == pytest.approx(noise_hu, rel=0.15)


def test_a_sharp_kernel_keeps_more_detail_than_a_soft_one():
    sharp, soft = (
        generate_case(5, (), replace(SCANNER, noise_hu=0, sharpness=s), SIZE_MM).image_hu for s in (0.8, -0.8)
    )
    assert np.abs(np.diff(sharp, axis=0)).mean() > 1.1 * np.abs(np.diff(soft, axis=0)).mean()


def test_a_tumour_nobody_can_have_is_refused():
    with pytest.raises(ValueError, match="found aortic tumor"):
        generate_case(0, ["liver tumor", "aortic tumor"], SCANNER)


def test_without_contrast_agent_the_same_organs_are_darker_and_alike():
    portal, native = (generate_case(3, PHANTOM_LESIONS, SCANNER, SIZE_MM, contrast=c) for c in ("portal", "native"))
    assert np.array_equal(portal.truth, native.truth)
    dark, bright = (
        {name: case.image_hu[case.mask(name)].mean() for name in ("kidney", "spleen", "liver")}
        for case in (native, portal)
    )
    assert dark["kidney"] < dark["spleen"] < dark["liver"] < dark["kidney"] + 40
    assert all(bright[name] > dark[name] + 30 for name in dark)
