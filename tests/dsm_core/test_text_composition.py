"""Phrases of lesions without a text tower: composed from a bank's vectors, and right where the vector is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import TextConfig
from dsm_core.text_bank import Bank, read_bank
from dsm_core.text_building import build_text_space, centre_bank
from dsm_core.text_composition import Composition, with_composition
from dsm_core.text_space import TextSpace, TextSpaceError

REAL_BANK = Path(__file__).parents[3] / "shared" / "data" / "text_space" / "clip_vit_b32_dsm45.safetensors"
NAMES = ("right kidney", "left kidney", "liver", "spleen", "pancreas", "liver tumor", "spleen tumor", "liver cyst")


@pytest.fixture
def space():
    """Organs in any direction, each lesion its organ and one step for its kind: what composition takes for granted."""
    draw = torch.Generator().manual_seed(0)
    organs = {name: torch.randn(32, generator=draw) for name in NAMES[:5]}
    steps = {kind: torch.randn(32, generator=draw) for kind in ("tumor", "cyst")}
    lesions = {name: organs[name.split()[0]] + steps[name.split()[1]] for name in NAMES[5:]}
    rows = torch.stack([*organs.values(), *lesions.values()])
    infos = tuple(describe_class(name) for name in NAMES)
    return replace(centre_bank(Bank(infos, rows + 3, "by hand"), infos, "by hand"), phrase_encoder=None)


def test_lesion_of_an_organ_goes_the_way_of_its_kind(space):
    able = with_composition(space)
    step = (space.encode(["liver tumor", "spleen tumor"]) - space.encode(["liver", "spleen"])).mean(dim=0)
    wanted = torch.nn.functional.normalize(space.encode(["pancreas"])[0] + step, dim=0)
    for phrase in ("pancreatic metastases", "lesion in the pancreas", "pancreas neoplasm"):
        assert torch.allclose(able.encode([phrase])[0], wanted, atol=1e-5)
    cyst = torch.nn.functional.normalize(
        space.encode(["pancreas"])[0] + space.encode(["liver cyst"])[0] - space.encode(["liver"])[0], dim=0
    )
    assert torch.allclose(able.encode(["cyst of the pancreas"])[0], cyst, atol=1e-5)


def test_organ_that_is_known_by_its_sides_lies_between_them(space):
    found = with_composition(space).encode(["renal metastasis"])[0]
    sides = space.encode(["right kidney", "left kidney"])
    assert float((found @ sides.T).min()) > float((found @ space.encode(["liver", "pancreas"]).T).max())


def test_class_of_the_bank_keeps_its_row_and_the_hash_stays(space):
    able = with_composition(space)
    assert torch.equal(
        able.encode(["metastasis in the liver", "liver tumor"])[1], space.vectors[space.index("liver tumor")]
    )
    assert able == space


@pytest.mark.parametrize("phrase", ["omentum", "lesion in the brain", "gallstone", "thrombus of the liver"])
def test_what_is_no_lesion_of_a_known_organ_and_kind_is_refused(space, phrase):
    with pytest.raises(TextSpaceError, match="words name no lesion of an organ that it holds; have them encoded"):
        with_composition(space).encode(["lesion of the liver", phrase])


def test_text_space_with_an_encoder_is_left_as_it_is():
    able = build_text_space([describe_class("liver")], TextConfig(encoder="offline"))
    assert with_composition(able) is able
    assert not isinstance(able.phrase_encoder, Composition)


@pytest.fixture(scope="module")
def real():
    if not REAL_BANK.is_file():
        pytest.skip("shared/data/text_space is not here")
    return read_bank(REAL_BANK)


def test_each_lesion_of_the_clip_bank_is_found_again_from_the_others(real):
    """The figures in the module: 16 of 18 nearest to their own vector, mean cosine 0.77."""
    whole = centre_bank(real, real.classes, real.model)
    lesions = [info.name for info in real.classes if info.kind is ClassKind.LESION]
    cosines, right = [], 0
    for info in real.classes:
        rest = tuple(other for other in whole.classes if other.name != info.name)
        rows = torch.stack([whole.vectors[whole.index(other.name)] for other in rest])
        without = TextSpace(rest, rows, whole.mean, "all but one")
        try:
            found = Composition(without)._compose(info)
        except TextSpaceError:
            continue
        if found is not None:
            near = whole.encode(lesions) @ found
            cosines.append(float(whole.vectors[whole.index(info.name)] @ found))
            right += lesions[int(near.argmax())] == info.name
    assert (right, len(cosines)) == (16, 18)
    assert sum(cosines) / len(cosines) == pytest.approx(0.77, abs=0.01)


@pytest.mark.parametrize(
    ("phrase", "name"),
    [
        ("splenic metastasis", "spleen tumor"),
        ("metastasis in the spleen", "spleen tumor"),
        ("lesion in the spleen", "spleen tumor"),
        ("hepatic nodules", "liver tumor"),
        ("carcinoma of the left kidney", "kidney tumor"),
        ("cystic lesion of the kidney", "kidney cyst"),
        ("gastric lymphoma", "stomach tumor"),
    ],
)
def test_free_phrases_lie_nearest_to_their_lesion_in_both_text_spaces(real, phrase, name):
    clip = with_composition(replace(centre_bank(real, real.classes, real.model), phrase_encoder=None))
    hashed = build_text_space(real.classes, TextConfig(encoder="offline"))
    for space in (clip, hashed):
        lesions = [info.name for info in space.classes if info.kind is ClassKind.LESION]
        near = space.encode(lesions) @ space.encode([phrase])[0]
        assert lesions[int(near.argmax())] == name
