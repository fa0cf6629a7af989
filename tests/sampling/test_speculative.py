"""The speculative loop: what it counts, and what must not change its result."""

from __future__ import annotations

import pytest
import torch
from problems import Mixture, random_noise

from asd_policy.errors import SamplerError
from asd_policy.sampling import (
    GaussianChain,
    Sequential,
    Speculative,
    parse_sampler,
    sample,
)

CHAIN = GaussianChain.ddpm(40)
SPECULATIVE = [
    "asd-paper:6", "asd-paper:inf", "carry:6", "refine:6", "refine:inf", "gain:6", "asd:6",
    "carry+block:6", "speculative-frozen:6",
]  # fmt: skip


class Counted:
    """A denoiser that counts its calls and rows, and says which steps it saw."""

    def __init__(self, denoise):
        self.denoise, self.rows, self.steps = denoise, [], []

    def __call__(self, x, step, chain_index):
        self.rows.append(len(x))
        self.steps.append(step.tolist())
        return self.denoise(x, step, chain_index)


@pytest.mark.parametrize("sampler", ["asd-paper:1", "carry:1", "refine:1"])
def test_a_window_of_one_is_ddpm_bit_for_bit(sampler):
    noise = random_noise(20, CHAIN, (2,), seed=3)
    expected = sample(Mixture(CHAIN).denoise, CHAIN, noise, "ddpm")
    result = sample(Mixture(CHAIN).denoise, CHAIN, noise, sampler)
    assert torch.equal(result.x, expected.x)
    assert result.calls == expected.calls == [40] * 20


@pytest.mark.parametrize("sampler", [s for s in SPECULATIVE if s != "speculative-frozen:6"])
def test_a_model_that_never_changes_its_mind_is_followed_at_full_speed(sampler):
    """Where every draft equals its target the path is DDPM's, and every window is accepted."""
    target = torch.tensor([0.3, -0.7])
    noise = random_noise(5, CHAIN, (2,), seed=3)

    def denoise(x, step, chain_index):
        return target.expand_as(x)

    expected = sample(denoise, CHAIN, noise, "ddpm").x
    result = sample(denoise, CHAIN, noise, sampler)
    assert torch.allclose(result.x, expected, atol=1e-6)
    window = parse_sampler(sampler).window or 40
    assert result.calls == [1 + -(-39 // window)] * 5
    assert result.evaluations == [40] * 5


@pytest.mark.parametrize("sampler", SPECULATIVE)
def test_counts_are_what_went_through_the_network(sampler):
    counted = Counted(Mixture(CHAIN).denoise)
    result = sample(counted, CHAIN, random_noise(1, CHAIN, (2,), seed=4), sampler)
    assert result.calls == [len(counted.rows)] == [len(result.accepted[0])]
    assert result.evaluations == [sum(counted.rows)]
    assert sum(result.accepted[0]) == 40


def test_asd_paper_calls_for_an_anchor_after_each_rejection():
    """Round by round as published: an anchor's single row, then a window, then as it went."""
    counted = Counted(Mixture(CHAIN).denoise)
    accepted = sample(counted, CHAIN, random_noise(1, CHAIN, (2,), seed=5), "asd-paper:6").accepted[
        0
    ]
    position, anchored = 0, False
    for rows, committed, steps in zip(counted.rows, accepted, counted.steps, strict=True):
        expected = min(6, 40 - position) if anchored else 1
        assert rows == expected
        assert steps == list(range(position, position + rows))
        anchored = committed == rows
        position += committed
    assert min(accepted[1:]) < 6, "the seed must show a rejection"


@pytest.mark.parametrize("sampler", ["ddpm", *SPECULATIVE])
def test_chains_do_not_see_each_other(sampler):
    noise = random_noise(9, CHAIN, (2,), seed=6)
    together = sample(Mixture(CHAIN).denoise, CHAIN, noise, sampler)
    for i in range(9):
        alone = sample(Mixture(CHAIN).denoise, CHAIN, noise[i : i + 1], sampler)
        assert torch.equal(alone.x[0], together.x[i])
        assert (alone.calls[0], alone.evaluations[0]) == (
            together.calls[i],
            together.evaluations[i],
        )


def test_the_denoiser_is_told_which_chain_a_row_belongs_to():
    targets = torch.linspace(-1, 1, 7)[:, None].expand(-1, 2)
    noise = random_noise(7, CHAIN, (2,), seed=7)
    result = sample(lambda x, step, i: targets[i], CHAIN, noise, "refine:6")
    assert torch.allclose(result.x, targets)


def test_states_of_any_shape():
    noise = random_noise(3, CHAIN, (4, 2, 5), seed=8)
    result = sample(lambda x, step, i: torch.tanh(x), CHAIN, noise, "refine:6")
    assert result.x.shape == (3, 4, 2, 5)


def test_sampler_names():
    assert parse_sampler("ddpm") == Sequential()
    assert parse_sampler("asd-paper:8") == Speculative("frozen", 8)
    assert parse_sampler("refine:inf") == Speculative("refine", None)
    for text in ("ddpm", "asd-paper:24", "asd-paper:inf", "carry:3", "refine:16"):
        assert str(parse_sampler(text)) == text
    for text in ("asdf", "ddpm:8", "asd:0", "asd:-1", "asd:x", "", "asd :8"):
        with pytest.raises(SamplerError):
            parse_sampler(text)


def test_refuses_noise_of_another_length():
    with pytest.raises(SamplerError, match="the chain has 40 steps, the noise 39"):
        sample(
            Mixture(CHAIN).denoise,
            CHAIN,
            random_noise(1, GaussianChain.ddpm(39), (2,), seed=0),
            "ddpm",
        )
