"""One speculative loop: draft a window, evaluate it in one call, verify, commit. Exactly the DDPM.

A round works on all chains and all steps of their windows at once: the drafted path is one
cumulative sum, the verification one vectorised pass, and nothing is copied to the host within it.
Between rounds the host reads each chain's position and next window, and plans which rows exist.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.coupling import block_verification, reflection_coupling
from asd_policy.sampling.drafts import ANCHORED, Drafts
from asd_policy.sampling.noise import ChunkNoise
from asd_policy.sampling.prior import Prior
from asd_policy.sampling.result import Denoise, SampleResult
from asd_policy.sampling.samplers import Speculative

FALLBACK_WINDOW = 24
"""θ where windows are to be planned but no gain tells how good the drafts are."""


class SpeculativeState:
    """N chains on their way: where each stands, and what its next drafts are.

    Args:
        chain: The reverse process.
        noise: The randomness of the N chains, on the device to run on.
        sampler: Draft, window and verifier.
        prior: What is known before the chunk begins.
    """

    def __init__(
        self, chain: GaussianChain, noise: ChunkNoise, sampler: Speculative, prior: Prior
    ) -> None:
        device = noise.initial.device
        n, k = noise.uniforms.shape
        self.num_steps = k
        self.sampler = sampler
        self.shape = noise.initial.shape[1:]
        self.noise = noise
        self.z, self.u = noise.steps.flatten(2), noise.uniforms
        self.x = noise.initial.flatten(1) * chain.initial_std
        self.position = torch.zeros(n, dtype=torch.long, device=device)
        self.drafts = Drafts(
            sampler.draft,
            chain,
            self.z,
            prior.gain if sampler.draft == "gain" else None,
            prior.previous if sampler.warm_start else None,
            prior.draft_model,
            self.shape,
        )
        self._windows: Tensor | None = None
        if isinstance(sampler.window, str):
            self._limit = FALLBACK_WINDOW
            if (plan := prior.windows(chain, sampler.window, n)) is not None:
                self._windows = torch.from_numpy(plan.windows).to(device)
        else:
            self._limit = sampler.window or k
        # Without a draft for its first step a chain begins with a window of one.
        self.window = torch.where(self.drafts.known, self._next_window(), 1)
        self.rounds = 0
        self._steps = torch.arange(k, device=device)
        self._coefficients = torch.stack([chain.a, chain.b, chain.s], dim=1).to(
            device, torch.float32
        )
        ratio = torch.where(chain.s > 0, chain.b / chain.s, 0.0)
        self._gap = ratio.to(device, torch.float32)

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        """Read positions and windows, ``(N,)`` each: the one copy to the host between rounds."""
        position, window = torch.stack([self.position, self.window]).cpu().numpy()
        return position, np.minimum(window, self.num_steps - position)

    def round(self, denoise: Denoise, width: int, rows: Tensor) -> None:
        """Draft, evaluate, verify and commit once, for all chains.

        Args:
            denoise: The model.
            width: W, at least the longest window of this round.
            rows: Which entries of the flattened ``(N, W)`` window exist, ``(R,)``.
        """
        size = self.x.shape[1]
        ahead = self._steps[:width]
        step = (self.position[:, None] + ahead).clamp(max=self.num_steps - 1)
        length = torch.minimum(self.window, self.num_steps - self.position)
        draft, states = self.drafts.propose(self.x, self.position, step)
        clean = torch.zeros_like(draft)
        clean.view(-1, size)[rows] = denoise(
            states.view(-1, *self.shape)[rows],
            step.view(-1)[rows],
            rows // width,
        ).flatten(1)

        self.difference = self._gap[step][:, :, None] * (draft - clean)
        stop, noise = self._verify(step, length)
        at_stop = stop[:, None, None].expand(-1, 1, size)
        a, b, s = self._coefficients[step.gather(1, stop[:, None])].unbind(-1)
        mean = a * states.gather(1, at_stop)[:, 0] + b * clean.gather(1, at_stop)[:, 0]
        running = length > 0
        self.x = torch.where(running[:, None], mean + s * noise, self.x)
        self.drafts.learn(self.position, states, clean, stop, length, mean)
        if self.sampler.verifier == "block":
            self._renew(self.position + stop, noise)
        self.position = self.position + torch.where(running, stop + 1, 0)
        self.window = self._next_window()
        if self.sampler.draft in ANCHORED:
            # As published, a rejection is followed by a call for a new anchor: a window of one.
            self.window = torch.where(stop + 1 < length, 1, self.window)
        self.rounds += 1

    def _verify(self, step: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The row ``(N,)`` at which each chain stops, and the noise ``(N, D)`` of its step there.

        No draft follows a window's last step, so that its draft may be its own evaluation: it is
        accepted for certain. (In ASD this evaluation is the next round's anchor.)
        """
        gather = step[:, :, None].expand(-1, -1, self.z.shape[2])
        z, u = self.z.gather(1, gather), self.u.gather(1, step)
        last = (length - 1).clamp(min=0)
        if self.sampler.verifier == "block":
            fresh = self.noise.redrawn(2 * self.rounds)
            return block_verification(
                self.difference,
                z,
                torch.cat([u, u[:, -1:]], dim=1),
                last,
                fresh.initial.flatten(1),
                fresh.uniforms[:, 0],
            )
        coupled = reflection_coupling(self.difference, z, u)
        ahead = self._steps[: step.shape[1]]
        accepted = (coupled.accepted | (ahead == last[:, None])) & (ahead < length[:, None])
        stop = torch.minimum(accepted.long().cumprod(1).sum(1), last)
        at_stop = stop[:, None, None].expand(-1, 1, z.shape[2])
        noise = torch.where(
            accepted.gather(1, stop[:, None]),
            z.gather(1, at_stop)[:, 0],
            coupled.rejected_noise.gather(1, at_stop)[:, 0],
        )
        return stop, noise

    def _renew(self, decided: Tensor, noise: Tensor) -> None:
        """Draw all noise after the step ``decided`` afresh, and note what that step's was."""
        fresh = self.noise.redrawn(2 * self.rounds + 1)
        later = self._steps > decided[:, None]
        self.z = torch.where(later[:, :, None], fresh.steps.flatten(2), self.z)
        self.u = torch.where(later, fresh.uniforms, self.u)
        now = (self._steps == decided[:, None])[:, :, None]
        self.z = torch.where(now, noise[:, None], self.z)
        self.drafts.hear(self.z)

    def _next_window(self) -> Tensor:
        if self._windows is None:
            return torch.full_like(self.position, self._limit)
        return self._windows[self.position.clamp(max=self.num_steps - 1), self.drafts.last + 1]


def sample_speculative(
    denoise: Denoise, chain: GaussianChain, noise: ChunkNoise, sampler: Speculative, prior: Prior
) -> SampleResult:
    """Sample N chains exactly, in fewer sequential calls than they have steps.

    Sources: Hu et al. (2025), arXiv 2505.03983, for ``frozen``; the other drafts differ in what
    they predict, not in how they are verified.
    """
    state = SpeculativeState(chain, noise, sampler, prior)
    device = noise.initial.device
    n = len(noise.initial)
    evaluations = np.zeros(n, dtype=np.int64)
    accepted: list[list[int]] = [[] for _ in range(n)]
    position, length = state.plan()
    while length.any():
        width = int(length.max())
        rows = np.flatnonzero(np.arange(width) < length[:, None])
        state.round(denoise, width, torch.from_numpy(rows).to(device, non_blocking=True))
        evaluations += length
        before = position
        position, following = state.plan()
        for index in np.flatnonzero(length):
            accepted[index].append(int(position[index] - before[index]))
        length = following
    return SampleResult(
        state.x.view(n, *state.shape),
        [len(committed) for committed in accepted],
        evaluations.tolist(),
        accepted,
    )
