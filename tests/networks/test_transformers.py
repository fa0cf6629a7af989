"""The transformer of Chi et al. and the score-GPT: names, sizes, and who sees what."""

from __future__ import annotations

import pytest
import torch
from paths import SHARED

from asd_policy.networks import DiffusionTransformer, ScoreGPT, Sizes, build_network

SIZES = Sizes(action_dim=3, pred_horizon=6, observation_dim=5, obs_horizon=2)
SMALL = {"chi_transformer": {"n_layer": 2, "n_head": 2, "n_emb": 16}}
SMALL["score_gpt"] = {"n_layer": 2, "n_head": 2, "n_emb": 16}


@pytest.fixture(params=sorted(SMALL))
def network(request):
    torch.manual_seed(0)
    network = build_network(request.param, SIZES, **SMALL[request.param]).eval()
    for parameter in network.parameters():  # no weight is zero, or a wrong use could hide
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return network.requires_grad_(False)


def published(name):
    """Names and shapes that the original code gives its parameters."""
    path = SHARED / "design/keys" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    lines = (line.strip() for line in path.read_text().splitlines())
    rows = (line.split(" ", 1) for line in lines if line)
    return {key: tuple(int(n) for n in shape.strip("() ").split(",") if n) for key, shape in rows}


def test_the_transformer_has_the_originals_parameters():
    sizes = Sizes(action_dim=10, pred_horizon=10, observation_dim=23, obs_horizon=2)
    network = DiffusionTransformer(sizes)
    ours = {f"model.{name}": tuple(p.shape) for name, p in network.named_parameters()}
    assert sum(p.numel() for p in network.parameters()) == 8_968_458
    theirs = published("chi_transformer_lowdim_square_abs.txt")
    constant = {"mask", "memory_mask", "_dummy_variable"}
    theirs = {
        key: shape
        for key, shape in theirs.items()
        if key.startswith("model.") and key.removeprefix("model.") not in constant
    }
    assert ours == theirs


def test_the_score_gpt_has_the_originals_parameters():
    """But for the positions: the original keeps some for goals, and one that nothing uses."""
    sizes = Sizes(action_dim=9, pred_horizon=4, observation_dim=30, obs_horizon=4)
    network = ScoreGPT(sizes, n_layer=6, n_head=6, n_emb=360)
    ours = {f"inner_model.{name}": tuple(p.shape) for name, p in network.named_parameters()}
    ours.pop("inner_model.pos_emb")
    theirs = {
        key: shape
        for key, shape in published("beso_kitchen.txt").items()
        if not key.endswith((".mask", "pos_emb"))
    }
    assert {key: ours[key] for key in theirs} == theirs


def outputs(network, sample, condition):
    times = torch.tensor([0.7])
    return network(sample, times, condition)[0]


def test_an_action_sees_what_came_before_it_and_nothing_after(network):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 6, 3, generator=generator)
    condition = torch.randn(1, 10, generator=generator)
    before = outputs(network, sample, condition)
    for changed in range(6):
        other = sample.clone()
        other[0, changed] += 1
        difference = (outputs(network, other, condition) - before).abs().amax(1)
        assert difference[:changed].max() < 1e-6 if changed else True
        assert difference[changed:].min() > 1e-5
    # The second frame is seen from the second action on, the first and the step by all.
    other = condition.clone()
    other[0, 5:] += 1
    difference = (outputs(network, sample, other) - before).abs().amax(1)
    assert difference[0] < 1e-6 and difference[1:].min() > 1e-5
    other = condition.clone()
    other[0, :5] += 1
    assert (outputs(network, sample, other) - before).abs().amax(1).min() > 1e-5
    elsewhere = network(sample, torch.tensor([0.9]), condition)[0]
    assert (elsewhere - before).abs().amax(1).min() > 1e-6


def test_prepared_embeddings_give_what_a_plain_pass_gives(network):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(4, 6, 3, generator=generator)
    condition = torch.randn(4, 10, generator=generator)
    times = torch.tensor([0.2, 0.5, 1.0, 3.0])
    whole = network(sample, times, condition)
    steps, conditions = network.embed_steps(times), network.embed_condition(condition)
    rows = [
        network.denoise(sample[i : i + 1], steps[i : i + 1], conditions[i : i + 1])
        for i in range(4)
    ]
    torch.testing.assert_close(torch.cat(rows), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", sorted(SMALL))
@torch.inference_mode()
def test_a_rows_result_does_not_depend_on_the_rows_beside_it(name):
    """At the sizes of the shipped policies, where the kernels are chosen by size."""
    torch.manual_seed(0)
    sizes = Sizes(action_dim=10, pred_horizon=10, observation_dim=29, obs_horizon=2)
    network = build_network(name, sizes, n_layer=2, n_head=6, n_emb=192).eval()
    sample = torch.randn(48, 10, 10)
    steps = network.embed_steps(torch.rand(48) + 0.5)
    rows = torch.randn(48, 58).split(1)
    conditions = torch.cat([network.embed_condition(row) for row in rows])
    whole = network.denoise(sample, steps, conditions)
    for count in (1, 2, 3, 5, 8, 17, 24, 33):
        some = network.denoise(sample[:count], steps[:count], conditions[:count])
        assert torch.equal(some, whole[:count]), (count, (some - whole[:count]).abs().amax((1, 2)))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_refuses_tokens_that_do_not_split_into_heads(name):
    with pytest.raises(ValueError, match="n_emb: expected a multiple"):
        build_network(name, SIZES, n_emb=17, n_head=2, n_layer=1)


def test_the_layers_are_torchs_own():
    """The arithmetic, arranged for sampling here, against ``nn.TransformerDecoder``."""
    torch.manual_seed(0)
    network = DiffusionTransformer(SIZES, n_layer=3, n_head=2, n_emb=16, p_drop_attn=0.0)
    sample, condition = torch.randn(4, 6, 3), torch.randn(4, 10)
    step = torch.tensor([0, 3, 50, 99])
    frames = network.cond_obs_emb(condition.unflatten(1, (2, 5)))
    tokens = torch.cat([network.time_emb(step).unsqueeze(1), frames], 1) + network.cond_pos_emb
    # The masks as the original builds them.
    ahead = torch.full((6, 6), -torch.inf).triu(1)
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(3), indexing="ij")
    unseen = torch.zeros(6, 3).masked_fill(rows < columns - 1, -torch.inf)
    expected = network.decoder(
        network.input_emb(sample) + network.pos_emb,
        network.encoder(tokens),
        tgt_mask=ahead,
        memory_mask=unseen,
    )
    expected = network.head(network.ln_f(expected))
    torch.testing.assert_close(network(sample, step, condition), expected, atol=1e-6, rtol=1e-5)
    network.train()
    assert torch.isfinite(network(sample, step, condition)).all()
