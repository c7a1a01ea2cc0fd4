"""Phrases that were encoded elsewhere: kept per text space, found by dsm-predict, refused when damaged or foreign."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsm_core.classes import ATLAS
from dsm_core.config import TextConfig
from dsm_core.phrase_cache import cache_folder, keep_phrases, with_cached_phrases
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace, TextSpaceError


@pytest.fixture(scope="module")
def able():
    """A text space whose encoder is at hand, as at the coordinator."""
    return build_text_space([ATLAS["liver"], ATLAS["spleen"]], TextConfig())


@pytest.fixture
def site(able):
    """The same at a site without the encoder."""
    return replace(able, phrase_encoder=None)


def kept(folder):
    (path,) = folder.iterdir()
    return path


def test_a_kept_phrase_has_the_vector_that_the_encoder_gave_and_the_hash_stays(able, site, tmp_path):
    asked = ["Gallstone", "liver  abscess"]
    with pytest.raises(TextSpaceError, match=r"'gallstone', 'liver abscess'.*dsm-site encode"):
        site.encode(asked)
    keep_phrases(site, asked, able.encode(asked), tmp_path)
    found = with_cached_phrases(site, tmp_path)
    assert torch.equal(found.encode([*asked, "liver"]), able.encode([*asked, "liver"]))
    assert found.unknown([*asked, "spleen", "polyp"]) == ["polyp"]
    assert found == site
    assert TextSpace.from_bytes(found.to_bytes()).taught == {}


def test_phrases_are_added_to_those_kept_before(able, site, tmp_path):
    keep_phrases(site, ["gallstone"], able.encode(["gallstone"]), tmp_path)
    assert list(keep_phrases(site, ["polyp"], able.encode(["polyp"]), tmp_path).taught) == ["gallstone", "polyp"]
    assert list(with_cached_phrases(site, tmp_path).taught) == ["gallstone", "polyp"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_class_of_the_bank_keeps_its_row_whatever_is_kept(able, site, tmp_path):
    keep_phrases(site, ["liver"], able.encode(["gallstone"]), tmp_path)
    assert torch.equal(with_cached_phrases(site, tmp_path).encode(["liver"]), able.encode(["liver"]))


def test_another_text_space_has_none_of_them(able, site, tmp_path):
    keep_phrases(site, ["gallstone"], able.encode(["gallstone"]), tmp_path)
    other = replace(site, encoder="another")
    assert with_cached_phrases(other, tmp_path).taught == {}
    path = kept(tmp_path)
    path.rename(tmp_path / path.name.replace(site.hash, other.hash))
    with pytest.raises(TextSpaceError, match="of another text space"):
        with_cached_phrases(other, tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text"])
def test_a_damaged_file_is_named_with_what_to_do(able, site, tmp_path, damage):
    keep_phrases(site, ["gallstone"], able.encode(["gallstone"]), tmp_path)
    path = kept(tmp_path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    damaged = {"flip": bytes(content), "truncate": bytes(content[:-40]), "empty": b"", "text": b"not a cache"}
    path.write_bytes(damaged[damage])
    with pytest.raises(TextSpaceError, match=r"is damaged.*delete it"):
        with_cached_phrases(site, tmp_path)


def test_vectors_that_cannot_be_of_the_text_space_are_not_kept(able, site, tmp_path):
    good = able.encode(["gallstone"])
    for vectors in (good[:, 1:], good * 2, good * float("nan"), good[:0]):
        with pytest.raises(TextSpaceError, match="unit length"):
            keep_phrases(site, ["gallstone"], vectors, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("FED_DSM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FED_DSM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "fed-dsm"
