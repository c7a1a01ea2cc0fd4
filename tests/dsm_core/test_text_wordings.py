"""In which words a class is encoded, and that their vectors are averaged with equal weight."""

import pytest
import torch

from dsm_core.classes import ATLAS, describe_class
from dsm_core.config import TextConfig
from dsm_core.hashed_words import HashedWords
from dsm_core.text_appearance import appearance_of
from dsm_core.text_building import build_text_space
from dsm_core.text_wordings import Recipe, encode_classes, wordings


def test_name_synonyms_and_looks_stand_side_by_side():
    info = ATLAS["kidney cyst"]
    assert wordings(info, "name") == ("kidney cyst",)
    assert wordings(info, "synonyms") == ("kidney cyst", "renal cyst")
    *names, looks = wordings(info, "attributes")
    assert names == ["kidney cyst", "renal cyst"]
    assert looks == (
        "kidney cyst, in the kidney beside the lumbar spine, round with a sharp border, water density, no enhancement"
    )


def test_every_organ_of_the_atlas_and_every_lesion_with_a_host_has_looks():
    bare = [info.name for info in ATLAS.values() if appearance_of(info) is None]
    assert bare == [info.name for info in ATLAS.values() if info.kind == "lesion" and info.host is None]
    assert appearance_of(ATLAS["left kidney"]).location.startswith("on the left")
    assert appearance_of(describe_class("left thyroid lobe")) is None


class Axes:
    """Gives every phrase a vector of its own length and direction."""

    def encode(self, phrases):
        return torch.tensor(
            [{"kidney cyst": [3.0, 0.0], "renal cyst": [0.0, 1.0], "liver": [0.0, 5.0]}[p] for p in phrases]
        )


def test_a_wording_counts_by_its_direction_and_not_by_its_length():
    rows = encode_classes(Axes(), [ATLAS["kidney cyst"]], "synonyms")
    assert rows.tolist() == [[0.5, 0.5]]


def test_recipe_survives_its_dictionary():
    recipe = Recipe("ViT-B-32", ("a {}",), "synonyms")
    assert Recipe.from_dict({"model": "ViT-B-32", "prompts": ["a {}"], "detail": "synonyms"}) == recipe


def host_margin(detail):
    """Mean over lesions of the cosine to the own host organ less that to the nearest other organ."""
    space = build_text_space(ATLAS.values(), TextConfig(encoder="offline", detail=detail))
    organs = [info.name for info in ATLAS.values() if info.kind == "organ"]
    margins = []
    for info in ATLAS.values():
        if info.kind == "lesion" and info.host:
            near = {
                name: float(v)
                for name, v in zip(organs, space.encode(organs) @ space.encode([info.name])[0], strict=True)
            }
            own = {name for name in organs if f" {name}".endswith(f" {info.host}")}
            margins.append(max(near[name] for name in own) - max(near[name] for name in set(organs) - own))
    return sum(margins) / len(margins)


def test_why_hashed_words_take_the_name_alone():
    """The figures of the README: synonyms move nothing, descriptions share words between organs and hurt."""
    name, synonyms, attributes = map(host_margin, ("name", "synonyms", "attributes"))
    assert name == pytest.approx(0.555, abs=0.005)
    assert synonyms == pytest.approx(name, abs=0.01)
    assert attributes == pytest.approx(0.43, abs=0.01)
    assert HashedWords().left_out("word " * 1000) == ""
