"""Learn how to draft for a policy: ``python -m eval.calibrate checkpoint=FOLDER``.

Follows the policy through a few episodes of its task, or through recorded ones
(``recorded=FILE``), learns which chunks to expect, samples the chunks step by step, fits the
gain to them and writes both beside the weights. It takes some minutes, once for a checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

import asd_policy
from asd_policy import AsdPolicyError
from asd_policy.formats import save_gain
from asd_policy.policies.expectation import Expectation, fit_expectation
from asd_policy.policies.policy import Policy
from asd_policy.sampling import Gain, calibrate, record_predictions
from envs.errors import EnvError
from eval.errors import EvaluationError, RequestError
from eval.provenance import describe, identify
from eval.recorded import source
from eval.settings import device, whole
from eval.situations import Situations, record

_CALIBRATION_REPEAT = 1 << 31
"""No evaluation's: what is expected of a chunk must know nothing of the noise it is drawn with."""

_FEWEST = 16
"""Chunks below which there is too little to learn a covariance from."""


@torch.inference_mode()
def fit(policy: Policy, situations: Situations) -> tuple[Gain, Expectation]:
    """Fit a policy's gain, and which chunks to expect of it, at some situations."""
    planner = policy.planner
    rows = range(len(situations))
    steps = planner.chain.num_steps
    noise = situations.noise(rows, steps, planner.chunk_shape, repeat=_CALIBRATION_REPEAT)
    denoise = planner.denoiser(situations.history)
    with tqdm(total=2 * len(rows), desc="calibrating", unit="chunk") as progress:
        chains = (denoise, planner.chain, noise.to(planner.device))
        predictions = record_predictions(*chains, on_progress=progress.update)
        expectation, expected = fit_expectation(
            planner.state_features(situations.history),
            situations.known(rows),
            predictions,
            torch.from_numpy(situations.seed),
        )
        gain = calibrate(
            *chains,
            predictions,
            policy.spec.parametrization.clip,
            [chunk.view(planner.chunk_shape) for chunk in expected],
            on_progress=progress.update,
        )
    return gain, expectation


def run(config: DictConfig) -> Path:
    """Calibrate as the configuration says.

    Returns:
        The file written.

    Raises:
        eval.errors.RequestError: If a setting is refused, as one that leaves too little to learn.
        asd_policy.AsdPolicyError: If the checkpoint cannot be read or written.
    """
    torch.set_num_threads(1)
    if OmegaConf.is_missing(config, "checkpoint"):
        raise RequestError("checkpoint: expected a checkpoint's folder, got nothing")
    chunks, name = whole(config, "chunks", _FEWEST), device(config)
    before = identify(config.checkpoint)
    # Read as it is without its gain, which may be the very thing to mend.
    policy = asd_policy.load_policy(config.checkpoint, device=name, gain=False)
    first_seed = whole(config, "first_seed", 0)
    episodes = source(policy.spec, config.recorded, first_seed)
    episodes.check_chunks(chunks, policy.spec)
    situations = record(policy, episodes.make_env, first_seed, chunks, episodes.max_steps)
    if len(set(situations.seed)) < 2:
        raise RequestError(
            f"chunks: {chunks} are all of one episode, and what to expect is judged by episodes "
            "that were not fitted; ask for more"
        )
    gain, expectation = fit(policy, situations)
    notes = {
        "chunks": chunks,
        "first_seed": first_seed,
        "recorded": config.recorded and Path(config.recorded).name,
        "made_with": describe(name),
    }
    if identify(config.checkpoint) != before:
        raise RequestError(
            f"checkpoint: {config.checkpoint} has changed meanwhile, and this was learned of what "
            "it was: run it again"
        )
    return save_gain(gain, config.checkpoint, notes, expectation)


@hydra.main(version_base="1.3", config_path="../configs/eval", config_name="calibrate")
def main(config: DictConfig) -> None:
    """Run from the command line."""
    try:
        print(f"wrote {run(config)}")
    except (EvaluationError, AsdPolicyError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
