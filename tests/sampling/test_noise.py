"""Noise depends on its key and on nothing else."""

from __future__ import annotations

import pytest
import torch

from asd_policy.errors import SamplerError
from asd_policy.sampling import ChunkNoise, NoiseStream


def test_the_same_key_gives_the_same_noise():
    one, two = (NoiseStream(7, 1).chunk(3, 20, (4, 2)) for _ in range(2))
    assert torch.equal(one.initial, two.initial)
    assert torch.equal(one.steps, two.steps)
    assert torch.equal(one.uniforms, two.uniforms)


def test_a_steps_noise_does_not_depend_on_the_number_of_steps():
    short, long = (NoiseStream(7).chunk(0, k, (4, 2)) for k in (10, 50))
    assert torch.equal(short.initial, long.initial)
    assert torch.equal(short.steps, long.steps[:, :10])
    assert torch.equal(short.uniforms, long.uniforms[:, :10])


def test_other_keys_give_independent_noise():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**40, 0, 0)]
    blocks = torch.stack(
        [NoiseStream(s, r).chunk(c, 100, (20,)).steps.flatten() for s, r, c in keys]
    )
    correlation = torch.corrcoef(blocks) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.12
    assert blocks.std() == pytest.approx(1, abs=0.03)


def test_uniforms_are_never_zero():
    uniforms = NoiseStream(0).chunk(0, 100_000, (1,)).uniforms
    assert 0 < uniforms.min() and uniforms.max() <= 1
    assert uniforms.mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("key", [(-1, 0), (0, -1), (1.5, 0), ("7", 0), (True, 0)])
def test_refuses_keys_that_are_no_seeds(key):
    with pytest.raises(SamplerError, match="expected a non-negative integer"):
        NoiseStream(*key)


def test_refuses_shapes_that_disagree():
    with pytest.raises(SamplerError, match="noise shapes disagree"):
        ChunkNoise(torch.zeros(2, 3), torch.zeros(2, 5, 4), torch.ones(2, 5))


def test_noise_drawn_again_is_keyed_and_new():
    stream = NoiseStream(7, 1)
    block = stream.chunk(3, 20, (4, 2))
    again = block.redrawn(0)
    assert torch.equal(again.steps, stream.chunk(3, 20, (4, 2)).redrawn(0).steps)
    others = [block, again, block.redrawn(1), stream.chunk(4, 20, (4, 2)).redrawn(0)]
    flat = torch.stack([other.steps.flatten() for other in others])
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.35
    together = ChunkNoise.stack([stream.chunk(2, 20, (4, 2)), block])
    assert torch.equal(together.redrawn(0).steps[1:], again.steps)
    assert torch.equal(together[1:].redrawn(0).uniforms, again.uniforms)


def test_says_so_when_noise_cannot_be_drawn_again():
    block = ChunkNoise(torch.zeros(1, 3), torch.zeros(1, 5, 3), torch.ones(1, 5))
    with pytest.raises(SamplerError, match="NoiseStream"):
        block.redrawn(0)


def test_uniforms_know_nothing_of_the_normals():
    """Streams of one key would make the accept tests follow the noise that they judge."""
    blocks = [NoiseStream(seed).chunk(0, 40, (8, 8)) for seed in range(200)]
    u = torch.cat([block.uniforms for block in blocks]).double()
    first = torch.cat([block.initial.flatten(1)[:, :40] for block in blocks]).double()
    along = torch.cat([block.steps.flatten(2)[:, :, 0] for block in blocks]).double()
    for normal in (first, first.abs(), along, along.abs()):
        pair = torch.stack([u.flatten(), normal.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4.5 / u.numel() ** 0.5
