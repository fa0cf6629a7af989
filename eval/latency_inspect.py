"""Where the time and the memory of planning go: measured apart from the times that are reported."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from asd_policy.policies import Planner
from asd_policy.sampling import Prior, Sampler, Speculative, WindowPlan, sample
from eval.latency_problem import Problem, synchronize


def shares_outside(
    planner: Planner, problems: Sequence[Problem], samplers: Sequence[Sampler]
) -> dict[str, float]:
    """The part of each sampler's time that is spent outside of the network, median over problems.

    Outside is what is not within a call that denoises: moving the noise, embedding the observation,
    drafting, verifying, copying the chunk back. The device is synchronised around every call, and
    samplers run call by call: of a time in which graphs are replayed, this is not the share. A
    sampler with a draft network, which a planner does not lend, is left out.
    """
    plans: dict[tuple[str, int], WindowPlan] = {}
    shares: dict[str, float] = {}
    for sampler in tqdm(samplers, desc="time in the network", unit="sampler"):
        if isinstance(sampler, Speculative) and sampler.draft == "independent":
            continue
        # The first one plans the windows.
        every = [_outside(planner, p, sampler, plans) for p in (problems[0], *problems)][1:]
        shares[str(sampler)] = float(np.median(every))
    return shares


def device_memory(
    planner: Planner, problems: Sequence[Problem], samplers: Sequence[Sampler]
) -> dict[str, int]:
    """Bytes of all tensors on an accelerator at most, while each sampler plans.

    The weights are among them, and the buffers that the other samplers' graphs keep. What a graph
    computes in lies in a pool of its own, which PyTorch does not count when the graph is replayed.
    """
    if planner.device.type != "cuda":
        return {}
    peaks: dict[str, int] = {}
    for sampler in samplers:
        torch.cuda.reset_peak_memory_stats(planner.device)
        for problem in problems:
            problem.timed(planner, sampler)
        peaks[str(sampler)] = torch.cuda.max_memory_allocated(planner.device)
    return peaks


def process_memory() -> int:
    """Bytes that this process had in memory at most, libraries included."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands getrusage's figure on from the process that started this one.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@torch.inference_mode()
def _outside(
    planner: Planner, problem: Problem, sampler: Sampler, plans: dict[tuple[str, int], WindowPlan]
) -> float:
    """What `Planner.plan` does but for scaling the actions, with a clock around the network."""
    auto = isinstance(sampler, Speculative) and sampler.window == "auto"
    costs = planner.costs() if auto else None
    inside = 0.0
    synchronize(planner.device)
    start = time.perf_counter()
    previous: Sequence[Tensor | None] = problem.previous
    if isinstance(sampler, Speculative) and sampler.warm_start:
        previous = planner.expect(problem.history, previous)
    prior = Prior(planner.gain, previous, costs=costs, plans=plans)
    network = planner.denoiser(problem.history)

    def denoise(x: Tensor, step: Tensor, chain_index: Tensor) -> Tensor:
        nonlocal inside
        synchronize(planner.device)
        begin = time.perf_counter()
        clean = network(x, step, chain_index)
        synchronize(planner.device)
        inside += time.perf_counter() - begin
        return clean

    result = sample(denoise, planner.chain, problem.noise.to(planner.device), sampler, prior)
    result.x.cpu()
    synchronize(planner.device)
    return 1 - inside / (time.perf_counter() - start)
