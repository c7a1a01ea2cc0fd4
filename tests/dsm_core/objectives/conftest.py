"""A site of four small scans with a round liver and a dark tumour in it, and a model that knows the liver."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsm_core.classes import describe_class
from dsm_core.config import Config, DataConfig, ModelConfig, TextConfig, TrainConfig
from dsm_core.data import Case, Datalist, Volume
from dsm_core.model import build_model
from dsm_core.objectives import FrozenMaps
from dsm_core.text_building import build_text_space
from dsm_core.text_space import TextSpace

NAMES = ("kidney", "kidney tumor", "liver", "liver tumor")
CONFIG = Config(
    model=ModelConfig(
        widths=(8, 16, 16, 32), mamba_blocks=(0, 0, 1, 1), decoder_width=16, query_width=16, mask_width=8,
        prior_widths=(8, 16, 16), lesion_width=8,
    ),
    data=DataConfig(patch=(32, 32, 32), crop=(16, 16, 16)),
    train=TrainConfig(batch=2, crops=3),
)  # fmt: skip


@pytest.fixture(scope="session")
def text() -> TextSpace:
    return build_text_space([describe_class(name) for name in NAMES], TextConfig(encoder="offline"))


@pytest.fixture(scope="session")
def datalist() -> Datalist:
    names = ("liver", "liver tumor")
    values = {name: i + 1 for i, name in enumerate(names)}
    annotated = (names, names, names, ("liver",))
    cases = tuple(Case(f"case_{i}", Path("x"), Path("x"), known) for i, known in enumerate(annotated))
    classes = {name: describe_class(name) for name in names}
    return Datalist("mercy", Path(), values, classes, cases, {n: (v,) for n, v in values.items()})


@pytest.fixture(scope="session")
def volumes(datalist) -> list[Volume]:
    grid = torch.stack(torch.meshgrid(*3 * [torch.arange(32.0)], indexing="ij"))
    found = []
    for i, case in enumerate(datalist.cases):
        generator = torch.Generator().manual_seed(i)
        liver = (grid - 15.5).norm(dim=0) < 12
        tumor = (grid - (12.0 + i)).norm(dim=0) < 4
        image = torch.where(liver, 0.6, 0.1) - 0.3 * tumor + 0.02 * torch.randn(32, 32, 32, generator=generator)
        label = (liver.to(torch.int16) + tumor.to(torch.int16))[None]
        found.append(Volume(image[None], label, case, torch.eye(4).double(), (1.0, 1.0, 1.0)))
    return found


@pytest.fixture
def make_maps(text, volumes):
    """A function that makes a model, whose liver counts as trained, and the maps of the site."""

    def make() -> FrozenMaps:
        torch.manual_seed(0)
        model = build_model(CONFIG.model, text)
        model.class_rows.evidence[:] = torch.tensor([0.0, 0.0, 4.0, 3.0])
        with torch.no_grad():  # no gradient is zero only because a weight begins at zero
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
            model.class_rows.bias.weight += 3  # an untrained organ would be nowhere
        return FrozenMaps(model, text, volumes, CONFIG.data)

    return make
