"""From what a network predicts to the clean sample x̂0: the only place where this is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from asd_policy.errors import SamplerError
from asd_policy.sampling.chain import GaussianChain

Prediction = Literal["epsilon", "sample", "v_prediction", "edm"]


@dataclass(frozen=True)
class Parametrization:
    """What the network predicts, and the clip that makes x̂0 of it.

    Attributes:
        prediction: ``epsilon`` (Ho et al. 2020), ``sample``, ``v_prediction`` (Salimans & Ho 2022)
            or ``edm`` (preconditioned as in Karras et al. 2022, table 1).
        clip: Bound on the absolute value of x̂0, or None.
        sigma_data: The data's standard deviation, for ``edm`` alone.
    """

    prediction: Prediction = "epsilon"
    clip: float | None = 1.0
    sigma_data: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that no network was trained with."""
        if self.prediction not in get_args(Prediction):
            raise SamplerError(
                f"unknown prediction {self.prediction!r}; expected one of {get_args(Prediction)}"
            )
        if self.clip is not None and not self.clip > 0:
            raise SamplerError(f"clip must be positive or None, got {self.clip!r}")
        size = self.sigma_data
        if size is not None and not (isinstance(size, (int, float)) and 0 < size < math.inf):
            raise SamplerError(f"sigma_data: expected a number above 0, got {size!r}")
        if (self.sigma_data is not None) != (self.prediction == "edm"):
            raise SamplerError(
                f"sigma_data belongs to prediction 'edm' and to no other; got prediction "
                f"{self.prediction!r} with sigma_data {self.sigma_data!r}"
            )


class CleanPrediction:
    """Computes ``x̂0 = clip((p_j x + q_j F) / r_j)`` from the network's output F at step j.

    Args:
        chain: The reverse process.
        parametrization: What F is.
        device: Where the tables live.
    """

    def __init__(
        self, chain: GaussianChain, parametrization: Parametrization, device: torch.device
    ) -> None:
        signal, noise = chain.signal, chain.noise
        one, zero = torch.ones_like(signal), torch.zeros_like(signal)
        c_in = one
        if parametrization.prediction == "epsilon":
            p, q, r = one, -noise, signal
        elif parametrization.prediction == "sample":
            p, q, r = zero, one, one
        elif parametrization.prediction == "v_prediction":
            # v = signal ε - noise x0 with signal² + noise² = 1.
            p, q, r = signal, -noise, one
        else:
            sigma_data = float(parametrization.sigma_data or 0.0)
            total = (noise**2 + sigma_data**2).sqrt()
            p, q, r = sigma_data**2 / total**2, noise * sigma_data / total, one
            c_in = 1 / total
        self.clip = parametrization.clip
        self._scales_input = parametrization.prediction == "edm"
        self._tables = torch.stack([p, q, r, c_in], dim=1).to(device, torch.float32)

    def network_input(self, x: Tensor, step: Tensor) -> Tensor:
        """The state as the network expects it: ``(R, *D)`` for rows at steps ``(R,)``."""
        if not self._scales_input:
            return x
        return x * self._tables[step, 3].view(-1, *[1] * (x.ndim - 1))

    def target(self, x: Tensor, clean: Tensor, step: Tensor) -> Tensor:
        """What the network is to put out ``(R, *D)`` where the clean sample is known: training."""
        shape = (-1, *[1] * (x.ndim - 1))
        p, q, r, _ = self._tables[step].unbind(1)
        return (clean * r.view(shape) - x * p.view(shape)) / q.view(shape)

    def __call__(self, x: Tensor, output: Tensor, step: Tensor) -> Tensor:
        """x̂0 ``(R, *D)`` from states and network outputs ``(R, *D)`` at steps ``(R,)``."""
        shape = (-1, *[1] * (x.ndim - 1))
        p, q, r, _ = self._tables[step].unbind(1)
        clean = (x * p.view(shape) + output * q.view(shape)) / r.view(shape)
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)
