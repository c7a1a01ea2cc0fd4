"""Masks land exactly where the scan's own grid says, in one pass for all queries (a stub sees brightness only)."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from dsm_core.classes import describe_class
from dsm_core.config import DataConfig, ModelConfig, TextConfig
from dsm_core.data.volumes import Volume
from dsm_core.inference import Predictor, predict_volume
from dsm_core.model import build_model
from dsm_core.text_space import TextSpaceError, build_text_space

DATA = DataConfig(spacing_mm=(4.0, 4.0, 4.0), intensity_hu=(-100.0, 100.0), patch=(16, 16, 16))
TEXT = build_text_space([describe_class(name) for name in ("liver", "right kidney", "kidney tumor")], TextConfig())


@dataclass
class Asked:
    names: list[str]
    text: torch.Tensor

    @property
    def asked(self):
        return tuple(range(len(self.names)))


class Brightness(nn.Module):
    """Finds the liver above 0.5, the right kidney below 0.2, a tumor above 0.8; presence says whether it found any."""

    def __init__(self):
        super().__init__()
        self.encoded = 0

    def query_set(self, names, text):
        return Asked(list(names), text.encode(list(names)))

    def encode_image(self, image):
        assert image.shape[1:] == (1, *DATA.patch)
        self.encoded += len(image)
        return image

    def decode(self, image, queries):
        rules = {
            "liver": image - 0.5,
            "right kidney": 0.2 - image,
            "kidney tumor": image - 0.8,
            "everything": torch.ones_like(image),
            "shy": torch.ones_like(image),
        }
        logits = torch.cat([40 * rules[name] for name in queries.names], 1)
        present = [torch.full((len(image),), -4.0 if name == "shy" else 4.0) for name in queries.names]
        return SimpleNamespace(mask_logits=logits, presence_logits=torch.stack(present, 1))


@pytest.fixture
def predictor():
    return Predictor(Brightness(), TEXT, DATA)  # type: ignore[arg-type]


def write_scan(path, affine, shape=(40, 36, 30)):
    """A bright box of soft tissue in air; returns where the box is."""
    values = np.full(shape, -1000, dtype=np.int16)
    box = np.zeros(shape, dtype=bool)
    box[8:30, 6:24, 4:26] = True
    values[2:38, 2:34, 2:28] = -40
    values[box] = 60
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return box


def oblique(spacing_mm):
    turn = np.deg2rad(7)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing_mm)
    affine[:3, 3] = (-50, 30, 12)
    return affine


GRIDS = {
    "RAS": np.diag([3.0, 3.0, 5.0, 1.0]),
    "LPS": np.array([[-2.0, 0, 0, 70], [0, -2.0, 0, 40], [0, 0, 2.5, -300], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, -4.0, 10], [3.0, 0, 0, -20], [0, -2.0, 0, 5], [0, 0, 0, 1]]),
    "oblique": oblique((3.0, 3.0, 4.0)),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_mask_lies_in_the_scans_own_grid(tmp_path, predictor, grid):
    box = write_scan(tmp_path / "scan.nii.gz", GRIDS[grid])
    prediction = predictor.predict(tmp_path / "scan.nii.gz", ["liver"], keep_probabilities=True)
    mask = prediction.masks[0].numpy()
    assert mask.shape == box.shape
    assert np.array_equal(prediction.affine, nibabel.load(tmp_path / "scan.nii.gz").affine)
    assert 2 * (mask & box).sum() / (mask.sum() + box.sum()) > 0.93
    centres = [np.argwhere(held).mean(0) for held in (mask, box)]
    assert np.abs(centres[0] - centres[1]).max() < 0.2
    assert prediction.probabilities.dtype == torch.float16
    assert bool((prediction.probabilities[0][prediction.masks[0]] >= 0.499).all())
    assert bool((prediction.probabilities[0][~prediction.masks[0]] <= 0.501).all())


def test_slabs_do_not_change_the_mask(tmp_path, predictor, monkeypatch):
    write_scan(tmp_path / "scan.nii.gz", GRIDS["oblique"])
    whole = predictor.predict(tmp_path / "scan.nii.gz", ["liver"]).masks
    monkeypatch.setattr("dsm_core.inference._SLAB_VOXELS", 7 * 36 * 30)
    assert torch.equal(predictor.predict(tmp_path / "scan.nii.gz", ["liver"]).masks, whole)


def test_volume_in_millilitres(tmp_path, predictor):
    box = write_scan(tmp_path / "scan.nii.gz", GRIDS["RAS"])
    (volume_ml,) = predictor.predict(tmp_path / "scan.nii.gz", ["liver"]).volumes_ml()
    assert volume_ml == pytest.approx(box.sum() * 45 / 1000, rel=0.1)


def test_features_are_computed_once_for_all_queries(predictor):
    image = torch.rand(1, 28, 28, 28)
    queries = ["liver", "right kidney", "kidney tumor"]
    together, _ = predict_volume(predictor.model, image, predictor.model.query_set(queries, TEXT), DATA)
    assert predictor.model.encoded == 8
    for row, query in enumerate(queries):
        alone, _ = predict_volume(predictor.model, image, predictor.model.query_set([query], TEXT), DATA)
        assert torch.allclose(alone[0], together[row], atol=1e-6)


def test_windows_of_air_are_skipped_and_hold_nothing(predictor):
    image = torch.zeros(1, 28, 28, 28)
    image[:, 2:8, 2:8, 2:8] = 0.9
    probabilities, presence = predict_volume(
        predictor.model, image, predictor.model.query_set(["right kidney"], TEXT), DATA
    )
    assert predictor.model.encoded == 1
    assert float(probabilities[0, 20:, 20:, 20:].max()) == 0
    assert float(presence[0]) > 0.9


def test_scan_smaller_than_a_window_keeps_its_shape(predictor):
    image = torch.rand(1, 9, 16, 5)
    probabilities, _ = predict_volume(predictor.model, image, predictor.model.query_set(["liver"], TEXT), DATA)
    assert probabilities.shape == (1, 9, 16, 5)
    assert torch.equal(probabilities[0] > 0.5, image[0] > 0.5)


def test_presence_gate_silences_what_is_not_there(predictor):
    image = torch.rand(1, 16, 16, 16)
    queries = predictor.model.query_set(["everything", "shy"], TEXT)
    free, presence = predict_volume(predictor.model, image, queries, DATA)
    gated, _ = predict_volume(predictor.model, image, queries, DATA, presence_gate=True)
    assert float(free.min()) > 0.9
    assert float(presence[1]) < 0.1
    assert float(gated[0].min()) > 0.9
    assert float(gated[1].max()) < 0.1


def test_training_mode_is_given_back(predictor):
    image = torch.rand(1, 16, 16, 16)
    predictor.model.train()
    predict_volume(predictor.model, image, predictor.model.query_set(["liver"], TEXT), DATA)
    assert predictor.model.training


def test_lesions_are_kept_near_their_host_only_where_asked():
    image = torch.full((1, 32, 16, 16), 0.4)
    image[:, 2:8] = 0.1
    image[:, 10:12] = 0.9
    image[:, 24:28] = 0.9
    volume = Volume(image, None, None, torch.diag(torch.tensor([4.0, 4, 4, 1])).double(), (4.0, 4.0, 4.0))  # type: ignore[arg-type]
    found = {}
    for margin in (None, 16.0):
        predictor = Predictor(Brightness(), TEXT, DATA, host_margin_mm=margin)  # type: ignore[arg-type]
        prediction = predictor.predict(volume, ["kidney tumor", "liver"])
        assert prediction.masks.shape == (2, 32, 16, 16)
        found[margin] = prediction.masks[0].any(2).any(1).nonzero()[:, 0].tolist()
        assert prediction.masks[1, 24:28].all()
    assert found == {None: [10, 11, 24, 25, 26, 27], 16.0: [10, 11]}


def test_queries_are_understood_by_name_synonym_or_words(predictor):
    classes = predictor.understand(["Liver", "renal cell carcinoma", "splenic cyst"])
    assert [info.name for info in classes] == ["liver", "kidney tumor", "splenic cyst"]
    assert [str(info.kind) for info in classes] == ["organ", "lesion", "lesion"]


@pytest.mark.parametrize("queries", [[], ["liver", " "]])
def test_no_query_and_empty_query_are_refused(predictor, queries):
    with pytest.raises(TextSpaceError, match=r"no query|empty phrase"):
        predictor.understand(queries)


def test_the_real_model_answers_any_phrase_in_one_pass():
    torch.manual_seed(0)
    model = build_model(ModelConfig(), TEXT)
    data = DataConfig(patch=(32, 32, 32))
    volume = Volume(torch.rand(1, 40, 30, 34), None, None, torch.eye(4).double() * 4, (4.0, 4.0, 4.0))  # type: ignore[arg-type]
    prediction = Predictor(model, TEXT, data).predict(
        volume, ["kidney tumor", "abscess of the spleen", "liver"], keep_probabilities=True
    )
    assert prediction.probabilities.shape == (3, 40, 30, 34)
    assert torch.isfinite(prediction.probabilities).all()
    assert ((prediction.presence > 0) & (prediction.presence < 1)).all()
