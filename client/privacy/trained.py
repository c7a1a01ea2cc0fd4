"""Which tensors does private training change? Fewer trained numbers mean less noise in all.

`queries`: class rows, text to query and the heads, on image features that came with the model (pretrained on public or
generated data). `adapters`: every bias and every scale, with the class rows, as BiTFiT trains them (Ben Zaken et al.
2022, arXiv:2106.10199; privately, Bu et al. 2022, arXiv:2210.00036). No tensor is added: what travels stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from client.privacy.faults import PrivacyError

QUERIES = (
    "class_rows.",
    "text_to_query.",
    "void.",
    "organ_head.",
    "to_text.",
    "tumors.to_query.",
    "tumors.lesion.",
    "tumors.presence.",
    "tumors.to_text.",
    "tumors.head.",
)
ROWS = QUERIES[:1]


def trained_names(model: nn.Module, choice: str) -> tuple[str, ...]:
    """Names of the parameters that a choice trains, among those that are trained at all.

    Raises:
        PrivacyError: the model has none of them.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    chosen = {
        "everything": lambda name: True,
        "queries": lambda name: name.startswith(QUERIES),
        "adapters": lambda name: named[name].dim() <= 1 or name.startswith(ROWS),
    }[choice]
    if not (names := tuple(filter(chosen, named))):
        raise PrivacyError(f"privacy.trained={choice} finds no tensor to train in this model; choose everything")
    return names


@contextmanager
def only_trained(model: nn.Module, choice: str) -> Iterator[tuple[str, ...]]:
    """Freeze everything else while the context is open; yields the names of what is trained."""
    names = trained_names(model, choice)
    frozen = [p for name, p in model.named_parameters() if p.requires_grad and name not in names]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield names
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
