"""DSM: organ queries on a Mamba encoder, a prior of healthy tissue, tumour queries; and `build_model`, which sizes it.

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
from dsm_core.model.anatomy import Anatomy, read_anatomy
from dsm_core.model.decoder import KMeansAttention, MaskHead, PixelDecoder, read_masks
from dsm_core.model.diffusion import Denoiser, TissuePrior
from dsm_core.model.encoder import Encoder
from dsm_core.model.layers import MLP
from dsm_core.model.lesions import TumorAnswer, TumorQueries
from dsm_core.model.prompt import OrganReading, VisualPrompt, visual_prompt
from dsm_core.model.queries import (
    ClassRows,
    QuerySet,
    SharedVector,
    TextToQuery,
    gather_rows,
    host_weights,
    organs_meant,
)
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
        text_vectors: (B, Q_asked, E), the queries projected back to the text space.
        grouping_logits: per scale (B, organs + 1, x, y, z) over all organs of the query set and the void.
        organ_queries: (B, organs + 1, C) after grouping, the void last.
    """

    mask_logits: Tensor
    presence_logits: Tensor
    text_vectors: Tensor
    grouping_logits: tuple[Tensor, ...]
    organ_queries: Tensor


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
        prior: TissuePrior,
        tumors: TumorQueries,
        text_width: int,
        query_width: int,
        decoder_width: int,
        mask_width: int,
        is_mixed: bool = False,
    ):
        """Put the parts together.

        Args:
            is_mixed: features are computed in bfloat16, what is read from them in float32.
        """
        super().__init__()
        self.names, self.is_mixed = names, is_mixed
        self.encoder = encoder
        self.pixel_decoder = pixel_decoder
        self.class_rows = ClassRows(len(names), query_width)
        self.text_to_query = TextToQuery(text_width, query_width)
        self.void = SharedVector(query_width)
        self.grouping = nn.ModuleList(KMeansAttention(query_width, decoder_width) for _ in range(2))
        self.organ_head = MaskHead(query_width, mask_width)
        self.to_text = MLP(query_width, query_width, text_width)
        self.prior = prior
        self.tumors = tumors

    def query_set(self, names: Sequence[str], text: TextSpace, host: str | None = None) -> QuerySet:
        """The queries for some names or phrases, with every trained organ beside them as context.

        Args:
            names: class names of the text space or free phrases; masks come back in this order.
            text: the shared text space.
            host: organ of the lesions whose own host is unknown.
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
        hosts = host_weights(vectors[len(organs) :], vectors[: len(context)])
        known = [info.name for info in context]
        for lesion, info in enumerate(lesions):
            if meant := organs_meant(info.host, known) or organs_meant(host, known):
                # Declared by a site, known to the atlas, or said by whoever asks: no need to guess from the text.
                hosts[lesion] = 0.0
                hosts[lesion, meant] = 1.0
        return QuerySet(
            names=tuple(position),
            organs=len(organs),
            context=len(context),
            text=vectors,
            row=torch.tensor([rows.get(info.name, -1) for info in infos], dtype=torch.long, device=device),
            host=hosts,
            asked=tuple(position[info.name] for info in described),
        )

    def encode_image(self, image: Tensor) -> Features:
        """(B, 1, X, Y, Z) in [0, 1] -> features, computed once for any number of queries."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.is_mixed):
            maps = self.pixel_decoder(self.encoder(image))
        return Features(*(found.float() if self.is_mixed else found for found in maps))

    def find_organs(
        self,
        features: Features,
        queries: QuerySet,
        organs: Sequence[int] | None = None,
        dropout: QueryDropout | None = None,
    ) -> DSMOutput:
        """Masks of organs.

        Args:
            organs: positions in the query set; those asked where this is absent.
        """
        wanted = list(queries.asked_organs if organs is None else organs)
        anchor, count = features.pixels.detach(), queries.organs
        embedded = self.text_to_query(*self._described(anchor, queries, slice(0, count), dropout))
        grouped = torch.cat([embedded, self.void(anchor)], 1)
        grouping_logits = []
        for attention, level in zip(self.grouping, (features.eighth, features.quarter), strict=True):
            grouped, logits = attention(grouped, level)
            grouping_logits.append(logits)
        found = grouped[:, wanted]
        weights, presence = self.organ_head(found)
        bias = gather_rows(self.class_rows.bias(anchor), queries.row[wanted])[..., 0]
        if dropout is not None:
            bias = bias * dropout.keep[:, wanted]
        masks = read_masks(weights, bias, features.pixels)
        return DSMOutput(masks, presence, self.to_text(found), tuple(grouping_logits), grouped)

    @torch.no_grad()
    def visual_prompt(self, image: Tensor, reading: OrganReading, organ_text: Tensor) -> VisualPrompt:
        """How a scan departs from health.

        Args:
            image: (B, 1, X, Y, Z) in [0, 1], sizes multiples of 8.
            reading: what the organ queries see in it.
            organ_text: (O, E), the organs of the reading.
        """
        return self.prompt_of(image, self.anatomy(image, reading), reading, organ_text)

    @torch.no_grad()
    def prompt_of(self, image: Tensor, anatomy: Anatomy, reading: OrganReading, organ_text: Tensor) -> VisualPrompt:
        """`visual_prompt` where the anatomy is at hand already; it then stands for the reading's probabilities."""
        if not len(organ_text):
            organ_text = organ_text.new_zeros(1, organ_text.shape[1])
        channels, hidden = visual_prompt(self.prior, image, anatomy, organ_text)
        return VisualPrompt(channels, hidden, anatomy.organs, reading.queries, reading.eighth, reading.quarter)

    @staticmethod
    def anatomy(image: Tensor, reading: OrganReading) -> Anatomy:
        """The anatomy of a scan; where no organ was ever trained, one organ that is nowhere."""
        known = reading.probabilities
        return read_anatomy(image, known if known.shape[1] else torch.zeros_like(image))

    def find_tumors(self, prompt: VisualPrompt, queries: QuerySet, dropout: QueryDropout | None = None) -> TumorAnswer:
        """Masks of all lesions of the query set.

        Args:
            dropout: of all queries of the set.
        """
        lesions = slice(queries.organs, len(queries.names))
        text, rows = self._described(prompt.channels, queries, lesions, dropout)
        host = queries.host
        if not queries.context:  # the one organ that is nowhere
            host = F.pad(host, (1, 0))
        return self.tumors(prompt, text, rows, host)

    def forward(self, image: Tensor, queries: QuerySet, dropout: QueryDropout | None = None) -> DSMOutput:
        """Answers on one volume (B, 1, X, Y, Z), sizes multiples of 16; lesions are looked for with what it shows."""
        features = self.encode_image(image)
        context = range(queries.context)
        organs = list(dict.fromkeys([*queries.asked_organs, *(context if queries.asked_lesions else ())]))
        output = self.find_organs(features, queries, organs, dropout)
        masks, presence, vectors = output.mask_logits, output.presence_logits, output.text_vectors
        if queries.asked_lesions:
            with torch.no_grad():
                seen = masks[:, [organs.index(i) for i in context]].sigmoid()
            reading = OrganReading(
                seen,
                output.organ_queries[:, [*context, queries.organs]].detach(),
                features.eighth.detach(),
                features.quarter.detach(),
            )
            prompt = self.visual_prompt(image, reading, queries.text[: queries.context])
            found = self.find_tumors(prompt, queries, dropout)
            masks, presence, vectors = (
                torch.cat(pair, 1)
                for pair in (
                    (masks, found.mask_logits),
                    (presence, found.presence_logits),
                    (vectors, found.text_vectors),
                )
            )
        order = [organs.index(i) if i < queries.organs else len(organs) + i - queries.organs for i in queries.asked]
        return DSMOutput(
            masks[:, order], presence[:, order], vectors[:, order], output.grouping_logits, output.organ_queries
        )

    def _described(
        self, anchor: Tensor, queries: QuerySet, part: slice, dropout: QueryDropout | None
    ) -> tuple[Tensor, Tensor]:
        """Text (B, Q, E) and class rows (B, Q, C) of a part of the queries, as far as the dropout leaves them."""
        text = queries.text[part].expand(len(anchor), -1, -1)
        rows = gather_rows(self.class_rows.residual(anchor), queries.row[part])
        if dropout is None:
            return text, rows
        return F.normalize(text + dropout.noise[:, part], dim=2), rows * dropout.keep[:, part, None]


def build_model(config: ModelConfig, text: TextSpace) -> DSM:
    """DSM of a size (`tiny`, `base`), for the classes of a text space; weights from torch's current random state."""
    text_width = text.vectors.shape[1]
    denoiser = Denoiser(text_width, config.prior_widths)
    return DSM(
        names=text.names,
        encoder=Encoder(
            config.widths, config.mamba_blocks, config.state_size, config.scan_backend, config.checkpointing
        ),
        pixel_decoder=PixelDecoder(config.widths, config.decoder_width, config.mask_width),
        prior=TissuePrior(denoiser, config.refine_steps),
        tumors=TumorQueries(
            text_width, config.query_width, config.decoder_width, denoiser.width, config.lesion_width, config.fusion
        ),
        text_width=text_width,
        query_width=config.query_width,
        decoder_width=config.decoder_width,
        mask_width=config.mask_width,
        is_mixed=config.precision == "bfloat16",
    )
