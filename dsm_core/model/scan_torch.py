"""What does the selective scan compute? The blocked recurrence in plain PyTorch, forward and backward.

Axes: `B` batch, `L` sequence, `D` channels, `N` states per channel, `S` steps of one block.

    h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t
    y_t = <C_t, h_t> + D u_t                            (Gu & Dao 2023, arXiv:2312.00752, eq. 2 and algorithm 2)

The sequence is cut into blocks whose states [S, B, D, N] fit a core's second-level cache. Only the state at the start
of each block is kept; the backward pass recomputes the rest. No exponent is formed from a difference of sums, so with
negative A none is ever positive, and nothing overflows however large delta is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_BYTES = 512 * 1024  # one of the two or three state tensors of a block; L2 of current server cores is 1-2 MB


def block_steps(length: int, state_bytes: int) -> int:
    """Steps of one block: as many states of `state_bytes` as the cache holds, at least 8, at most `length`."""
    return max(1, min(length, max(8, _BLOCK_BYTES // max(1, state_bytes))))


def _steps(tensor: Tensor, start: int, stop: int) -> Tensor:
    """A block of a (B, L, ...) tensor with the steps first: (S, B, ...)."""
    return tensor[:, start:stop].transpose(0, 1)


class _Block:
    """Work space of one block, reused: touching fresh memory costs more than the arithmetic done in it."""

    def __init__(self, steps: int, like: Tensor, states: int) -> None:
        shape = (steps, like.shape[0], like.shape[2], states)
        self.decay, self.state, self.gradient = (like.new_empty(shape) for _ in range(3))
        self.decays, self.states, self.gradients = (t.unbind() for t in (self.decay, self.state, self.gradient))

    def run(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Decays exp(delta A) and states h of a block, both (S, B, D, N); `x` is delta u."""
        steps = x.shape[0]
        decay, state = self.decay[:steps], self.state[:steps]
        torch.mul(delta.unsqueeze(-1), A, out=decay).exp_()
        torch.mul(x.unsqueeze(-1), B.unsqueeze(-2), out=state)
        previous = start
        for t in range(steps):
            previous = torch.addcmul(self.states[t], self.decays[t], previous, out=self.states[t])
        return decay, state

    def reverse(self, dy: Tensor, C: Tensor, carry: Tensor) -> Tensor:
        """Gradient of every state (S, B, D, N), g_t = dy_t C_t + a_(t+1) g_(t+1); `carry` that product at borders."""
        steps = dy.shape[0]
        gradient = torch.mul(dy.unsqueeze(-1), C.unsqueeze(-2), out=self.gradient[:steps])
        later = self.gradients[steps - 1].add_(carry)
        for t in range(steps - 2, -1, -1):
            later = torch.addcmul(self.gradients[t], self.decays[t + 1], later, out=self.gradients[t])
        torch.mul(self.decays[0], later, out=carry)
        return gradient


class BlockedScan(torch.autograd.Function):
    """y (B, L, D) of the recurrence; u, delta (B, L, D), A (D, N) or (B, D, N), B and C (B, L, N), one dtype."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        length, states = u.shape[1], A.shape[-1]
        steps = block_steps(length, u[:, :1].numel() * states * u.element_size())
        block, y = _Block(min(steps, length), u, states), torch.empty_like(u, memory_format=torch.contiguous_format)
        starts = u.new_zeros(-(-length // steps) if length else 0, u.shape[0], u.shape[2], states)
        for index, start in enumerate(range(0, length, steps)):
            stop = min(start + steps, length)
            dt = _steps(delta, start, stop)
            _, h = block.run(dt * _steps(u, start, stop), dt, A, _steps(B, start, stop), starts[index])
            y[:, start:stop] = (h @ _steps(C, start, stop).unsqueeze(-1)).squeeze(-1).transpose(0, 1)
            if stop < length:
                starts[index + 1] = h[-1]
        ctx.save_for_backward(u, delta, A, B, C, starts)
        ctx.steps = steps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, starts = ctx.saved_tensors
        length, states, steps = u.shape[1], A.shape[-1], ctx.steps
        block = _Block(min(steps, length), u, states)
        du, ddelta, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (u, delta, B, C))
        dA = u.new_zeros(u.shape[0], u.shape[2], states)
        carry = torch.zeros_like(dA)
        for index in reversed(range(starts.shape[0])):
            start, stop = index * steps, min((index + 1) * steps, length)
            u_, dt, B_, C_, dy_ = (_steps(t, start, stop) for t in (u, delta, B, C, dy))
            x, h0 = dt * u_, starts[index]
            a, h = block.run(x, dt, A, B_, h0)
            g = block.reverse(dy_, C_, carry)
            dx = (g @ B_.unsqueeze(-1)).squeeze(-1)
            dB[:, start:stop] = (x.unsqueeze(-2) @ g).squeeze(-2).transpose(0, 1)
            dC[:, start:stop] = (dy_.unsqueeze(-2) @ h).squeeze(-2).transpose(0, 1)
            du[:, start:stop] = (dx * dt).transpose(0, 1)
            dexponent = a.mul_(g)  # gradient of delta_t A: g_t a_t h_(t-1)
            dexponent[1:].mul_(h[:-1])
            dexponent[0].mul_(h0)
            ddelta[:, start:stop] = (dx * u_).transpose(0, 1) + (dexponent * A).sum(-1).transpose(0, 1)
            dA += dexponent.mul_(dt.unsqueeze(-1)).sum(0)
        return du, ddelta, dA if A.dim() == 3 else dA.sum(0), dB, dC


def scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, softplus: bool
) -> Tensor:
    """Selective scan (B, L, D) with skip weight D and gate z: y * silu(z). Shapes as in `BlockedScan`."""
    delta = torch.nn.functional.softplus(delta) if softplus else delta
    y = BlockedScan.apply(u, delta, A, B, C)
    if D is not None:
        y = y + u * (D.unsqueeze(1) if D.dim() == 2 else D)
    return y if z is None else y * torch.nn.functional.silu(z)
