"""Does the zero-shot protocol hide what it says it hides, and do its checks bite?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dsm_core.config import Config, ModelConfig
from dsm_core.data.phantoms import PHANTOM_CLASSES, PHANTOM_LESIONS
from dsm_core.stages import ORGANS, PRIOR, TUMORS
from simulations.benchmarks import zero_shot
from simulations.benchmarks.zero_shot import QUICK_CLASSES, SEEDS, Job, main, plan, promises, run
from simulations.benchmarks.zero_shot_scores import LABELLED, NO_DIFFUSION, ORGAN_MEAN, SHUFFLED, UNSEEN, WRONG
from simulations.benchmarks.zero_shot_text import CLIP, OFFLINE, text_space
from simulations.benchmarks.zero_shot_training import Budget, Seed, draw_shuffled, wrong_organs

SMALL = ModelConfig(
    widths=(8, 8, 16, 16), mamba_blocks=(0, 0, 0, 0), decoder_width=16, query_width=16, mask_width=8,
    prior_widths=(8, 8, 8), lesion_width=8,
)  # fmt: skip


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"quick": False, "shapes": None, "bank": Path("absent"), "workers": 2, **given})


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Embeddings that know two kidneys, and no vertebrae."""
    names = [n for n in PHANTOM_CLASSES if n not in ("kidney", "vertebrae")] + ["left kidney", "right kidney"]
    vectors = torch.randn(len(names), 16, generator=torch.Generator().manual_seed(0))
    save_file({"embeddings": vectors}, tmp_path / "bank.safetensors", {"classes": json.dumps(names), "model": "x"})
    return tmp_path / "bank.safetensors"


def test_full_table_has_three_seeds_and_every_class(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = plan(Config(), options(bank=bank))
    assert [(job.encoder, job.config.seed) for job in jobs] == [*((OFFLINE, seed) for seed in SEEDS), (CLIP, 0)]
    assert all(job.classes == PHANTOM_LESIONS for job in jobs)
    quick = plan(Config(), options(quick=True))
    assert [(job.encoder, job.classes) for job in quick] == [(OFFLINE, QUICK_CLASSES)]
    assert "no CLIP embeddings" in capsys.readouterr().out


def test_two_kidneys_of_the_saved_embeddings_stand_for_one_and_what_is_missing_is_left_out(bank: Path) -> None:
    space = text_space(CLIP, bank)
    assert set(space.names) == set(PHANTOM_CLASSES) - {"vertebrae"}
    sides = space.encode(["kidney", "left kidney", "liver"])
    assert sides[0] @ sides[1] > sides[0] @ sides[2] + 0.3
    assert set(text_space(OFFLINE, None).names) == set(PHANTOM_CLASSES)


def test_shuffled_names_are_never_their_own_and_a_wrong_organ_has_no_tumor() -> None:
    for seed in range(5):
        shuffled = draw_shuffled(PHANTOM_LESIONS, seed)
        assert sorted(shuffled) == sorted(shuffled.values()) == sorted(PHANTOM_LESIONS)
        assert all(name != other for name, other in shuffled.items())
    assert set(wrong_organs()) == {"stomach", "aorta", "vertebrae"}


def row(method: str, auroc: float, dice: float, **more: object) -> dict[str, object]:
    return {
        "encoder": OFFLINE,
        "seed": 0,
        "class": "liver tumor",
        "method": method,
        "auroc_host": auroc,
        "dice": dice,
    } | more


def test_checks_take_the_worst_and_compare_like_with_like() -> None:
    good = [
        row(UNSEEN, 0.96, 0.5), row(LABELLED, 0.97, 0.6), row(NO_DIFFUSION, 0.9, 0.4), row(ORGAN_MEAN, 0.8, 0.1),
        row(SHUFFLED, 0.6, 0.05), row(WRONG, 0.6, 0.0),
    ]  # fmt: skip
    assert all(check.ok for check in promises(good))
    bad_seed = [*good, row(UNSEEN, 0.94, 0.5, seed=1)]
    assert [check.value for check in promises(bad_seed) if not check.ok] == [0.94]
    found_anyway = [*good[:-1], row(WRONG, 0.6, 0.3)]
    assert [check.name for check in promises(found_anyway) if not check.ok] == [
        f"{OFFLINE}: Dice with wrong organ, share of unseen"
    ]


@pytest.mark.parametrize(
    "words", [["--workers", "0"], ["no.such=1"], ["--shapes", "absent", "--quick", "--workers", "1"]]
)
def test_bad_input_is_named(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("zero_shot: ")


@pytest.mark.slow
def test_left_out_class_teaches_nothing_and_every_method_has_a_row(
    tmp_path: Path, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(model=SMALL, out=str(tmp_path))
    budget = Budget({ORGANS: 5, PRIOR: 5, TUMORS: 5}, cases=2, held_out=1)
    seen: list[set[str]] = []
    train = Seed._train

    def watched(self, stage, model, maps, names):
        seen.append({name for known in names.values() for name in known if "tumor" in name})
        train(self, stage, model, maps, names)

    monkeypatch.setattr(Seed, "_train", watched)
    rows = run(Job(config, CLIP, bank, budget, ("spleen tumor",), controls=True))
    others = set(PHANTOM_LESIONS) - {"spleen tumor"}
    assert seen == [set(), set(), set(PHANTOM_LESIONS), others, others]
    assert {found["method"] for found in rows} == {UNSEEN, LABELLED, NO_DIFFUSION, ORGAN_MEAN, SHUFFLED, WRONG}
    assert all(0 <= found["auroc_host"] <= 1 for found in rows)
    assert zero_shot.promises(rows)
