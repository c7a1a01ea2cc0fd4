"""What does each method of the zero-shot protocol score, class by class, on the held-out cases of a seed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dsm_core.data import class_masks
from dsm_core.data.phantoms import PHANTOM_LESIONS
from dsm_core.model import DSM, QuerySet, VisualPrompt
from dsm_core.text_space import TextSpaceError
from simulations.benchmarks.detection_rows import Tally
from simulations.benchmarks.table import Row
from simulations.benchmarks.zero_shot_training import HeldOutCase, Say, Seed, draw_shuffled, hosts, wrong_organs

UNSEEN, LABELLED, NO_DIFFUSION, ORGAN_MEAN = "unseen", "labelled", "no diffusion", "organ mean"
SHUFFLED, WRONG = "shuffled text", "wrong organ"
_UNUSUAL = 3.0  # spreads of its organ from which the trivial baseline calls a voxel a lesion
Answer = tuple[Tensor, Tensor, float | None]  # score (X, Y, Z), mask (X, Y, Z), presence


def measure(seed: Seed, classes: Sequence[str], controls: bool, say: Say) -> list[Row]:
    """Rows of all methods; the costly controls `labelled` and `no diffusion` on request only."""
    rows: list[Row] = []
    model = seed.model
    if controls:
        seed.tumor_queries(PHANTOM_LESIONS)
        rows += [_score(seed, LABELLED, name, _ask(seed, model, name)) for name in classes]
    shuffled = draw_shuffled(PHANTOM_LESIONS, seed.config.seed)
    others = {name: [other for other in PHANTOM_LESIONS if other != name] for name in classes}
    for name in classes:
        seed.tumor_queries(others[name])
        rows.append(_score(seed, UNSEEN, name, _ask(seed, model, name)))
        rows.append(_score(seed, SHUFFLED, name, _ask(seed, model, shuffled[name])))
        rows.append(_score(seed, WRONG, name, _ask_in(seed, model, name, wrong_organs(seed.text.names)[0])))
        rows.append(_score(seed, ORGAN_MEAN, name, _deviation(seed, model, name)))
    # Last, since every prompt of the training cases is made anew when the prior changes.
    for name in classes if controls else ():
        seed.tumor_queries(others[name], uses_prior=False)
        rows.append(_score(seed, NO_DIFFUSION, name, _ask(seed, model, name), uses_prior=False))
    say(f"scored {len(rows)} rows")
    return rows


def _score(
    seed: Seed, method: str, name: str, answer: Callable[[VisualPrompt], Answer], uses_prior: bool = True
) -> Row:
    tally = Tally(seed.config.data.spacing_mm, seed.config.nsd_tolerance_mm)
    seed.model.eval()
    for case in seed.held_out:
        with torch.no_grad():
            score, found, presence = answer(case.prompts[uses_prior].to(torch.float32))
        tally.add(score, found, _truth(case, name), _truth(case, hosts()[name]), presence)
    return {"class": name, "method": method, **tally.row()}


def _truth(case: HeldOutCase, name: str) -> Tensor:
    return class_masks(case.label, (name,), case.datalist)[0]


def _ask(seed: Seed, model: DSM, phrase: str) -> Callable[[VisualPrompt], Answer]:
    """The tumour query of a phrase."""
    return _answers(model, model.query_set([phrase], seed.text))


def _ask_in(seed: Seed, model: DSM, name: str, organ: str) -> Callable[[VisualPrompt], Answer]:
    """The query of "metastasis in the ORGAN"; where no encoder is at hand, the class's own text, placed there."""
    try:
        queries = model.query_set([f"metastasis in the {organ}"], seed.text)
    except TextSpaceError:
        queries = model.query_set([name], seed.text)
        organs = queries.names[: queries.context]
        placed = F.one_hot(torch.tensor([organs.index(organ)]), len(organs) + 1).to(queries.host)
        queries = replace(queries, host=placed)
    return _answers(model, queries)


def _answers(model: DSM, queries: QuerySet) -> Callable[[VisualPrompt], Answer]:
    def answer(prompt: VisualPrompt) -> Answer:
        found = model.find_tumors(prompt, queries)
        score = found.mask_logits[0, 0]
        return score, score > 0, float(found.presence_logits[0, 0].sigmoid())

    return answer


def _deviation(seed: Seed, model: DSM, name: str) -> Callable[[VisualPrompt], Answer]:
    """How far a voxel is from the mean of its organ, where a lesion of that host may be, by the organ queries."""
    queries = model.query_set([name], seed.text)

    def answer(prompt: VisualPrompt) -> Answer:
        host = model.find_tumors(prompt, queries).host[0, 0]
        score = prompt.deviation[0, 0].abs() * host
        return score, score > _UNUSUAL, None

    return answer
