"""Test samplers against sequential DDPM: ``python -m eval.exactness checkpoint=FOLDER``.

At observations of the policy's own episodes many chunks of each sampler, and two-sample tests of
them; the report says what difference the tests would have seen.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import asd_policy
from asd_policy import AsdPolicyError
from asd_policy.formats import load_checkpoint
from asd_policy.policies import Planner, Policy
from asd_policy.sampling import Sampler, Sequential, Speculative, is_exact
from envs.errors import EnvError
from eval.errors import EvaluationError, RequestError
from eval.exactness_draws import MOST_SAMPLES, Drawn, draw, draw_at, observe
from eval.exactness_report import Report
from eval.exactness_verdict import CONTROL, Comparison
from eval.power import detectable
from eval.provenance import describe, identify
from eval.recorded import source
from eval.settings import device, results_folder, samplers, whole
from eval.two_sample import KINDS, compare

_ENERGY_SIZE = 1000
_MOST_PERMUTATIONS = 50_000


@dataclass(frozen=True)
class Request:
    """What to test, read from the configuration (see `configs/eval/exactness.yaml`) and checked."""

    checkpoint: Path
    samplers: tuple[Sampler, ...]
    recorded: str | None
    observations: int
    samples: int
    num_steps: int | None
    significance: float
    first_seed: int
    device: str
    output: Path

    @classmethod
    def from_config(cls, config: DictConfig) -> Request:
        """Read the configuration.

        Raises:
            RequestError: If a value cannot be tested.
            asd_policy.SamplerError: If there is no such sampler.
        """
        if OmegaConf.is_missing(config, "checkpoint"):
            raise RequestError("checkpoint: expected a checkpoint's folder, got nothing")
        significance = config.significance
        if not isinstance(significance, float) or not 0 < significance <= 0.1:
            raise RequestError(
                f"significance: expected a number above 0 and at most 0.1, got {significance!r}"
            )
        checkpoint = Path(str(config.checkpoint))
        return cls(
            checkpoint=checkpoint,
            samplers=_contenders(config),
            recorded=None if config.recorded is None else str(config.recorded),
            observations=whole(config, "observations", 1, 1000),
            samples=whole(config, "samples", 100, MOST_SAMPLES),
            num_steps=None if config.num_steps is None else whole(config, "num_steps", 2, 1 << 16),
            significance=significance,
            first_seed=whole(config, "first_seed", 0, 1 << 31),
            device=device(config),
            output=Path(config.output or results_folder("exactness", checkpoint)),
        )


def run(config: DictConfig, command: str) -> Report:
    """Test as the configuration says, and write the report.

    Raises:
        RequestError: If the configuration asks for what cannot be tested.
        asd_policy.AsdPolicyError: If the checkpoint cannot be read or a sampler cannot run.
    """
    torch.set_num_threads(1)
    request = Request.from_config(config)
    policy = asd_policy.load_policy(request.checkpoint, device=request.device)
    provenance = {**describe(request.device), "checkpoint": identify(request.checkpoint)}
    planner, notes = _planner(request, policy)
    episodes = source(policy.spec, request.recorded, request.first_seed)
    situations = observe(policy, episodes, request.first_seed, request.observations)
    labels: dict[str, Sampler] = {CONTROL: Sequential()} | {str(s): s for s in request.samplers}
    for sampler in labels.values():
        # What a sampler lacks is to be said now and not after the reference has been drawn.
        draw_at(planner, situations, 0, sampler, range(1))
    total = (1 + len(labels)) * len(situations) * request.samples
    drawn = {}
    with tqdm(total=total, unit="chunk") as progress:
        for stream, (label, sampler) in enumerate({"ddpm": Sequential(), **labels}.items(), 1):
            progress.set_description(label)
            drawn[label] = draw(planner, situations, sampler, request.samples, stream, progress)
    reference = drawn.pop("ddpm")
    report = Report(
        command=command,
        checkpoint=str(request.checkpoint),
        task=policy.spec.task,
        num_steps=planner.chain.num_steps,
        samples=request.samples,
        significance=request.significance,
        situations=[
            (int(seed), int(chunk))
            for seed, chunk in zip(situations.seed, situations.chunk, strict=True)
        ],
        calls=reference.calls,
        evaluations=reference.evaluations,
        comparisons=_compared(request, labels, reference, drawn),
        power=[
            detectable(
                np.concatenate(both), request.samples, request.significance / len(situations)
            )
            for both in zip(reference.chunks, drawn[CONTROL].chunks, strict=True)
        ],
        notes=notes,
        provenance=provenance,
    )
    report.write(request.output, reference.chunks, {k: v.chunks for k, v in drawn.items()})
    return report


def _compared(
    request: Request,
    labels: dict[str, Sampler],
    reference: Drawn,
    drawn: dict[str, Drawn],
) -> list[Comparison]:
    # So many that the energy distance alone can reject.
    needed = 1.25 * len(KINDS) * request.observations / request.significance
    permutations = min(int(needed), _MOST_PERMUTATIONS)
    pairs = [(label, i) for label in drawn for i in range(request.observations)]
    tests = {
        (label, i): compare(
            reference.chunks[i],
            drawn[label].chunks[i],
            energy_size=_ENERGY_SIZE,
            permutations=permutations,
            seed=i,
        )
        for label, i in tqdm(pairs, desc="comparing", unit="comparison")
    }
    return [
        Comparison(
            label,
            is_exact(sampler),
            tuple(tests[label, i] for i in range(request.observations)),
            drawn[label].calls,
            drawn[label].evaluations,
        )
        for label, sampler in labels.items()
    ]


def _planner(request: Request, policy: Policy) -> tuple[Planner, list[str]]:
    """The planner to test, and what is to be said of it."""
    steps = policy.planner.chain.num_steps
    learned = [str(s) for s in request.samplers if isinstance(s, Speculative) and s.draft == "gain"]
    if request.num_steps is None or request.num_steps == steps:
        if learned and policy.planner.gain is None:
            return policy.planner, [
                f"The checkpoint has no gain: {', '.join(learned)} drafted without it."
            ]
        return policy.planner, []
    if request.num_steps > steps:
        raise RequestError(
            f"num_steps: the checkpoint's chain has {steps} steps, got {request.num_steps}"
        )
    for sampler in request.samplers:
        if isinstance(sampler, Speculative) and (
            sampler.window == "auto" or sampler.uses_draft_model
        ):
            raise RequestError(
                f"sampler: {sampler} needs the checkpoint's gain or draft, which are not for a "
                "respaced chain: leave num_steps=null, or leave it out"
            )
    checkpoint = load_checkpoint(request.checkpoint)
    chain = {**checkpoint.spec.chain, "num_steps": request.num_steps}
    if chain["name"] == "ddpm":
        # Of the steps that the network was trained for; EDM's lie on a grid of any size.
        chain["num_train_steps"] = chain.get("num_train_steps") or steps
    planner = Planner(
        replace(checkpoint.spec, chain=chain),
        checkpoint.network,
        checkpoint.normalizers,
        policy.device,
    )
    notes = [f"The chain is respaced from {steps} to {request.num_steps} steps."]
    if learned:
        notes.append(f"A gain is of the whole chain: {', '.join(learned)} drafted without it.")
    return planner, notes


def _contenders(config: DictConfig) -> tuple[Sampler, ...]:
    found = samplers(config, "sampler")
    if Sequential() in found:
        raise RequestError("sampler: ddpm is what the others are compared with; leave it out")
    return found


@hydra.main(version_base="1.3", config_path="../configs/eval", config_name="exactness")
def main(config: DictConfig) -> None:
    """Test; exit with 0 if all exact samplers pass, 1 if one fails, 2 if none could be tested."""
    command = shlex.join(["python", "-m", "eval.exactness", *HydraConfig.get().overrides.task])
    try:
        report = run(config, command)
    except (EvaluationError, AsdPolicyError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
    print(report.text())
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
