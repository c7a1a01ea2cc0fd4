"""The text space: geometry of the bank, content hash, phrases, encoders that are and are not at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsm_core.classes import ATLAS, describe_class
from dsm_core.config import TextConfig
from dsm_core.text_bank import SavedEmbeddings, read_bank
from dsm_core.text_building import build_text_space
from dsm_core.text_growth import grow_text_space
from dsm_core.text_space import TextSpace, TextSpaceError

REAL_BANK = Path(__file__).parents[3] / "shared" / "data" / "text_space" / "clip_vit_b32_dsm45.safetensors"


def classes(*names):
    return [describe_class(name) for name in names]


def cosine(space, one, other):
    first, second = space.encode([one, other])
    return float(first @ second)


@pytest.fixture(scope="module")
def atlas_space():
    return build_text_space(ATLAS.values(), TextConfig())


@pytest.fixture
def small_bank(tmp_path):
    path = tmp_path / "bank.safetensors"
    rows = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
    names = json.dumps(["Liver", "Spleen", "Liver Tumor"])
    save_file({"embeddings": rows}, path, metadata={"classes": names, "model": "worked by hand"})
    return path


def test_vectors_are_normalised_centred_and_normalised_again(small_bank):
    space = build_text_space(classes("liver", "spleen"), TextConfig(encoder="bank", bank=str(small_bank)))
    assert torch.allclose(space.mean, torch.full((3,), 1 / 3))
    by_hand = torch.tensor([2.0, -1.0, -1.0]) / 6**0.5
    assert torch.allclose(space.vectors[space.index("liver")], by_hand, atol=1e-6)


def test_bank_is_nearly_uncorrelated_after_centring(atlas_space):
    likeness = atlas_space.vectors @ atlas_space.vectors.T
    count = len(likeness)
    assert abs(float((likeness.sum() - count) / (count * (count - 1)))) < 0.03
    assert torch.allclose(atlas_space.vectors.norm(dim=1), torch.ones(count), atol=1e-5)
    assert atlas_space.names == tuple(sorted(ATLAS))


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ("liver tumor", "liver", 0.55, 0.75),
        ("liver tumor", "kidney tumor", 0.25, 0.45),
        ("right kidney", "left kidney", 0.6, 0.8),
        ("liver", "kidney", -0.15, 0.15),
        ("hepatic metastases", "liver tumor", 0.99, 1.01),
        ("splenic lesion", "spleen tumor", 0.75, 0.99),
        ("tumour of the right kidney", "kidney tumor", 0.75, 0.99),
        ("abscess of the liver", "liver", 0.4, 0.8),
    ],
)
def test_hashed_words_place_phrases_by_organ_lesion_and_side(atlas_space, one, other, low, high):
    assert low < cosine(atlas_space, one, other) < high


@pytest.mark.parametrize("phrase", ["Liver_Tumour", "  liver   TUMOR ", "hepatic tumor", "liver metastasis"])
def test_spellings_and_synonyms_give_the_bank_row(atlas_space, phrase):
    assert torch.equal(atlas_space.encode([phrase])[0], atlas_space.vectors[atlas_space.index("liver tumor")])
    assert atlas_space.find(phrase) == ATLAS["liver tumor"]


def test_hashed_words_are_equal_in_another_process(atlas_space):
    code = (
        "from dsm_core.classes import ATLAS; from dsm_core.config import TextConfig;"
        "from dsm_core.text_building import build_text_space;"
        "print(build_text_space(ATLAS.values(), TextConfig()).hash)"
    )
    root = Path(__file__).parents[2]
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert other.stdout.strip() == atlas_space.hash


def test_offline_encoder_is_named_as_what_it_is_and_auto_needs_no_weights(atlas_space):
    assert atlas_space.encoder == "hashed words (deterministic, not CLIP)"


def test_round_trip_keeps_hash_rows_and_free_phrases(atlas_space):
    again = TextSpace.from_bytes(atlas_space.to_bytes())
    assert again == atlas_space
    assert again.classes == atlas_space.classes
    assert torch.equal(again.encode(["splenic abscess"]), atlas_space.encode(["splenic abscess"]))


def test_another_float_another_name_or_another_host_is_another_hash(atlas_space):
    moved = atlas_space.vectors.clone()
    moved[0, 0] += 1e-4
    hosted = (replace(atlas_space.classes[0], host="pancreas"), *atlas_space.classes[1:])
    others = {
        replace(atlas_space, vectors=moved).hash,
        replace(atlas_space, classes=hosted).hash,
        replace(atlas_space, encoder="something else").hash,
    }
    assert len(others | {atlas_space.hash}) == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text"])
def test_corrupted_content_is_refused(atlas_space, damage):
    content = bytearray(atlas_space.to_bytes())
    content[-5] ^= 1
    damaged = {"flip": bytes(content), "truncate": bytes(content[:-40]), "empty": b"", "text": b"not a text space"}
    with pytest.raises(TextSpaceError, match=r"corrupted|cannot be read"):
        TextSpace.from_bytes(damaged[damage])


def test_save_and_load(tmp_path, atlas_space):
    atlas_space.save(tmp_path / "text_space.safetensors")
    assert TextSpace.load(tmp_path / "text_space.safetensors") == atlas_space
    assert [path.name for path in tmp_path.iterdir()] == ["text_space.safetensors"]
    with pytest.raises(TextSpaceError, match="no text space"):
        TextSpace.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("phrase", ["", "   ", "?!", "_"])
def test_a_phrase_without_words_is_refused(atlas_space, phrase):
    with pytest.raises(TextSpaceError, match="needs words"):
        atlas_space.encode([phrase])


def test_index_of_an_absent_class_says_which_there_are():
    space = build_text_space(classes("liver", "spleen"), TextConfig())
    with pytest.raises(TextSpaceError, match=r"'kidney'.*liver, spleen"):
        space.index("kidney")


def test_no_class_and_doubled_class_are_refused():
    with pytest.raises(TextSpaceError, match="found none"):
        build_text_space([], TextConfig())
    with pytest.raises(TextSpaceError, match="liver"):
        build_text_space(classes("liver", "liver"), TextConfig())


def test_class_outside_the_atlas_joins_by_its_text():
    space = build_text_space(classes("liver", "left thyroid lobe"), TextConfig())
    assert cosine(space, "left thyroid lobe", "thyroid") > 0.5
    assert abs(cosine(space, "left thyroid lobe", "liver")) < 0.2


def test_bank_names_every_missing_class(small_bank):
    with pytest.raises(TextSpaceError, match=r"'kidney', 'mandible'"):
        build_text_space(classes("liver", "kidney", "mandible"), TextConfig(encoder="bank", bank=str(small_bank)))


@pytest.mark.parametrize("bank", [None, "absent.safetensors", __file__])
def test_unusable_bank_is_named(bank):
    with pytest.raises(TextSpaceError, match=r"text\.bank"):
        build_text_space(classes("liver"), TextConfig(encoder="bank", bank=bank))


def test_site_without_the_encoder_still_queries_every_name_of_the_bank(small_bank):
    config = TextConfig(encoder="bank", bank=str(small_bank))
    sent = build_text_space(classes("liver"), config).to_bytes()
    at_site = TextSpace.from_bytes(sent)
    assert at_site.encode(["liver tumor", "spleen"]).shape == (2, 3)
    with pytest.raises(TextSpaceError, match=r"'gallstone'.*not at hand"):
        at_site.encode(["liver", "gallstone"])
    assert at_site.with_encoder(config).phrase_encoder is not None
    with pytest.raises(TextSpaceError, match="was made by bank"):
        at_site.with_encoder(TextConfig(encoder="offline"))


def test_real_clip_bank_reaches_the_measured_geometry():
    if not REAL_BANK.is_file():
        pytest.skip("shared/data/text_space is not here")
    space = build_text_space(classes("liver", "liver tumor"), TextConfig(encoder="bank", bank=str(REAL_BANK)))
    assert cosine(space, "liver", "liver tumor") == pytest.approx(0.73, abs=0.02)
    assert cosine(space, "liver tumor", "kidney tumor") == pytest.approx(0.41, abs=0.02)


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("metastasis in the spleen", "spleen tumor"),
        ("splenic metastases", "spleen tumor"),
        ("cancer of the pancreas", "pancreas tumor"),
        ("the liver", "liver"),
        ("kidney, left", "left kidney"),
        ("lesion in the spleen", None),  # a lesion is not a metastasis
        ("?!", None),
    ],
)
def test_the_same_words_in_another_form_name_the_class(atlas_space, phrase, name):
    found = atlas_space.find(phrase)
    assert (found and found.name) == name


def test_words_that_two_classes_share_name_neither():
    rectum = replace(describe_class("rectal tumor"), synonyms=("mass of the pelvis",))
    prostate = replace(describe_class("prostate tumor"), synonyms=("pelvis mass",))
    space = build_text_space([rectum, prostate], TextConfig())
    assert space.find("masses in the pelvis") is None
    assert space.find("pelvis mass") == prostate


def test_phrase_that_names_a_class_of_the_atlas_has_the_vector_that_the_class_will_have(small_bank):
    space = build_text_space(classes("liver"), TextConfig(encoder="bank", bank=str(small_bank)))
    assert torch.equal(space.encode(["hepatic tumor"]), space.encode(["liver tumor"]))
    hashed = build_text_space(classes("liver"), TextConfig(encoder="offline", detail="synonyms"))
    grown = grow_text_space(hashed, classes("kidney cyst"))
    assert torch.equal(hashed.encode(["renal cyst"])[0], grown.vectors[grown.index("kidney cyst")])


def test_detail_is_part_of_the_content_and_the_plain_name_changes_no_hash(atlas_space):
    named = build_text_space(ATLAS.values(), TextConfig(detail="name"))
    described = build_text_space(ATLAS.values(), TextConfig(detail="attributes"))
    assert named.hash == atlas_space.hash
    assert b"recipe" not in atlas_space.to_bytes()[:40000]
    assert TextSpace.from_bytes(described.to_bytes()).recipe.detail == "attributes"
    assert described.hash != named.hash


def test_encoder_of_another_width_is_refused_with_both_widths(atlas_space, small_bank):
    with pytest.raises(TextSpaceError, match=r"has vectors of 512 numbers; bank of 3 classes .* gives 3"):
        replace(atlas_space, classes=(ATLAS["liver"],)).with_encoder(SavedEmbeddings(read_bank(small_bank)))
