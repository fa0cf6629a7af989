"""The Gaussian chain: one description of every reverse process that the samplers run.

Steps are numbered in the direction of denoising, ``j = 0 … K-1``: state ``x_0`` is pure noise and
``x_K`` the sample,

    x_{j+1} = a_j x_j + b_j x0(x_j, j) + s_j z_j,    z_j ~ N(0, I),   s_{K-1} = 0,

where ``x0`` is the denoiser's prediction of the clean sample and ``a, b, s`` depend on the
schedule alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from asd_policy.errors import SamplerError

BetaSchedule = Literal["squaredcos_cap_v2", "linear"]
VarianceType = Literal["fixed_small", "fixed_large"]
NoiseGrid = Literal["exponential", "karras"]
Posterior = Literal["ratio", "table"]


def betas(schedule: BetaSchedule, num_train_steps: int) -> Tensor:
    """The forward process's variances as published models were trained with, ``(T,)`` float32.

    ``squaredcos_cap_v2`` is Nichol & Dhariwal (2021), eq. 17, capped at 0.999; ``linear`` is Ho et
    al. (2020) from 1e-4 to 0.02, not rescaled to T, as in diffusers.
    """
    if schedule == "linear":
        return torch.linspace(1e-4, 0.02, num_train_steps, dtype=torch.float32)
    if schedule == "squaredcos_cap_v2":

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        edges = [alpha_bar(i / num_train_steps) for i in range(num_train_steps + 1)]
        return torch.tensor(
            [min(1 - after / before, 0.999) for before, after in pairwise(edges)],
            dtype=torch.float32,
        )
    raise SamplerError(f"unknown β schedule {schedule!r}; expected one of {get_args(BetaSchedule)}")


@dataclass(frozen=True, eq=False)
class GaussianChain:
    """A reverse process as tables over its K steps (float64 unless said, on the CPU).

    Attributes:
        a: Weight of the state, ``(K,)``.
        b: Weight of the predicted clean sample, ``(K,)``.
        s: Standard deviation of the noise, ``(K,)``; zero at the last step and nowhere else.
        signal: Weight of the clean sample in state j, ``(K,)``: √ᾱ, or 1 for EDM.
        noise: Standard deviation of the noise in state j, ``(K,)``: √(1-ᾱ), or σ for EDM.
        network_time: What the network is told of step j, ``(K,)``: the training step number
            (int64) of a DDPM, or σ of an EDM chain.
        initial_std: Standard deviation of ``x_0``.
    """

    a: Tensor
    b: Tensor
    s: Tensor
    signal: Tensor
    noise: Tensor
    network_time: Tensor
    initial_std: float

    def __post_init__(self) -> None:
        """Refuse tables that the samplers' mathematics does not hold for."""
        k = self.num_steps
        for name in ("a", "b", "s", "signal", "noise", "network_time"):
            table = getattr(self, name)
            if table.shape != (k,):
                raise SamplerError(f"chain table {name}: expected shape ({k},), got {table.shape}")
        if self.s[-1] != 0 or not bool((self.s[:-1] > 0).all()):
            raise SamplerError("a chain has noise at every step but the last, which has none")
        if not bool((self.a[:-1] > 0).all()):
            raise SamplerError("a chain's state weights a must be positive before the last step")

    @property
    def num_steps(self) -> int:
        """K, the number of sequential steps."""
        return len(self.a)

    @classmethod
    def ddpm(
        cls,
        num_steps: int = 100,
        schedule: BetaSchedule = "squaredcos_cap_v2",
        variance: VarianceType = "fixed_small",
        num_train_steps: int | None = None,
        posterior: Posterior = "ratio",
    ) -> GaussianChain:
        """DDPM's ancestral sampling (Ho et al. 2020, eqs. 6-7), respaced if shorter than training.

        Args:
            num_steps: K, the steps to run.
            schedule: The β schedule of training.
            variance: ``fixed_small`` is the posterior's β̃, ``fixed_large`` is β.
            num_train_steps: T of training; K when None. Respaced steps are "leading", as in
                diffusers: every (T // K)-th from 0.
            posterior: Where the posterior's α and β come from: ``ratio``, from ᾱ_t / ᾱ_{t-1}, as
                in diffusers today; ``table``, from the schedule itself, as in diffusers 0.11, with
                which Chi et al. evaluated. They are one formula, rounded differently: actions
                differ by some 1e-5. ``table`` is for unshortened chains alone.

        Raises:
            SamplerError: On an unknown schedule, variance or posterior, or K not in 1…T.
        """
        total = num_steps if num_train_steps is None else num_train_steps
        if not 1 <= num_steps <= total:
            raise SamplerError(
                f"num_steps must be between 1 and num_train_steps={total}, got {num_steps}"
            )
        if variance not in get_args(VarianceType):
            raise SamplerError(
                f"unknown variance {variance!r}; expected one of {get_args(VarianceType)}"
            )
        if posterior not in get_args(Posterior) or (posterior == "table" and num_steps != total):
            raise SamplerError(
                f"posterior: expected one of {get_args(Posterior)}, 'table' with all {total} steps "
                f"of training; got {posterior!r} with {num_steps}"
            )
        # All in float32, operation by operation as in diffusers: late in a chain β and 1 - ᾱ keep
        # few digits, and this is the chain that published policies are evaluated with.
        alphas_cumprod = torch.cumprod(1 - betas(schedule, total), dim=0)
        stride = total // num_steps
        timesteps = torch.arange(num_steps - 1, -1, -1) * stride
        current = alphas_cumprod[timesteps]
        previous = torch.cat([alphas_cumprod[timesteps[:-1] - stride], torch.ones(1)])
        if posterior == "ratio":
            alpha = current / previous
            beta = 1 - alpha
        else:
            beta = betas(schedule, total)[timesteps]
            alpha = 1 - beta
        s = beta.clone()
        if variance == "fixed_small":
            s = ((1 - previous) / (1 - current) * beta).clamp(min=1e-20)
        s[-1] = 0.0
        return cls(
            a=(alpha.sqrt() * (1 - previous) / (1 - current)).double(),
            b=(previous.sqrt() * beta / (1 - current)).double(),
            s=s.sqrt().double(),
            signal=current.sqrt().double(),
            noise=(1 - current).sqrt().double(),
            network_time=timesteps,
            initial_std=1.0,
        )

    @classmethod
    def edm_grid(
        cls,
        num_steps: int = 100,
        grid: NoiseGrid = "exponential",
        sigma_min: float = 0.005,
        sigma_max: float = 1.0,
        rho: float = 7.0,
    ) -> GaussianChain:
        """The ancestral chain over a grid of noise levels.

        Args:
            num_steps: K.
            grid: ``exponential``, evenly spaced logarithms (BESO); ``karras``, Karras et al. 2022,
                eq. 5.
            sigma_min: Noise level of the last state before the sample.
            sigma_max: Noise level of ``x_0``.
            rho: The exponent of the ``karras`` grid; of no account to the other.

        Raises:
            SamplerError: On an unknown grid, fewer than two steps, or levels that are not positive
                and increasing from the least to the largest.
        """
        if grid not in get_args(NoiseGrid):
            raise SamplerError(f"unknown grid {grid!r}; expected one of {get_args(NoiseGrid)}")
        if not (0 < sigma_min < sigma_max < math.inf and 0 < rho < math.inf and num_steps >= 2):
            raise SamplerError(
                "expected 0 < sigma_min < sigma_max, rho > 0 and two or more steps, got "
                f"{sigma_min}, {sigma_max}, {rho} and {num_steps}"
            )
        share = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        if grid == "exponential":
            low, high = math.log(sigma_min), math.log(sigma_max)
            return cls.edm_ancestral((high + share * (low - high)).exp())
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        return cls.edm_ancestral((high + share * (low - high)) ** rho)

    @classmethod
    def edm_ancestral(cls, sigmas: Tensor) -> GaussianChain:
        """The ancestral chain of a variance-exploding model (Karras et al. 2022; BESO).

        Args:
            sigmas: Noise levels of the K states in decreasing order, ``(K,)``, all positive; the
                last step goes to 0 and returns the prediction.

        Raises:
            SamplerError: If the levels are not positive and strictly decreasing.
        """
        levels = sigmas.double()
        if levels.ndim != 1 or not bool((levels > 0).all()) or bool((levels.diff() >= 0).any()):
            raise SamplerError(f"expected positive, strictly decreasing noise levels, got {sigmas}")
        following = torch.cat([levels[1:], levels.new_zeros(1)])
        ratio = (following / levels) ** 2
        return cls(
            a=ratio,
            b=1 - ratio,
            s=following * (1 - ratio).sqrt(),
            signal=torch.ones_like(levels),
            noise=levels,
            network_time=levels,
            initial_std=float(levels[0]),
        )
