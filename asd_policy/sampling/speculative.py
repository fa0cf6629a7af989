"""One speculative loop: draft a window, evaluate it in one call, verify, commit. Exactly the DDPM.

A round works on all chains and all steps of their windows at once: the drafted path is one
cumulative sum, the verification one vectorised pass, and nothing is copied to the host within it.
Between rounds the host reads each chain's position and next window, and plans which rows exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

    One object serves any number of chunks, one after the other: tables are made once.

    Args:
        chain: The reverse process.
        sampler: Draft, window and verifier.
        prior: What is known before any chunk begins.
        chains: N.
        device: Where to work.
    """

    def __init__(
        self,
        chain: GaussianChain,
        sampler: Speculative,
        prior: Prior,
        chains: int,
        device: torch.device,
    ) -> None:
        self.num_steps = chain.num_steps
        self.sampler = sampler
        self.drafts = Drafts(sampler.draft, chain, prior.gain, device)
        self.windows: Tensor | None = None
        self.longest = self.num_steps
        if not isinstance(sampler.window, str):
            self.longest = min(sampler.window or self.num_steps, self.num_steps)
        elif (plan := prior.windows(chain, sampler.window, chains)) is None:
            self.longest = min(FALLBACK_WINDOW, self.num_steps)
        else:
            self.windows = torch.from_numpy(plan.windows).to(device)
        self._initial_std = chain.initial_std
        self._steps = torch.arange(self.num_steps, device=device)
        self._coefficients = torch.stack([chain.a, chain.b, chain.s], dim=1).to(
            device, torch.float32
        )
        ratio = torch.where(chain.s > 0, chain.b / chain.s, 0.0)
        self._gap = ratio.to(device, torch.float32)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that a round takes from the one before, by name."""
        own = {name: getattr(self, name) for name in ("x", "position", "window")}
        drafts = {f"drafts.{n}": getattr(self.drafts, n) for n in self.drafts.CHUNK_TENSORS}
        return own | drafts

    @tensors.setter
    def tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.drafts if owner else self, attribute, tensor)

    def begin(
        self, noise: ChunkNoise, previous: Tensor, known: Tensor, draft_model: Denoise | None = None
    ) -> None:
        """Begin N chains.

        Args:
            noise: Their randomness, on the device.
            previous: Predictions of their samples, ``(N, *D)``.
            known: For which chains there is one, ``(N,)``.
            draft_model: For ``speculative-independent``.
        """
        self.noise = noise
        self.shape = noise.initial.shape[1:]
        self.z, self.u = noise.steps.flatten(2), noise.uniforms
        self.x = noise.initial.flatten(1) * self._initial_std
        self.position = torch.zeros_like(known, dtype=torch.long)
        if not self.sampler.warm_start:
            known = torch.zeros_like(known)
        self.drafts.begin(self.z, previous.flatten(1), known, draft_model, self.shape)
        # Without a draft for its first step a chain begins with a window of one.
        self.window = torch.where(self.drafts.known, self._next_window(), 1)
        self.rounds = 0

    def plan(self) -> tuple[np.ndarray, np.ndarray]:
        """Read positions and windows, ``(N,)`` each: the one copy to the host between rounds."""
        position, window = torch.stack([self.position, self.window]).cpu().numpy()
        return position, np.minimum(window, self.num_steps - position)

    def round(self, denoise: Denoise, width: int, rows: Tensor | None = None) -> None:
        """Draft, evaluate, verify and commit once, for all chains.

        Args:
            denoise: The model.
            width: W, at least the longest window of this round, or windows are cut to it: they are
                while a graph of this width is captured.
            rows: Which entries of the flattened ``(N, W)`` window exist, ``(R,)``; None evaluates
                them all, for the sake of shapes that never change.
        """
        size = self.x.shape[1]
        ahead = self._steps[:width]
        step = (self.position[:, None] + ahead).clamp(max=self.num_steps - 1)
        length = torch.minimum(self.window, self.num_steps - self.position).clamp(max=width)
        draft, states = self.drafts.propose(self.x, self.position, step)
        if rows is None:
            chains = torch.arange(len(step) * width, device=step.device) // width
            clean = denoise(states.view(-1, *self.shape), step.view(-1), chains).view_as(draft)
        else:
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
        if self.windows is None:
            return torch.full_like(self.position, self.longest)
        return self.windows[self.position.clamp(max=self.num_steps - 1), self.drafts.last + 1]


def sample_speculative(
    denoise: Denoise, chain: GaussianChain, noise: ChunkNoise, sampler: Speculative, prior: Prior
) -> SampleResult:
    """Sample N chains exactly, in fewer sequential calls than they have steps.

    Sources: Hu et al. (2025), arXiv 2505.03983, for ``frozen``; the other drafts differ in what
    they predict, not in how they are verified.
    """
    n, device = len(noise.initial), noise.initial.device
    state = SpeculativeState(chain, sampler, prior, n, device)
    state.begin(noise, *prior.known(noise.initial), prior.draft_model)

    def advance(width: int, length: np.ndarray) -> None:
        rows = np.flatnonzero(np.arange(width) < length[:, None])
        state.round(denoise, width, torch.from_numpy(rows).to(device, non_blocking=True))

    return run_rounds(state, advance)


def run_rounds(
    state: SpeculativeState,
    advance: Callable[[int, np.ndarray], None],
    read: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None,
) -> SampleResult:
    """Advance chains that have begun to their ends, counting what it takes.

    Args:
        state: The chains.
        advance: Runs a round, given its longest window and the windows ``(N,)``.
        read: Reads positions and windows, ``state.plan`` when None.
    """
    read = read or state.plan
    position, length = read()
    n = len(position)
    evaluations = np.zeros(n, dtype=np.int64)
    accepted: list[list[int]] = [[] for _ in range(n)]
    while length.any():
        advance(int(length.max()), length)
        evaluations += length
        before = position
        position, following = read()
        for index in np.flatnonzero(length):
            accepted[index].append(int(position[index] - before[index]))
        length = following
    return SampleResult(
        state.x.view(n, *state.shape),
        [len(committed) for committed in accepted],
        evaluations.tolist(),
        accepted,
    )
