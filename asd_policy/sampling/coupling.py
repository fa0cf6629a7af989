"""Verifying drafted Gaussian steps: the reflection coupling, and block verification."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Coupled(NamedTuple):
    """The outcome of verifying drafted steps.

    Attributes:
        accepted: Whether the drafted state stands, ``(...)`` bool.
        rejected_noise: Noise of the target step where the draft does not stand, ``(..., D)``.
    """

    accepted: Tensor
    rejected_noise: Tensor


def reflection_coupling(difference: Tensor, z: Tensor, u: Tensor) -> Coupled:
    """Couple ``N(m̂, s²I)``, drawn as ``m̂ + s z``, maximally with ``N(m, s²I)``.

    With ``D = (m̂ - m)/s``, accept the draft if ``log u ≤ -⟨z, D⟩ - ‖D‖²/2``; else the exact draw
    is ``m + s (z - 2 e ⟨e, z⟩)`` with ``e = D/‖D‖``. P(accept) = 2 Φ(-‖D‖/2), the most that any
    coupling can reach. A draft that is not finite is rejected for certain, whatever z is, and z
    itself is the exact draw. Sources: Hu et al. (2025), arXiv 2505.03983 (their Gaussian rejection
    sampler); De Bortoli et al. (2025), arXiv 2501.05370 (the same as a reflection coupling).

    Args:
        difference: D, ``(..., D)``, float32 or wider.
        z: The draft's noise, ``(..., D)``.
        u: Uniform in (0, 1], ``(...)``, independent of z and of the draft.
    """
    squared = difference.square().sum(-1)
    possible = squared.isfinite()
    projection = (difference * z).sum(-1)
    accepted = u.log() <= -projection - squared / 2
    # Where D = 0 the draft is always accepted; the bound only keeps 0/0 away.
    scale = 2 * projection / squared.clamp(min=torch.finfo(squared.dtype).tiny)
    reflected = z - scale.unsqueeze(-1) * difference
    return Coupled(accepted & possible, torch.where(possible.unsqueeze(-1), reflected, z))


_FARTHEST = 1e6


class BlockVerdict(NamedTuple):
    """The outcome of verifying a block of drafts together.

    Attributes:
        stop: How many drafts stand, ``(N,)``: also the row of the first that does not.
        noise: Noise of the target step at row ``stop``, ``(N, D)``; where all drafts stand, it is
            left as it was.
    """

    stop: Tensor
    noise: Tensor


def block_verification(
    difference: Tensor, z: Tensor, u: Tensor, drafts: Tensor, fresh: Tensor, fresh_u: Tensor
) -> BlockVerdict:
    """Decide on a whole prefix of drafted steps at once (Soen et al. 2026, arXiv 2606.13426).

    With ``p_j`` the prefix's likelihood ratio, capped at 1 as it grows, the longest prefix with
    ``u_j ≤ h_j`` stands; after it the component along ``D`` is drawn from what the target has left,
    by bisection. Whoever calls this draws all noise after row ``stop`` afresh. A draft that is not
    finite, or too far off for the arithmetic, never stands.

    Args:
        difference: ``(m̂ - m)/s`` of each row, ``(N, W, D)``.
        z: The drafts' noise, ``(N, W, D)``.
        u: Uniform in (0, 1], ``(N, W + 1)``, for each length of prefix from 0.
        drafts: How many rows are drafts, ``(N,)``, at most W.
        fresh: Standard normal, ``(N, D)``, independent of all else.
        fresh_u: Uniform in (0, 1], ``(N,)``, independent of all else.
    """
    n, width, size = difference.shape
    # The paper's D is the target's mean less the draft's.
    d = -difference.double()
    # Beyond it the overlap is nothing, and s - ‖D‖ has no digits left.
    possible = d.norm(dim=-1) <= _FARTHEST
    d = torch.where(possible[:, :, None], d, 0.0)
    size_d = d.norm(dim=-1)
    ratio = torch.where(possible, (z * d).sum(-1) - size_d.square() / 2, -torch.inf)
    log_p = [ratio.new_zeros(n)]
    for row in range(width):
        log_p.append((log_p[-1] + ratio[:, row]).clamp(max=0.0))
    log_prefix = torch.stack(log_p, dim=1)
    delta = size_d.clamp(min=1e-12)
    start = delta / 2 - log_prefix[:, :-1] / delta
    prefix = log_prefix.exp()
    left = _residual(prefix[:, :-1], delta, start)
    # A certain prefix stands for certain, whatever rounding says of 0/0.
    open_ended = torch.where(
        prefix[:, :-1] >= 1, 1.0, left / (left + 1 - prefix[:, :-1]).clamp(min=1e-300)
    )
    # Such a row is as good as disjoint: all that the target has is left.
    open_ended = torch.where(possible, open_ended, prefix[:, :-1])
    rows = torch.arange(width + 1, device=z.device)
    bound = torch.cat([open_ended, prefix[:, -1:]], dim=1)
    bound = torch.where(rows == drafts[:, None], prefix, bound)
    stands = (u <= bound) & (rows <= drafts[:, None])
    stands[:, 0] = True
    stop = torch.where(stands, rows, 0).amax(1)

    at = stop.clamp(max=width - 1)[:, None]
    delta, start, left, p = (t.gather(1, at)[:, 0] for t in (delta, start, left, prefix[:, :-1]))
    along = _bisect(p, delta, start, fresh_u.double() * left)
    gather = at[:, :, None].expand(-1, 1, size)
    direction = (d.gather(1, gather)[:, 0] / delta[:, None]).to(z.dtype)
    orthogonal = fresh - (fresh * direction).sum(-1, keepdim=True) * direction
    drawn = orthogonal + (along - delta).to(z.dtype)[:, None] * direction
    drawn = torch.where(possible.gather(1, at), drawn, fresh)
    kept = z.gather(1, gather)[:, 0]
    return BlockVerdict(stop, torch.where((stop < drafts)[:, None], drawn, kept))


def _upper(x: Tensor) -> Tensor:
    """Φ̄, the standard normal's upper tail."""
    return torch.special.erfc(x / math.sqrt(2)) / 2


def _residual(p: Tensor, delta: Tensor, start: Tensor) -> Tensor:
    """Mass beyond ``start`` that the target has and the draft, weighted by 1/p, has not."""
    return (p * _upper(start - delta) - _upper(start)).clamp(min=0.0)


def _bisect(p: Tensor, delta: Tensor, start: Tensor, mass: Tensor, times: int = 60) -> Tensor:
    """The s ≥ start with residual mass ``mass`` beyond it."""
    low, high = start, torch.maximum(start, delta) + 12.0
    for _ in range(times):
        middle = (low + high) / 2
        above = _residual(p, delta, middle) > mass
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2
