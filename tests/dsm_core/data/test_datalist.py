"""A site's folder is read the same in every layout, and refused with every fault at once."""

import json

import pytest

from dsm_core.classes import ClassKind
from dsm_core.data import DatalistError, read_datalist, site_folders, split_held_out


def test_both_layouts_say_the_same(make_site):
    msd, nnunet = read_datalist(make_site("a")), read_datalist(make_site("b", layout="nnunet"))
    paired = read_datalist(make_site("c", layout="nnunet", listed=False))
    for datalist in (msd, nnunet, paired):
        assert datalist.values == {"liver": 1, "liver tumor": 2}
        assert [case.name for case in datalist.cases] == ["pt_0", "pt_1"]
        assert all(case.annotated == ("liver", "liver tumor") for case in datalist.cases)
        assert all(case.image.is_file() and case.label.is_file() for case in datalist.cases)
    assert nnunet.cases[0].image.name == "pt_0_0000.nii.gz"
    assert msd.site == "a"
    assert read_datalist(msd.root, "north").site == "north"
    assert msd.classes["liver tumor"].kind is ClassKind.LESION
    assert msd.classes["liver tumor"].host == "liver"


def test_annotated_limits_what_a_case_knows(make_site):
    def edit(content):
        content["training"][1]["annotated"] = ["Liver"]
        content["test"] = ["./imagesTs/pt_99.nii.gz"]

    datalist = read_datalist(make_site(cases=3, edit=edit))
    assert [case.annotated for case in datalist.cases][1] == ("liver",)
    assert datalist.evidence() == {"liver": 3, "liver tumor": 2}
    assert datalist.subset(["pt_1"]).labelled_classes == ("liver",)
    with pytest.raises(KeyError):
        datalist.subset(["pt_7"])


def test_names_are_normalised_and_declared_classes_believed(make_site):
    def edit(content):
        content["labels"] = {"0": "Background", "1": "Left_Adrenal  Gland", "2": "Liver Tumour", "3": "shadow"}
        content["classes"] = {"Shadow": {"kind": "lesion", "host": "Left adrenal gland"}}

    datalist = read_datalist(make_site(edit=edit))
    assert datalist.values == {"left adrenal gland": 1, "liver tumor": 2, "shadow": 3}
    assert datalist.classes["shadow"].kind is ClassKind.LESION
    assert datalist.mask_values("left adrenal gland") == (1, 3)


def test_cases_without_label_map_are_kept_but_not_annotated(make_site):
    def edit(content):
        del content["training"][0]["label"]

    datalist = read_datalist(make_site(edit=edit))
    assert datalist.cases[0].label is None
    assert datalist.cases[0].annotated == ()
    assert [case.name for case in datalist.annotated_cases] == ["pt_1"]
    root = make_site("pairs", layout="nnunet", listed=False)
    (root / "labelsTr/pt_1.nii.gz").unlink()
    (root / "imagesTr/._pt_1_0000.nii.gz").touch()
    assert [case.label is None for case in read_datalist(root).cases] == [False, True]


def test_nnunet_regions_keep_every_value(make_site):
    def edit(content):
        content["labels"] = {"background": 0, "kidney": [1, 2], "kidney tumor": 2}
        content["regions_class_order"] = [1, 2]

    datalist = read_datalist(make_site(layout="nnunet", edit=edit))
    assert datalist.values == {"kidney": 1, "kidney tumor": 2}
    assert datalist.regions == {"kidney": (1, 2), "kidney tumor": (2,)}


def test_nnunet_2_dataset_table_is_read(make_site):
    def edit(content):
        listed = content.pop("training")
        content["dataset"] = {"one": {"images": [listed[1]["image"]], "label": listed[1]["label"]}}

    assert [case.name for case in read_datalist(make_site(layout="nnunet", edit=edit)).cases] == ["pt_1"]


def _set(key, value):
    def edit(content):
        content[key] = value

    return edit


def _case(**changes):
    def edit(content):
        content["training"][0].update(changes)

    return edit


BAD = {
    "no labels": (_set("labels", {}), "labels {}"),
    "only background": (_set("labels", {"0": "background"}), "without any class"),
    "labels as a list": (_set("labels", ["liver"]), "labels ['liver']"),
    "one name twice": (_set("labels", {"0": "background", "1": "liver", "2": "Liver"}), "'liver' more than once"),
    "one value twice": (_set("labels", {"background": 0, "liver": 1, "spleen": 1}), "value another class has"),
    "class at 0": (_set("labels", {"0": "liver", "1": "spleen"}), "'0': 'liver'"),
    "background at 1": (_set("labels", {"background": 1, "liver": 2}), "'background': 1"),
    "negative value": (_set("labels", {"background": 0, "liver": -1}), "-1"),
    "value as text": (_set("labels", {"background": 0, "liver": "one"}), "'one'"),
    "empty name": (_set("labels", {"0": "background", "1": " "}), "' '"),
    "regions without order": (
        _set("labels", {"background": 0, "kidney": [1, 2], "kidney tumor": 2}),
        "class_order None",
    ),
    "ignore label": (_set("labels", {"background": 0, "liver": 1, "ignore": 2}), "ignore"),
    "unknown class annotated": (_case(annotated=["heart"]), "['heart']"),
    "annotated as text": (_case(annotated="liver"), "annotated 'liver'"),
    "annotated without label": (_case(label=None, annotated=["liver"]), "without a label map"),
    "missing image": (_case(image="./imagesTr/none.nii.gz"), "no such file"),
    "missing label": (_case(label="./labelsTr/none.nii.gz"), "no such file"),
    "image outside": (_case(image="../other/imagesTr/pt_0.nii.gz"), "outside the site's folder"),
    "image outside, hidden": (_case(image="imagesTr/../../other/pt_0.nii.gz"), "outside the site's folder"),
    "label at an absolute path": (_case(label="/etc/hosts"), "outside the site's folder"),
    "case without image": (_case(image=None), "training entry 0"),
    "one case twice": (_case(image="./imagesTr/pt_1.nii.gz"), "listed twice"),
    "no case": (_set("training", []), "0 cases"),
    "nothing annotated": (_set("training", ["./imagesTr/pt_0.nii.gz"]), "none of them annotated"),
    "training as a number": (_set("training", 3), "training int"),
    "magnetic resonance": (_set("modality", {"0": "MRI"}), "'MRI'"),
    "two channels": (_set("modality", {"0": "CT", "1": "PET"}), "2 channels"),
    "file ending": (_set("file_ending", ".nrrd"), ".nrrd"),
    "declared but not labelled": (_set("classes", {"heart": {"kind": "organ"}}), "'heart'"),
    "neither organ nor lesion": (_set("classes", {"liver": {"kind": "blob"}}), "'blob'"),
    "organ with a host": (_set("classes", {"liver": {"kind": "organ", "host": "spleen"}}), "'spleen'"),
    "hosts itself": (_set("classes", {"liver tumor": {"host": "Liver tumor"}}), "host itself"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_fault_and_says_what_is_wanted(make_site, name):
    edit, found = BAD[name]
    with pytest.raises(DatalistError) as error:
        read_datalist(make_site(edit=edit))
    assert len(error.value.faults) == 1, error.value.details()
    fault = error.value.faults[0]
    assert found in fault.found
    assert fault.wanted


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "invalid JSON"),
        ("[]", "a JSON list"),
        ("{}", "an empty object"),
        (b"\xff\xfe{", "invalid JSON"),
        ('{"labels": {"0": "background", "1": "liver", "1": "spleen"}}', "'1' more than once"),
        (None, "no readable file"),
    ],
)
def test_broken_json_is_named(make_site, text, found):
    path = make_site() / "dataset.json"
    path.unlink() if text is None else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatalistError) as error:
        read_datalist(path.parent)
    assert found in error.value.faults[0].found
    assert error.value.faults[0].file == "dataset.json"


def test_every_fault_is_told_at_once_and_the_message_names_no_file(make_site):
    def edit(content):
        content["labels"]["3"] = "liver"
        content["training"][0]["image"] = "./imagesTr/smith_john.nii.gz"
        content["training"][1]["label"] = "../jones_mary.nii.gz"

    with pytest.raises(DatalistError) as error:
        read_datalist(make_site(edit=edit))
    assert len(error.value.faults) == 3
    assert "smith_john" in error.value.details()
    assert "jones_mary" in error.value.details()
    for private in ("smith", "jones", str(make_site("other").parent)):
        assert private not in str(error.value)
    assert "site_x: 3 fault(s)" in str(error.value)


def test_site_folders_are_sorted_and_leave_eval_out(make_site, tmp_path):
    for name in ("b", "eval", "a"):
        make_site(name)
    (tmp_path / "notes").mkdir()
    assert [path.name for path in site_folders(tmp_path)] == ["a", "b"]
    assert site_folders(tmp_path / "absent") == []


def test_split_is_by_seed_and_keeps_a_training_case_of_every_class(make_site):
    def edit(content):
        for item in content["training"][1:]:
            item["annotated"] = ["liver"]

    datalist = read_datalist(make_site(cases=8, edit=edit))
    splits = [split_held_out(datalist, 0.25, seed) for seed in range(10)]
    assert split_held_out(datalist, 0.25, 3) == splits[3]
    assert len({tuple(case.name for case in held.cases) for _, held in splits}) > 1
    for train, held in splits:
        assert (len(train.cases), len(held.cases)) == (6, 2)
        assert train.evidence()["liver tumor"] == 1
        assert not {case.name for case in train.cases} & {case.name for case in held.cases}
    assert split_held_out(datalist, 0, 0)[1].cases == ()
    with pytest.raises(ValueError, match="share"):
        split_held_out(datalist, 1.0, 0)


def test_datalist_survives_a_byte_order_mark(make_site):
    path = make_site() / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text())), encoding="utf-8-sig")
    assert len(read_datalist(path.parent).cases) == 2


def test_link_to_a_folder_does_not_tell_what_it_points_to(make_site, tmp_path):
    link = tmp_path / "mercy"
    link.symlink_to(make_site(), target_is_directory=True)
    assert read_datalist(link).site == "mercy"


def test_scans_of_one_patient_are_told_by_the_patient_key(make_site):
    def edit(content):
        content["training"][0]["patient"] = content["training"][2]["patient"] = "first"

    assert [case.patient for case in read_datalist(make_site(cases=3, edit=edit)).cases] == ["first", None, "first"]

    def spoil(content):
        content["training"][0]["patient"] = 7

    with pytest.raises(DatalistError, match="wanted `patient` as text"):
        read_datalist(make_site("b", edit=spoil))
