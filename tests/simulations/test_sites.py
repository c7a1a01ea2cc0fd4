"""Generated sites: who labels what, what lies on the disk, and when it is made anew."""

import json
from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from dsm_core.config import ConfigError, PhantomConfig
from dsm_core.data import check_folder, read_datalist, site_folders
from dsm_core.data.phantoms import PHANTOM_CLASSES, PHANTOM_LESIONS, PHANTOM_ORGANS
from simulations.sites import (
    UNSEEN_CLASSES,
    SitesError,
    generate_sites,
    lesion_kinds,
    phantom_recipe,
    plan_classes,
    site_name,
    site_scanner,
)

SMALL = PhantomConfig(cases=4, held_out=1, size_mm=(240, 200, 200))
TINY = PhantomConfig(cases=1, held_out=1, size_mm=(240, 200, 200))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return generate_sites(tmp_path_factory.mktemp("sites"), 2, SMALL, seed=0)


@pytest.mark.parametrize("sites", [1, 2, 3, 4, 5, 8, 30])
def test_every_class_but_the_unseen_is_labelled_and_the_rare_one_once(sites):
    count = Counter(name for classes in plan_classes(sites).values() for name in classes)
    assert set(count) == set(PHANTOM_CLASSES) - set(UNSEEN_CLASSES)
    assert UNSEEN_CLASSES == ("spleen tumor",)
    assert count["kidney tumor"] == 1
    assert sites == 1 or count["liver tumor"] >= 2
    assert all(len(set(classes)) == len(classes) >= 2 for classes in plan_classes(sites).values())


def test_four_sites_label_few_classes_each():
    plan = plan_classes(4)
    count = Counter(name for classes in plan.values() for name in classes)
    assert list(plan) == ["site_a", "site_b", "site_c", "site_d"]
    assert all(2 <= len(classes) <= 4 for classes in plan.values())
    assert all(count[organ] in (1, 2) for organ in PHANTOM_ORGANS)
    assert count["liver tumor"] == 2


def test_sites_are_named_beyond_the_alphabet():
    assert [site_name(i) for i in (0, 25, 26, 27, 701, 702)] == [
        "site_a", "site_z", "site_aa", "site_ab", "site_zz", "site_aaa",
    ]  # fmt: skip


@pytest.mark.parametrize("sites", [0, -1])
def test_no_site_is_an_error(sites, tmp_path):
    with pytest.raises(SitesError, match=f"at least 1, found {sites}"):
        generate_sites(tmp_path, sites, TINY, seed=0)


def test_a_volume_too_small_for_the_organs_is_an_error():
    with pytest.raises(ConfigError, match="240 x 200 x 200"):
        PhantomConfig(size_mm=(100, 100, 100))


def test_each_kind_of_tumour_occurs_at_every_site():
    for index in range(4):
        for is_held_out, cases in ((False, 12), (True, 4)):
            kinds = Counter(k for case in range(cases) for k in lesion_kinds(index, case, is_held_out, seed=0))
            assert all(kinds[name] / cases >= 0.5 for name in PHANTOM_LESIONS)
    many = Counter(k for case in range(200) for k in lesion_kinds(1, case, False, seed=3))
    assert all(many[name] / 200 == pytest.approx(0.7, abs=0.02) for name in PHANTOM_LESIONS)


def test_scanners_differ_between_sites():
    scanners = [site_scanner(index, seed=0) for index in range(4)]
    assert len({scanner.spacing_mm for scanner in scanners}) == 4
    assert len({round(scanner.shift_hu, 3) for scanner in scanners}) == 4
    assert min(scanner.sharpness for scanner in scanners) < 0 < max(scanner.sharpness for scanner in scanners)


def test_sites_are_ordinary_faultless_folders(made):
    assert [path.name for path in site_folders(made.root)] == list(made.folders) == ["site_a", "site_b"]
    for site, folder in made.folders.items():
        assert check_folder(folder) == []
        datalist = read_datalist(folder)
        assert tuple(datalist.values) == made.classes[site]
        assert len(datalist.cases) == 4
    layouts = [json.loads((folder / "dataset.json").read_text()) for folder in made.folders.values()]
    assert ["modality" in layout for layout in layouts] == [True, False]
    assert ["channel_names" in layout for layout in layouts] == [False, True]
    assert {path.name for path in (made.folders["site_b"] / "imagesTr").iterdir()} == {
        f"case_00{i}_0000.nii.gz" for i in range(4)
    }


def test_held_out_cases_carry_every_class(made):
    for folder in made.held_out.values():
        assert check_folder(folder) == []
        datalist = read_datalist(folder)
        assert tuple(datalist.values) == PHANTOM_CLASSES
        assert datalist.evidence() == dict.fromkeys(PHANTOM_CLASSES, 1)
        values = set(np.unique(np.asarray(nib.load(datalist.cases[0].label).dataobj)))
        assert values >= {datalist.values[organ] for organ in PHANTOM_ORGANS}


def test_a_class_left_out_of_a_case_is_declared_and_not_drawn(made):
    datalist = read_datalist(made.folders["site_b"])
    missing = made.classes["site_b"][-1]
    assert [missing in case.annotated for case in datalist.cases] == [True, True, True, False]
    drawn = [(np.asarray(nib.load(case.label).dataobj) == datalist.values[missing]).any() for case in datalist.cases]
    assert drawn == [True, True, True, False]


def test_orientation_and_type_differ_between_sites_and_agree_with_the_masks(made):
    found = []
    for folder in made.folders.values():
        case = read_datalist(folder).cases[0]
        image, label = nib.load(case.image), nib.load(case.label)
        np.testing.assert_array_equal(image.affine, label.affine)
        found.append(("".join(nib.aff2axcodes(image.affine)), image.get_data_dtype()))
    assert found == [("RAS", np.int16), ("LPS", np.float32)]


def test_the_liver_is_on_the_right_in_every_orientation(made):
    for folder in made.held_out.values():
        datalist = read_datalist(folder)
        label = nib.load(datalist.cases[0].label)
        voxels = np.argwhere(np.asarray(label.dataobj) == datalist.values["liver"])
        assert nib.affines.apply_affine(label.affine, voxels).mean(0)[0] > 20


def test_the_same_recipe_is_kept_and_another_one_made_anew(tmp_path):
    calls = []
    first = generate_sites(tmp_path, 1, TINY, seed=0, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    image = first.folders["site_a"] / "imagesTr" / "case_000.nii.gz"
    before = image.read_bytes()
    assert generate_sites(tmp_path, 1, TINY, seed=0, progress=lambda *_: pytest.fail("made again")) == first
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe, "complete": False}))
    generate_sites(tmp_path, 1, TINY, seed=0)
    assert image.read_bytes() == before
    generate_sites(tmp_path, 1, TINY, seed=1)
    assert image.read_bytes() != before


def test_a_patient_does_not_depend_on_the_number_of_sites(made, tmp_path):
    alone = generate_sites(tmp_path, 1, TINY, seed=0)
    for one, other in ((alone.folders, made.folders), (alone.held_out, made.held_out)):
        paths = [folders["site_a"] / "imagesTr" / "case_000.nii.gz" for folders in (one, other)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "site_a").mkdir()
    (tmp_path / "site_a" / "mine.txt").write_text("patients")
    with pytest.raises(SitesError, match="name an empty folder"):
        generate_sites(tmp_path, 1, TINY, seed=0)
    assert (tmp_path / "site_a" / "mine.txt").exists()


def test_real_shapes_are_in_the_recipe_by_content(tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    values = np.zeros((20, 20, 20), np.uint8)
    values[4:16, 5:15, 6:14] = 2
    nib.save(nib.Nifti1Image(values, np.eye(4) * 2), maps / "one.nii.gz")
    phantom = PhantomConfig(cases=1, held_out=1, size_mm=(240, 200, 200), lesion_shapes=str(maps))
    assert "lesion_shapes" not in phantom_recipe(TINY)
    recipe = phantom_recipe(phantom)
    assert str(tmp_path) not in json.dumps(recipe)
    made = generate_sites(tmp_path / "sites", 1, phantom, seed=0)
    stamp = (made.root / "recipe.json").stat().st_mtime_ns
    maps.rename(tmp_path / "moved")
    moved = PhantomConfig(cases=1, held_out=1, size_mm=(240, 200, 200), lesion_shapes=str(tmp_path / "moved"))
    generate_sites(tmp_path / "sites", 1, moved, seed=0)
    assert (made.root / "recipe.json").stat().st_mtime_ns == stamp
    with pytest.raises(SitesError, match="is no folder"):
        generate_sites(tmp_path / "sites", 1, phantom, seed=0)


def test_sites_may_be_told_what_to_label(tmp_path):
    classes = {"site_a": ("liver", "liver tumor"), "site_b": ("spleen", "spleen tumor")}
    made = generate_sites(tmp_path, 2, TINY, seed=0, classes=classes)
    assert made.classes == classes
    for site, names in classes.items():
        assert read_datalist(made.folders[site]).labelled_classes == tuple(sorted(names))
    stamp = (tmp_path / "recipe.json").stat().st_mtime_ns
    generate_sites(tmp_path, 2, TINY, seed=0, classes=classes)
    assert (tmp_path / "recipe.json").stat().st_mtime_ns == stamp
    generate_sites(tmp_path, 2, TINY, seed=0)
    assert (tmp_path / "recipe.json").stat().st_mtime_ns > stamp


def test_sites_with_contrast_agent_keep_the_recipe_they_had_before_there_was_a_choice():
    assert "contrast" not in phantom_recipe(TINY)
    assert phantom_recipe(replace(TINY, contrast="native"))["contrast"] == "native"
