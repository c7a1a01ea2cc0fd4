"""Contracts say what a site labelled; conflicts between sites are told all at once, with both names."""

import json

import pytest

from dsm_core.classes import ClassKind
from dsm_core.data import (
    ClassContract,
    ContractError,
    LabelContract,
    contract_classes,
    find_conflicts,
    label_contract,
    read_datalist,
    summarise,
)

ORGAN, LESION = ClassKind.ORGAN, ClassKind.LESION


def contract(site, **classes):
    return LabelContract(site, 5, {name.replace("_", " "): ClassContract(*held, 5) for name, held in classes.items()})


def test_contract_of_a_folder_counts_its_cases(make_site):
    def edit(content):
        content["labels"]["3"] = "spleen"
        for item in content["training"]:
            item["annotated"] = ["liver", "liver tumor"]
        content["training"][0]["annotated"] = ["liver"]
        content["training"][3]["annotated"] = []

    datalist = read_datalist(make_site(cases=4, edit=edit))
    held = label_contract(datalist, summarise(datalist))
    assert held.cases == 3
    assert held.classes == {"liver": ClassContract(ORGAN, None, 3), "liver tumor": ClassContract(LESION, "liver", 2)}
    assert held.evidence() == {"liver": 3, "liver tumor": 2}
    sent = json.dumps(held.to_dict())
    assert LabelContract.from_dict(json.loads(sent)) == held
    assert "pt_" not in sent
    assert str(datalist.root) not in sent


def test_sites_that_agree_have_no_conflict():
    a = contract("a", liver=(ORGAN, None), liver_tumor=(LESION, "liver"))
    b = contract("b", spleen=(ORGAN, None), liver_tumor=(LESION, None), radiotherapy_target=(LESION, None))
    assert find_conflicts([a, b]) == []
    assert [(c.name, c.host) for c in contract_classes([b, a])] == [
        ("liver", None),
        ("liver tumor", "liver"),
        ("radiotherapy target", None),
        ("spleen", None),
    ]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"shadow": (ORGAN, None)}, {"shadow": (LESION, None)}, ["'shadow'", "organ at a", "lesion at b"]),
        ({"shadow": (LESION, "liver")}, {"shadow": (LESION, "spleen")}, ["liver at a", "spleen at b"]),
        ({"shadow": (LESION, "wing")}, {"liver": (ORGAN, None)}, ["'shadow'", "wing at a"]),
        (
            {"kidney_tumor": (LESION, "kidney")},
            {"renal_tumor": (LESION, None)},
            ["'kidney tumor' at a", "'renal tumor' at b"],
        ),
        ({"left_kidney": (ORGAN, None)}, {"kidney_left": (ORGAN, None)}, ["'kidney left' at b", "'left kidney' at a"]),
        ({"oesophagus": (ORGAN, None)}, {"esophagus": (ORGAN, None)}, ["'esophagus' at b", "'oesophagus' at a"]),
    ],
)
def test_each_conflict_names_both_sites(first, second, words):
    conflicts = find_conflicts([contract("a", **first), contract("b", **second)])
    assert len(conflicts) == 1
    assert all(word in conflicts[0] for word in words), conflicts


def test_a_host_that_another_site_labels_is_known():
    assert find_conflicts([contract("a", spot=(LESION, "wing")), contract("b", wing=(ORGAN, None))]) == []


def test_all_conflicts_come_at_once():
    a = contract("a", shadow=(ORGAN, None), kidney_cyst=(LESION, "kidney"), spot=(LESION, "wing"))
    b = contract("b", shadow=(LESION, None), renal_cyst=(LESION, None))
    assert len(find_conflicts([a, b, LabelContract("b", 1, {})])) == 5
    assert "no site" in find_conflicts([])[0]


GOOD = {"site": "a", "cases": 2, "classes": {"liver": {"kind": "organ", "host": None, "cases": 2}}}


@pytest.mark.parametrize(
    "change",
    [
        {"site": ""},
        {"cases": 0},
        {"cases": True},
        {"classes": []},
        {"classes": {"Liver": GOOD["classes"]["liver"]}},
        {"classes": {"liver": {"kind": "blob", "host": None, "cases": 2}}},
        {"classes": {"liver": {"kind": "organ", "host": None, "cases": 3}}},
        {"classes": {"liver": {"kind": "organ", "host": None}}},
        {"fingerprint": {"size": 1}},
    ],
)
def test_a_broken_contract_is_refused(change):
    assert LabelContract.from_dict(GOOD).evidence() == {"liver": 2}
    with pytest.raises(ContractError, match="not a label contract"):
        LabelContract.from_dict({**GOOD, **change})
    with pytest.raises(ContractError):
        LabelContract.from_dict(None)
