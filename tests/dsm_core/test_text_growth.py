"""A class that joins during a run has a vector, and no vector of an old class moves by a bit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dsm_core.classes import describe_class
from dsm_core.config import TextConfig
from dsm_core.text_building import build_text_space
from dsm_core.text_growth import grow_text_space
from dsm_core.text_space import TextSpace, TextSpaceError


def classes(*names):
    return [describe_class(name) for name in names]


@pytest.fixture(scope="module")
def space():
    return build_text_space(classes("liver", "spleen"), TextConfig(encoder="offline"))


def rows(space):
    return {name: vector.numpy().tobytes() for name, vector in zip(space.names, space.vectors, strict=True)}


def test_old_vectors_and_the_mean_stay_bit_for_bit(space):
    grown = grow_text_space(space, classes("omentum", "liver", "adrenal tumor"))
    assert grown.names == ("adrenal tumor", "liver", "omentum", "spleen")
    assert {name: rows(grown)[name] for name in space.names} == rows(space)
    assert grown.mean.numpy().tobytes() == space.mean.numpy().tobytes()
    assert grown.hash != space.hash
    assert TextSpace.from_bytes(grown.to_bytes()) == grown


def test_vector_of_a_new_class_is_the_one_that_its_name_had_as_a_phrase(space):
    before = space.encode(["omentum"])[0]
    grown = grow_text_space(space, classes("omentum"))
    assert torch.equal(grown.vectors[grown.index("omentum")], before)
    assert float(before.norm()) == pytest.approx(1, abs=1e-5)


def test_nothing_new_gives_the_same_space(space):
    assert grow_text_space(space, classes("liver")) is space


def test_growing_twice_equals_growing_once(space):
    once = grow_text_space(space, classes("omentum", "stomach"))
    twice = grow_text_space(grow_text_space(space, classes("stomach")), classes("omentum"))
    assert once.hash == twice.hash


def test_synonym_of_a_class_is_no_new_class():
    space = build_text_space(classes("kidney tumor"), TextConfig(encoder="offline"))
    with pytest.raises(TextSpaceError, match="'renal tumor' is a synonym of 'kidney tumor'"):
        grow_text_space(space, classes("renal tumor"))


def test_phrase_of_a_saved_bank_becomes_a_class_and_an_unknown_one_is_named(tmp_path):
    names = json.dumps(["liver", "spleen", "liver tumor"])
    save_file({"embeddings": torch.eye(3) * 2}, tmp_path / "bank.safetensors", metadata={"classes": names})
    config = TextConfig(encoder="bank", bank=str(tmp_path / "bank.safetensors"))
    space = TextSpace.from_bytes(build_text_space(classes("liver"), config).to_bytes())
    grown = grow_text_space(space, classes("spleen"))
    assert grown.phrases == ("liver tumor",)
    assert torch.equal(grown.vectors[1], space.encode(["spleen"])[0])
    with pytest.raises(TextSpaceError, match="does not hold 'aorta' and its encoder"):
        grow_text_space(grown, classes("aorta"))
