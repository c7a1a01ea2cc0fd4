"""DSM: organ queries, Mamba encoder, tumour queries; and `build_model`, the only place where sizes are chosen.

After Wu et al. 2025, "Unleashing Diffusion and State Space Models for Medical Image Segmentation", arXiv:2506.12747.
Axis legend: B batch, C channels, X Y Z voxels in RAS+ order, Q queries, O organs, L lesions, E text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsm_core.classes import ClassKind, describe_class
from dsm_core.config import ModelConfig
from dsm_core.model.decoder import KMeansAttention, LesionAttention, MaskHead, PixelDecoder, read_masks
from dsm_core.model.encoder import Encoder
from dsm_core.model.layers import MLP
from dsm_core.model.queries import ClassRows, QuerySet, SharedVector, TextToQuery, gather_rows, host_weights
from dsm_core.text_space import TextSpace


@dataclass(frozen=True)
class Features:
    """What a scan becomes once, whatever is asked of it: maps at 1/8 and 1/4 and the pixel map at 1/2."""

    eighth: Tensor
    quarter: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class DSMOutput:
    """Answers to the asked queries, and what the losses need.

    Attributes:
        mask_logits: (B, Q_asked, X, Y, Z).
        presence_logits: (B, Q_asked), is the class in this volume?
        grouping_logits: per scale (B, O + 1, x, y, z) over all organs of the query set and the void.
        text_vectors: (B, Q_asked, E), the queries projected back to the text space.
    """

    mask_logits: Tensor
    presence_logits: Tensor
    grouping_logits: tuple[Tensor, ...]
    text_vectors: Tensor


@dataclass(frozen=True)
class QueryDropout:
    """Training only: which class rows are hidden and the noise on the text, so that text alone is a working query.

    Attributes:
        keep: (B, Q) one where the class row is kept. noise: (B, Q, E), added to the text vectors.
    """

    keep: Tensor
    noise: Tensor


class DSM(nn.Module):
    """Segments every class that can be named, organ or lesion."""

    def __init__(
        self,
        names: tuple[str, ...],
        encoder: Encoder,
        pixel_decoder: PixelDecoder,
        text_width: int,
        query_width: int,
        decoder_width: int,
        mask_width: int,
    ):
        super().__init__()
        self.names = names
        self.encoder = encoder
        self.pixel_decoder = pixel_decoder
        self.class_rows = ClassRows(len(names), query_width)
        self.text_to_query = TextToQuery(text_width, query_width)
        self.void = SharedVector(query_width)
        self.lesion = SharedVector(query_width)
        self.grouping = nn.ModuleList(KMeansAttention(query_width, decoder_width) for _ in range(2))
        self.lesion_attention = nn.ModuleList(LesionAttention(query_width, decoder_width) for _ in range(2))
        self.organ_head = MaskHead(query_width, mask_width)
        self.lesion_head = MaskHead(query_width, mask_width)
        self.host_gain = SharedVector(1)
        nn.init.ones_(self.host_gain.weight)
        self.to_text = MLP(query_width, query_width, text_width)

    def query_set(self, names: Sequence[str], text: TextSpace) -> QuerySet:
        """The queries for some names or phrases, with every trained organ beside them as context.

        Args:
            names: class names of the text space or free phrases; masks come back in this order.
            text: the shared text space.
        """
        device = self.class_rows.evidence.device
        described = [describe_class(name) for name in names]
        bank = {info.name: info for info in text.classes}
        described = [bank.get(info.name, info) for info in described]
        evidence = self.class_rows.evidence.tolist()
        context = [
            info
            for info, count in zip(text.classes, evidence, strict=True)
            if info.kind is ClassKind.ORGAN and count > 0
        ]
        organs = list(dict.fromkeys([*context, *(info for info in described if info.kind is ClassKind.ORGAN)]))
        lesions = list(dict.fromkeys(info for info in described if info.kind is ClassKind.LESION))
        infos = organs + lesions
        vectors = text.encode([info.name for info in infos]).to(device) if infos else text.vectors[:0].to(device)
        position = {info.name: i for i, info in enumerate(infos)}
        rows = {name: i for i, name in enumerate(self.names)}
        host = host_weights(vectors[len(organs) :], vectors[: len(organs)])
        for lesion, info in enumerate(lesions):
            if info.host in position:  # declared by a site or known to the atlas: no need to guess from the text
                host[lesion] = F.one_hot(torch.tensor(position[info.host]), len(organs) + 1)
        return QuerySet(
            names=tuple(position),
            organs=len(organs),
            text=vectors,
            row=torch.tensor([rows.get(info.name, -1) for info in infos], dtype=torch.long, device=device),
            host=host,
            asked=tuple(position[info.name] for info in described),
        )

    def encode_image(self, image: Tensor) -> Features:
        """(B, 1, X, Y, Z) in [0, 1] -> features, computed once for any number of queries."""
        return Features(*self.pixel_decoder(self.encoder(image)))

    def decode(self, features: Features, queries: QuerySet, dropout: QueryDropout | None = None) -> DSMOutput:
        """Masks of the asked queries."""
        batch = len(features.pixels)
        anchor = features.pixels.detach()
        text = queries.text.expand(batch, -1, -1)
        residual = gather_rows(self.class_rows.residual(anchor), queries.row)
        if dropout is not None:
            text = F.normalize(text + dropout.noise, dim=2)
            residual = residual * dropout.keep[..., None]
        embedded = self.text_to_query(text, residual)
        organ_queries, lesion_queries = embedded[:, : queries.organs], embedded[:, queries.organs :]

        grouped = torch.cat([organ_queries, self.void(anchor)], 1)
        grouping_logits = []
        for attention, level in zip(self.grouping, (features.eighth, features.quarter), strict=True):
            grouped, logits = attention(grouped, level)
            grouping_logits.append(logits)
        organ_queries = grouped[:, : queries.organs]

        asked_organs = [i for i in queries.asked if i < queries.organs]
        weights, presence, final = [], [], []
        if asked_organs:
            asked = organ_queries[:, asked_organs]
            read, present = self.organ_head(asked)
            weights.append(read)
            presence.append(present)
            final.append(asked)
        prior = None
        if len(queries.names) > queries.organs:
            lesion_queries = lesion_queries + self.lesion(anchor)
            priors = []
            for logits in grouping_logits:
                soft = logits.detach().softmax(1)[:, : queries.organs]
                everywhere = torch.ones_like(soft[:, :1])
                within = torch.einsum("lo,boxyz->blxyz", queries.host, torch.cat([soft, everywhere], 1))
                priors.append(torch.log(within + 0.01))
            for attention, level, prior in zip(
                self.lesion_attention, (features.eighth, features.quarter), priors, strict=True
            ):
                lesion_queries = attention(lesion_queries, level, grouped, prior.flatten(2))
            read, present = self.lesion_head(lesion_queries)
            weights.append(read)
            presence.append(present)
            final.append(lesion_queries)

        bias = gather_rows(self.class_rows.bias(anchor), queries.row)[..., 0]
        order = asked_organs + list(range(queries.organs, len(queries.names)))
        if dropout is not None:
            bias = bias * dropout.keep
        pick = [order.index(i) for i in queries.asked]
        mask_weights, presence_logits, final_queries = (torch.cat(x, 1)[:, pick] for x in (weights, presence, final))
        mask_logits = read_masks(mask_weights, bias[:, list(queries.asked)], features.pixels)
        if prior is not None:
            size = mask_logits.shape[2:]
            within_host = self.host_gain(anchor)[..., None, None] * F.interpolate(prior, size=size, mode="trilinear")
            masks = list(mask_logits.unbind(1))
            for place, query in enumerate(queries.asked):
                if query >= queries.organs:
                    masks[place] = masks[place] + within_host[:, query - queries.organs]
            mask_logits = torch.stack(masks, 1)
        return DSMOutput(mask_logits, presence_logits, tuple(grouping_logits), self.to_text(final_queries))

    def forward(self, image: Tensor, queries: QuerySet, dropout: QueryDropout | None = None) -> DSMOutput:
        """Image (B, 1, X, Y, Z) and queries to answers; `encode_image` then `decode`."""
        return self.decode(self.encode_image(image), queries, dropout)


def build_model(config: ModelConfig, text: TextSpace) -> DSM:
    """DSM of a size (`tiny`, `base`), for the classes of a text space; weights from torch's current random state."""
    return DSM(
        names=text.names,
        encoder=Encoder(config.widths, config.mamba_blocks, config.state_size, config.scan_backend),
        pixel_decoder=PixelDecoder(config.widths, config.decoder_width, config.mask_width),
        text_width=text.vectors.shape[1],
        query_width=config.query_width,
        decoder_width=config.decoder_width,
        mask_width=config.mask_width,
    )
