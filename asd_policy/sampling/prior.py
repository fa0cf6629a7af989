"""What is known before a chunk begins: it may guide drafts and windows without bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import SamplerError
from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.gain import Gain
from asd_policy.sampling.result import Denoise
from asd_policy.sampling.samplers import Speculative
from asd_policy.sampling.windows import CostTable, WindowPlan, plan_windows, priced

_WORTH = 0.95
"""Drafting that promises less than this is left alone: its own arithmetic takes time, too."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Knowledge that speculation may use: nothing in it depends on the chunk's noise.

    Attributes:
        gain: How predictions answer to the noise, on the device to run on.
        previous: For each chain a prediction of its sample, ``(*D)``, or None: the chunk to expect,
            or the one planned before, as it is seen now.
        draft_model: A second, cheaper model (for ``speculative-independent``).
        costs: What calls cost on this machine (for ``auto`` windows).
    """

    gain: Gain | None = None
    previous: Sequence[Tensor | None] | None = None
    draft_model: Denoise | None = None
    costs: CostTable | None = None
    plans: dict[tuple[str, int], WindowPlan] = field(default_factory=dict)
    """Windows planned before, kept by whoever keeps the gain and the costs."""

    def known(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The previous chunks as one tensor ``(N, *D)``, and for which chains there is one."""
        chunks = self.previous or [None] * len(like)
        if len(chunks) != len(like):
            raise SamplerError(f"previous: expected {len(like)} entries, got {len(chunks)}")
        nothing = torch.zeros_like(like[0])
        known = [chunk is not None for chunk in chunks]
        return (
            torch.stack([nothing if chunk is None else chunk.to(like) for chunk in chunks]),
            torch.tensor(known, device=like.device),
        )

    def worth_drafting(self, chain: GaussianChain, sampler: Speculative, chains: int) -> bool:
        """Whether ``auto`` windows are expected to save time; other windows are never asked."""
        if sampler.window != "auto":
            return True
        plan = self.windows(chain, "auto", chains)
        if plan is None or self.costs is None:
            raise SamplerError(
                "window 'auto' needs to know how good the drafts are: run `python -m "
                "eval.calibrate checkpoint=…` once, or give the window as a number"
            )
        sequential = chain.num_steps * float(self.costs(np.array(chains)))
        expected = plan.cost if sampler.warm_start else plan.cold_cost
        return expected < _WORTH * sequential

    def windows(self, chain: GaussianChain, rule: str, chains: int) -> WindowPlan | None:
        """The windows by a rule for so many chains together; None without a gain.

        Raises:
            SamplerError: If windows are to be chosen by time and no costs are known.
        """
        if self.gain is None:
            return None
        key = (rule, chains if rule == "auto" else 1)
        if key not in self.plans:
            if rule == "planned":
                cost = priced(chain.num_steps)
            elif self.costs is None:
                raise SamplerError(
                    "window 'auto' needs to know what calls cost: pass Prior(costs=CostTable(…)); "
                    "a Policy measures them itself"
                )
            else:
                cost = self.costs(chains * np.arange(1, chain.num_steps + 1))
                cost += self.costs.round_seconds
            self.plans[key] = plan_windows(chain, self.gain, cost)
        return self.plans[key]
