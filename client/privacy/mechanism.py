"""How does a sum of patients' gradients become private? Clip each patient, add Gaussian noise, divide by a constant.

DP-SGD (Abadi et al. 2016, arXiv:1607.00133, algorithm 1). Axis legend: `P` patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from client.privacy.faults import PrivacyError
from client.privacy.noise import SecretStream


class GaussianSum:
    """Clipped gradients, added patient by patient and released once a step.

    Opacus' `DPOptimizer` clips alike (a test compares them); its noise on CPU comes of a 32-bit seed, one patient whose
    gradient is not finite would spoil its sum, and it wants a gradient for every parameter.

    Args:
        parameters: those whose gradients are released, known before any patient is seen.
        clip_norm: C, the longest gradient of a patient, L2 over all parameters.
        noise_multiplier: sigma; each number gets noise of standard deviation sigma C.
        stream: secret randomness.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], clip_norm: float, noise_multiplier: float, stream: SecretStream
    ) -> None:
        self.parameters = tuple(parameters)
        self.clip_norm, self.noise_multiplier, self._stream = clip_norm, noise_multiplier, stream
        device = self.parameters[0].device if self.parameters else None
        self._sum = torch.zeros(sum(parameter.numel() for parameter in self.parameters), device=device)
        pieces = self._sum.split([parameter.numel() for parameter in self.parameters])
        self._pieces = dict(zip(self.parameters, pieces, strict=True))

    def add(self, gradients: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """Add P patients, each clipped to C; returns their factors (P,).

        A patient whose gradient is not finite counts as zero.

        Args:
            gradients: (P, *shape) by parameter; zero where absent.

        Raises:
            PrivacyError: a gradient of a parameter that was not announced.
        """
        if unknown := gradients.keys() - self._pieces.keys():
            raise PrivacyError(f"{len(unknown)} tensors have a gradient for these patients only; nothing is released")
        flat = {parameter: gradient.flatten(1) for parameter, gradient in gradients.items()}
        squares = [torch.linalg.vector_norm(rows, dim=1).double().square() for rows in flat.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        # Float32 norms are right to some 1e-7: the last factor keeps a rounded norm from passing C.
        factors = (self.clip_norm / norms).clamp(max=1.0) * (1 - 1e-6)
        is_finite = norms.isfinite()
        factors = torch.where(is_finite, factors, 0.0).float()
        for parameter, rows in flat.items():
            self._pieces[parameter].addmv_(rows[is_finite].T, factors[is_finite])
        return factors

    def release(self, expected: float) -> None:
        """Set every parameter's `grad` to (sum + noise) / expected, and begin a new sum.

        Args:
            expected: patients of a step on average, a constant; the number of those drawn would tell who was.
        """
        released, start, deviation = torch.empty_like(self._sum), 0, self.noise_multiplier * self.clip_norm
        for block in self._stream.normal_blocks(len(released)):
            stop = start + len(block)
            noise = block.mul_(deviation).to(released.device)
            released[start:stop] = noise.add_(self._sum[start:stop]).div_(expected)
            start = stop
        self._sum.zero_()
        pieces = released.split([parameter.numel() for parameter in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
