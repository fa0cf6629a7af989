"""Every sampler called exact has DDPM's distribution, and the test that says so can fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from problems import Mixture, chains, prior, random_noise

import envs
from asd_policy.formats import load_checkpoint
from asd_policy.policies import Planner
from asd_policy.sampling import (
    calibrate,
    drafts,
    parse_sampler,
    record_predictions,
    sample,
    speculative,
)
from asd_policy.sampling.coupling import Coupled
from eval.two_sample import same_distribution

SAMPLES = 15_000
# Below this a difference is real: some sixty honest comparisons leave a false alarm unlikely.
SIGNIFICANCE = 1e-4
EXACT = [
    "asd-paper:1", "asd-paper:12", "asd-paper:inf", "carry:12", "carry:inf", "refine:1",
    "refine:12", "refine:inf", "refine+warm:12", "gain:1", "gain:inf", "asd", "asd:4", "asd:inf",
    "asd:auto", "carry+block:12", "gain+block:12", "asd+block:6", "asd+block:inf",
    "speculative-frozen:6", "speculative-independent:6",
]  # fmt: skip


def draw(chain, sampler, seed, n=SAMPLES):
    noise = random_noise(n, chain, (2,), seed)
    return sample(Mixture(chain).denoise, chain, noise, sampler, prior(chain, n))


@pytest.fixture(scope="module", params=chains().items(), ids=lambda item: item[0])
def reference(request):
    chain = request.param[1]
    return chain, draw(chain, "ddpm", seed=0).x.numpy()


@pytest.mark.parametrize("sampler", ["ddpm", *EXACT])
def test_samples_the_ddpm_distribution(reference, sampler):
    chain, expected = reference
    result = draw(chain, sampler, seed=1)
    assert same_distribution(expected, result.x.numpy()) > SIGNIFICANCE
    assert all(sum(accepted) == chain.num_steps for accepted in result.accepted)


@pytest.mark.parametrize("sampler", ["asd-paper:12", "carry:12", "refine:12", "asd"])
def test_is_worth_it(reference, sampler):
    chain, _ = reference
    assert np.mean(draw(chain, sampler, seed=1, n=500).calls) < 0.5 * chain.num_steps


def plant_in_coupling(monkeypatch, replacement):
    """Run ``replacement(honest, difference, z, u)`` where the loop verifies its drafts."""
    honest = speculative.reflection_coupling
    monkeypatch.setattr(
        speculative, "reflection_coupling", lambda *inputs: Coupled(*replacement(honest, *inputs))
    )


def redraw_instead_of_reflecting(monkeypatch):
    def replacement(honest, difference, z, u):
        fresh = torch.randn(z.shape, generator=torch.Generator().manual_seed(5))
        return honest(difference, z, u).accepted, fresh

    plant_in_coupling(monkeypatch, replacement)


def keep_the_noise_instead_of_reflecting(monkeypatch):
    plant_in_coupling(
        monkeypatch, lambda honest, difference, z, u: (honest(difference, z, u).accepted, z)
    )


def accept_too_often(monkeypatch):
    plant_in_coupling(monkeypatch, lambda honest, difference, z, u: honest(difference, z, u**3))


def verify_with_the_next_steps_noise(monkeypatch):
    plant_in_coupling(
        monkeypatch, lambda honest, difference, z, u: honest(difference, z.roll(-1, dims=1), u)
    )


def peek_at_the_noise(monkeypatch):
    honest = drafts.Drafts.propose

    def planted(self, x, position, step):
        guess, _ = honest(self, x, position, step)
        z = self._z.gather(1, step[:, :, None].expand(-1, -1, guess.shape[2]))
        guess = guess + 0.3 * z
        return guess, self._path.follow(x, step, guess, z)

    monkeypatch.setattr(drafts.Drafts, "propose", planted)


def evaluate_one_step_too_late(monkeypatch):
    honest = speculative.SpeculativeState.round

    def planted(state, denoise, *rest):
        last = state.num_steps - 1
        honest(state, lambda x, step, i: denoise(x, (step + 1).clamp(max=last), i), *rest)

    monkeypatch.setattr(speculative.SpeculativeState, "round", planted)


COSINE = pytest.mark.parametrize("reference", [("cosine", chains()["cosine"])], indirect=True)


@COSINE
@pytest.mark.parametrize("sampler", ["asd-paper:12", "carry:12", "refine:12", "asd:12"])
@pytest.mark.parametrize(
    "plant",
    [
        redraw_instead_of_reflecting,
        keep_the_noise_instead_of_reflecting,
        peek_at_the_noise,
        verify_with_the_next_steps_noise,
        evaluate_one_step_too_late,
        accept_too_often,
    ],
)
def test_a_planted_error_is_caught(reference, sampler, plant, monkeypatch):
    chain, expected = reference
    plant(monkeypatch)
    assert same_distribution(expected, draw(chain, sampler, seed=1).x.numpy()) < SIGNIFICANCE


def draft_from_the_states_after(monkeypatch):
    """Let the answers to a path's own states, secants among them, see the noise of their steps."""
    honest = drafts.PathTables.follow

    def planted(self, x, step, h, z):
        states = honest(self, x, step, h, z)
        follows_the_gain = self._product.shape[1] > 1
        return torch.cat([states[:, 1:], states[:, -1:]], 1) if follows_the_gain else states

    monkeypatch.setattr(drafts.PathTables, "follow", planted)


@COSINE
@pytest.mark.parametrize("sampler", ["gain:inf", "asd:12"])
def test_drafts_that_see_their_own_noise_are_caught(reference, sampler, monkeypatch):
    chain, expected = reference
    draft_from_the_states_after(monkeypatch)
    assert same_distribution(expected, draw(chain, sampler, seed=1).x.numpy()) < SIGNIFICANCE


def keep_the_later_noise(monkeypatch):
    monkeypatch.setattr(speculative.SpeculativeState, "_renew", lambda state, decided, noise: None)


def keep_the_orthogonal_noise_of_the_draft(monkeypatch):
    """Where the block stops, take the draft's own noise for the target's."""
    honest = speculative.block_verification

    def planted(difference, z, u, count, fresh, fresh_u):
        verdict = honest(difference, z, u, count, fresh, fresh_u)
        at = verdict.stop.clamp(max=z.shape[1] - 1)[:, None, None].expand(-1, 1, z.shape[2])
        return verdict._replace(noise=z.gather(1, at)[:, 0])

    monkeypatch.setattr(speculative, "block_verification", planted)


def accept_longer_blocks(monkeypatch):
    honest = speculative.block_verification
    monkeypatch.setattr(
        speculative, "block_verification", lambda d, z, u, *rest: honest(d, z, u**3, *rest)
    )


@COSINE
@pytest.mark.parametrize("sampler", ["asd+block:inf"])
@pytest.mark.parametrize(
    "plant",
    [
        keep_the_later_noise,
        keep_the_orthogonal_noise_of_the_draft,
        accept_longer_blocks,
        peek_at_the_noise,
        evaluate_one_step_too_late,
    ],
)
def test_a_planted_error_in_block_verification_is_caught(reference, sampler, plant, monkeypatch):
    chain, expected = reference
    plant(monkeypatch)
    assert same_distribution(expected, draw(chain, sampler, seed=1).x.numpy()) < SIGNIFICANCE


CHUNKS = 700


@pytest.fixture(scope="module")
def draw_chunks():
    """Chunks of the shipped PushT policy at one observation, with a chain respaced to 20 steps."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(REPOSITORY / "checkpoints" / "pusht_chi_unet")
    spec = checkpoint.spec
    chain = {**spec.chain, "num_steps": 20, "num_train_steps": 100}
    planner = Planner(
        dataclasses.replace(spec, chain=chain),
        checkpoint.network,
        checkpoint.normalizers,
        torch.device("cpu"),
    )
    observation, _ = envs.make("pusht").reset(seed=0)
    frame = np.concatenate([observation[entry.key].ravel() for entry in spec.observations])
    history = np.tile(frame, (CHUNKS, spec.obs_horizon, 1))

    def noise(n, seed):
        return random_noise(n, planner.chain, planner.chunk_shape, seed)

    # The gain of the checkpoint is of 100 steps.
    with torch.inference_mode():
        chains = (planner.denoiser(history[:64]), planner.chain, noise(64, seed=9))
        planner.gain = calibrate(*chains, record_predictions(*chains), clip=1.0)

    def draw_chunks(sampler, seed):
        # A chunk that the policy might have planned before, or has not.
        previous = [torch.zeros(planner.chunk_shape) if i % 3 else None for i in range(CHUNKS)]
        planned = planner.plan(history, noise(CHUNKS, seed), parse_sampler(sampler), previous)
        return planned.result.x.flatten(1).numpy()

    return draw_chunks


@pytest.fixture(scope="module")
def expected_chunks(draw_chunks):
    return draw_chunks("ddpm", 0)


@pytest.mark.parametrize("sampler", ["asd-paper:8", "refine:8", "asd", "asd+block:8"])
def test_the_shipped_policy_samples_the_ddpm_distribution(draw_chunks, expected_chunks, sampler):
    assert same_distribution(expected_chunks, draw_chunks(sampler, 1)) > SIGNIFICANCE


def test_a_planted_error_is_caught_on_the_shipped_policy(draw_chunks, expected_chunks, monkeypatch):
    keep_the_noise_instead_of_reflecting(monkeypatch)
    assert same_distribution(expected_chunks, draw_chunks("refine:8", 1)) < SIGNIFICANCE
