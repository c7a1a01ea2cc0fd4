"""What a class is by its words alone: organ or lesion, and the organ that hosts it."""

import pytest

from dsm_core.classes import ClassKind, describe_class


@pytest.mark.parametrize(
    ("phrase", "host"),
    [
        ("metastasis in the spleen", "spleen"),
        ("splenic abscess", "spleen"),
        ("hepatic hemangioma", "liver"),
        ("mass of the left kidney", "left kidney"),
        ("renal masses", "kidney"),
        ("small bowel lymphoma", "intestine"),
        ("thrombosis of the portal vein and splenic vein", "portal vein and splenic vein"),
        ("metastasis", None),
        ("brain tumour", None),
    ],
)
def test_lesion_and_its_host_by_words(phrase, host):
    info = describe_class(phrase)
    assert (info.kind, info.host) == (ClassKind.LESION, host)


@pytest.mark.parametrize("phrase", ["liver", "left thyroid lobe", "splenic artery", "gallstone"])
def test_what_holds_no_lesion_word_is_an_organ_without_host(phrase):
    info = describe_class(phrase)
    assert (info.kind, info.host) == (ClassKind.ORGAN, None)
