"""Masks land exactly where the scan's own grid says, in one pass for all queries (a stub sees brightness only)."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import DataConfig, ModelConfig, TextConfig
from dsm_core.data.volumes import Volume
from dsm_core.hosts import HostError
from dsm_core.inference import NoPriorError, Predictor
from dsm_core.model import (
    DSMOutput,
    Features,
    QuerySet,
    SharedVector,
    TumorAnswer,
    VisualPrompt,
    build_model,
)
from dsm_core.model.prompt import PROMPT_CHANNELS, SPREADS
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpaceError
from dsm_core.volume_answers import predict_volume

DATA = DataConfig(spacing_mm=(4.0, 4.0, 4.0), intensity_hu=(-100.0, 100.0), patch=(16, 16, 16))
TEXT = build_text_space([describe_class(name) for name in ("liver", "right kidney", "kidney tumor")], TextConfig())


class Brightness(nn.Module):
    """Finds the liver above 0.5, the right kidney below 0.2, a tumor above 0.8; presence says whether it found any.

    Its prior takes everything for healthy that is 0.4 bright; it was trained on the two organs.
    """

    def __init__(self):
        super().__init__()
        self.encoded = 0
        self.void, self.tumors = SharedVector(2), SimpleNamespace(feature_width=1)
        self.prior = SimpleNamespace(is_trained=True)

    def query_set(self, names, text, host=None):
        infos = [text.find(name) or describe_class(name) for name in names]
        lesions = [info.name for info in infos if info.kind is ClassKind.LESION]
        organs = ["liver", "right kidney"]
        names = (*organs, *dict.fromkeys(lesions))
        hosts = torch.zeros(len(names) - 2, 3)
        for row, name in enumerate(names[2:]):
            known = {"kidney tumor": "right kidney"}.get(name, host)
            hosts[row, organs.index(known) if known else 2] = 1.0
        asked = tuple(names.index(info.name) for info in infos)
        rows = torch.arange(len(names))
        return QuerySet(names, 2, 2, torch.zeros(len(names), text.vectors.shape[1]), rows, hosts, asked)

    def encode_image(self, image):
        assert image.shape[1:] == (1, *DATA.patch)
        self.encoded += len(image)
        return Features(F.avg_pool3d(image, 8), F.avg_pool3d(image, 4), image)

    def find_organs(self, features, queries, organs):
        image = features.pixels
        logits = torch.cat([40 * (image - 0.5, 0.2 - image)[organ] for organ in organs], 1)
        shape = len(image), len(organs)
        return DSMOutput(logits, torch.full(shape, 4.0), torch.zeros(*shape, 1), (), torch.zeros(len(image), 3, 2))

    def visual_prompt(self, image, reading, organ_text):
        channels = (F.avg_pool3d(image, 2) - 0.4).expand(-1, PROMPT_CHANNELS, -1, -1, -1) / SPREADS
        nothing = torch.zeros(1)
        return VisualPrompt(channels, nothing, reading.probabilities, reading.queries, reading.eighth, image)

    def find_tumors(self, prompt, queries):
        count = len(queries.names) - queries.organs
        logits = (40 * (prompt.quarter - 0.8)).expand(-1, count, -1, -1, -1)
        return TumorAnswer(logits, torch.full((1, count), -3.0), torch.zeros(1, count, 1), logits)


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
    monkeypatch.setattr("dsm_core.own_grid._SLAB_VOXELS", 7 * 36 * 30)
    assert torch.equal(predictor.predict(tmp_path / "scan.nii.gz", ["liver"]).masks, whole)


def test_volume_in_millilitres(tmp_path, predictor):
    box = write_scan(tmp_path / "scan.nii.gz", GRIDS["RAS"])
    (volume_ml,) = predictor.predict(tmp_path / "scan.nii.gz", ["liver"]).volumes_ml()
    assert volume_ml == pytest.approx(box.sum() * 45 / 1000, rel=0.1)


def ask(predictor, image, queries, **more):
    return predict_volume(predictor.model, image, predictor.model.query_set(queries, TEXT), DATA, **more)


def test_features_are_computed_once_for_all_queries(predictor):
    image = torch.rand(1, 28, 28, 28)
    queries = ["liver", "kidney tumor", "right kidney"]
    together = ask(predictor, image, queries).probabilities
    assert predictor.model.encoded == 8
    for row, query in enumerate(queries):
        assert torch.allclose(ask(predictor, image, [query]).probabilities[0], together[row], atol=1e-6)


def test_windows_of_air_hold_nothing(predictor):
    image = torch.zeros(1, 28, 28, 28)
    image[:, 2:8, 2:8, 2:8] = 0.9
    answer = ask(predictor, image, ["right kidney"])
    assert float(answer.probabilities[0, 20:, 20:, 20:].max()) == 0
    assert float(answer.presence[0]) > 0.9


def test_scan_smaller_than_a_window_keeps_its_shape_and_says_so(predictor):
    image = torch.rand(1, 9, 16, 5)
    answer = ask(predictor, image, ["liver", "kidney tumor"], wants_anomaly=True)
    assert answer.probabilities.shape == (2, 9, 16, 5)
    assert answer.anomaly.shape == (9, 16, 5)
    assert torch.equal(answer.probabilities[0] > 0.5, image[0] > 0.5)
    assert any("smaller (9 x 16 x 5 voxels) than the model's window (16 x 16 x 16)" in said for said in answer.remarks)
    assert ask(predictor, torch.rand(1, 16, 16, 16), ["liver"]).remarks == ()


def test_scan_in_which_no_organ_is_found_is_answered_and_says_so(predictor):
    answer = ask(predictor, torch.full((1, 16, 16, 16), 0.35), ["kidney tumor"])
    assert not (answer.probabilities > 0.5).any()
    assert answer.remarks == ("none of the model's 2 organs was found in the scan: lesions have no organ to lie in",)


def test_anomaly_map_is_the_residual_on_the_scans_own_grid_and_needs_no_query(tmp_path, predictor):
    box = write_scan(tmp_path / "scan.nii.gz", GRIDS["oblique"])
    prediction = predictor.predict(tmp_path / "scan.nii.gz", [], keep_anomaly=True)
    anomaly = prediction.anomaly.numpy()
    assert anomaly.shape == box.shape
    assert len(prediction.masks) == len(prediction.classes) == 0
    assert anomaly[14:24, 10:20, 10:20].mean() == pytest.approx(0.8 - 0.4, abs=0.02)
    assert anomaly[3:6, 12:16, 10:16].mean() == pytest.approx(0.4 - 0.3, abs=0.05)  # soft tissue of -40 HU


def test_model_without_a_trained_prior_makes_no_anomaly_map_and_says_why(predictor):
    predictor.model.prior.is_trained = False
    image = torch.rand(1, 16, 16, 16)
    assert ask(predictor, image, ["kidney tumor"], wants_anomaly=True).anomaly is None
    volume = Volume(image, None, None, torch.eye(4).double(), (4.0, 4.0, 4.0))  # type: ignore[arg-type]
    with pytest.raises(NoPriorError, match=r"no trained prior.*prior\.rounds above 0"):
        predictor.predict(volume, [], keep_anomaly=True)


def test_places_that_are_searched_are_said(predictor):
    classes = predictor.understand(["kidney tumor", "metastasis", "liver"])
    assert predictor.places_searched(classes) == {
        "kidney tumor": "host right kidney",
        "metastasis": "host unknown: looked for in the whole body (--host ORGAN names one)",
    }


def test_host_that_is_said_is_used_where_none_is_known():
    predictor = Predictor(Brightness(), TEXT, DATA, host="liver")  # type: ignore[arg-type]
    found = predictor.places_searched(predictor.understand(["kidney tumor", "metastasis"]))
    assert found == {"kidney tumor": "host right kidney", "metastasis": "host liver"}


def test_host_that_the_model_does_not_know_is_named_with_those_it_does():
    with pytest.raises(HostError, match=r"'colon' is no organ.*liver, right kidney"):
        Predictor(Brightness(), TEXT, DATA, host="colon")  # type: ignore[arg-type]


def test_training_mode_is_given_back(predictor):
    predictor.model.train()
    ask(predictor, torch.rand(1, 16, 16, 16), ["liver"])
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
