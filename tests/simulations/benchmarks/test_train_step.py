"""Does the benchmark of a training step time what a site computes, beside networks of its size?"""

import pytest
import torch

from dsm_core.config import ModelConfig
from dsm_core.losses import organ_loss
from simulations.benchmarks.networks import CLASSES, PARTS, DsmStep, MonaiStep, patches, segresnet, text_space
from simulations.benchmarks.step_variants import PLAIN, VARIANTS, variant_rows
from simulations.benchmarks.train_step import CHECKED, Subject, checks, main, subjects
from simulations.benchmarks.workers import Timing

SMALL = ModelConfig(widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8)


def test_patches_show_every_class_to_every_network():
    found = patches(32, 2)
    assert found.names == tuple(sorted(CLASSES))
    assert found.masks.shape == (2, 7, 32, 32, 32)
    assert found.masks.flatten(2).any(2).sum() > 8
    assert torch.equal(found.image, patches(32, 2).image)


def test_parts_of_a_step_together_make_its_gradients():
    cut, whole = DsmStep(SMALL, 16, 2), DsmStep(SMALL, 16, 2)
    timings = cut.parts()
    assert tuple(timings) == PARTS
    assert all(timing.wall_ms > 0 for timing in timings.values())
    model, batch = whole.trainer.model, whole.patches
    queries = model.query_set(batch.names, text_space())
    loss, _ = organ_loss(model(batch.image, queries), queries, batch.masks, batch.annotated, text_space().vectors)
    loss.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), whole.trainer.config.clip_norm)
    for (name, one), other in zip(cut.trainer.model.named_parameters(), model.parameters(), strict=True):
        if not one.requires_grad:
            continue
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_step_of_either_kind_lowers_the_loss():
    for step in (DsmStep(SMALL, 16, 2), MonaiStep(segresnet(8, (1, 1, 1, 1)), 16, 2)):
        first = step.whole()
        for _ in range(8):
            last = step.whole()
        assert last < first


def test_peers_have_as_many_parameters_as_the_model_they_stand_beside():
    count = {subject.name: subject.step.parameters for subject in subjects(32, 1, 0, with_base=False)}
    for ours, theirs in (("DSM tiny", "SegResNet like tiny"), ("DSM narrow", "SegResNet like narrow")):
        assert count[theirs] == pytest.approx(count[ours], rel=0.1)
    assert count["DSM narrow"] == pytest.approx(1.13e6, rel=0.05)


def test_a_check_is_the_median_of_rounds_and_names_its_model():
    ours, theirs = (Subject(name, DsmStep(SMALL, 16, 1), 3) for name in ("DSM tiny", "SegResNet like tiny"))
    for subject, times in ((ours, (100.0, 900.0, 150.0)), (theirs, (100.0, 300.0, 100.0))):
        subject.whole = [Timing(0, ms) for ms in times]
        subject.step.size = CHECKED
    seconds, ratio, *narrow = checks([ours, theirs])
    assert (seconds.value, seconds.ok) == (0.15, True)
    assert (ratio.value, ratio.ok) == (1.5, False)
    assert seconds.name.startswith("DSM tiny (0.")
    assert not any(check.ok for check in narrow), "a model that was not measured keeps no promise"


@pytest.mark.parametrize("words", [["--rounds", "0"], ["no.such=1"]])
def test_bad_input_is_named(words, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("train_step: ")


@pytest.mark.slow
def test_every_variant_has_a_row():
    rows = variant_rows(32, 1, 0)
    assert [row["variant"] for row in rows[: len(VARIANTS)]] == list(VARIANTS)
    assert rows[0]["variant"] == PLAIN
    assert rows[0]["of_plain"] == 1
    assert all(row["clock_ms"] > 0 for row in rows)
