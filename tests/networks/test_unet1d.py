"""The U-Net: the original's names and numbers, and rows that do not depend on their batch."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from paths import SHARED
from safetensors.torch import load_file

from asd_policy.networks import ConditionalUnet1D, Sizes, build_network
from asd_policy.sampling import (
    ChunkNoise,
    CleanPrediction,
    GaussianChain,
    Parametrization,
    sample,
)

LEROBOT = SHARED / "fixtures" / "lerobot_033_state"
KEYS = SHARED / "design" / "keys" / "chi_unet_lowdim_square_abs.txt"


def small_unet() -> ConditionalUnet1D:
    torch.manual_seed(0)
    return ConditionalUnet1D(2, 40, 128, (64, 128, 256)).eval()


def test_the_published_sizes():
    """Parameter counts of Chi et al.'s released low-dim policies."""
    with torch.device("meta"):
        for action_dim, observation_dim, count in (
            (10, 19, 65_768_970),
            (10, 23, 65_883_658),
            (20, 59, 66_933_780),
        ):
            network = ConditionalUnet1D(action_dim, 2 * observation_dim)
            assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.skipif(not KEYS.exists(), reason="needs the list of the original's tensors")
def test_the_originals_names_shapes_and_order():
    expected = [
        (name, tuple(int(size) for size in re.findall(r"\d+", shape)))
        for name, shape in re.findall(r"^model\.(\S+) \(([^)]*)\)", KEYS.read_text(), re.M)
    ]
    with torch.device("meta"):
        network = ConditionalUnet1D(10, 46)
    assert [(k, tuple(v.shape)) for k, v in network.state_dict().items()] == expected


# Against a checkpoint of LeRobot 0.3.3 (the same network under other names) and its golden outputs.
needs_golden = pytest.mark.skipif(not LEROBOT.exists(), reason="needs the golden checkpoint")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(LEROBOT / "golden_diffusers0352.npz"))


@pytest.fixture(scope="module")
def golden_network():
    config = json.loads((LEROBOT / "pretrained_model" / "config.json").read_text())
    network = ConditionalUnet1D(
        7, 46, config["diffusion_step_embed_dim"], config["down_dims"], config["kernel_size"]
    )
    prefix = "diffusion.unet."
    tensors = {}
    for name, tensor in load_file(LEROBOT / "pretrained_model" / "model.safetensors").items():
        if name.startswith(prefix):
            name = re.sub(r"\.conv([12])\.block\.", _block, name.removeprefix(prefix))
            name = re.sub(r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv.", name)
            tensors[name] = tensor
    network.load_state_dict(tensors, strict=True)
    return network.eval().requires_grad_(False)


@needs_golden
def test_one_forward_is_the_originals(golden_network, golden):
    out = golden_network(
        torch.from_numpy(golden["net_sample"]),
        torch.from_numpy(golden["net_timestep"]),
        torch.from_numpy(golden["net_cond"]),
    )
    assert np.abs(out.numpy() - golden["net_out"]).max() < 1e-5


@needs_golden
def test_a_hundred_ddpm_steps_are_the_originals(golden_network, golden):
    chain = GaussianChain.ddpm(100)
    clean = CleanPrediction(chain, Parametrization(), torch.device("cpu"))
    steps = torch.from_numpy(golden["step_noise"][0]).transpose(0, 1)
    noise = ChunkNoise(
        torch.from_numpy(golden["init_noise"][0]),
        torch.cat([steps, torch.zeros_like(steps[:, :1])], dim=1),
        torch.ones(3, 100),
    )
    condition = torch.from_numpy(golden["global_cond"][0])
    result = sample(
        lambda x, j, i: clean(x, golden_network(x, chain.network_time[j], condition[i]), j),
        chain,
        noise,
        "ddpm",
    )
    assert np.abs(result.x.numpy() - golden["sample_final"][0]).max() < 5e-6


def _block(match: re.Match[str]) -> str:
    return f".blocks.{int(match[1]) - 1}.block."


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_batch_bit_for_bit():
    network = small_unet()
    x, steps, condition = torch.randn(33, 16, 2), torch.arange(33), torch.randn(33, 40)
    embedded = network.embed_steps(steps), network.embed_condition(condition)
    full = network.denoise(x, *embedded)
    for size in (1, 2, 3, 5, 8, 16, 24):
        part = network.denoise(x[:size], *(e[:size] for e in embedded))
        assert torch.equal(part, full[:size]), size
    order = torch.randperm(33)
    assert torch.equal(network.denoise(x[order], *(e[order] for e in embedded)), full[order])


def test_prepared_embeddings_are_the_original_film():
    """The split linear equals the original's Linear(Mish(cat(step, condition))) to rounding."""
    network = small_unet()
    step, condition = torch.tensor([0, 50, 99]), torch.randn(3, 40)
    film = network.embed_steps(step) + network.embed_condition(condition)
    joined = torch.cat([network.diffusion_step_encoder(step), condition], dim=1)
    first = network.down_modules[0][0].cond_encoder(joined)
    assert torch.allclose(film[:, : first.shape[1]], first, atol=1e-5)


def test_without_scale_the_film_is_a_bias():
    network = ConditionalUnet1D(2, 4, 16, (16, 32), 3, 4, cond_predict_scale=False)
    out = network(torch.randn(2, 8, 2), torch.tensor([1, 2]), torch.randn(2, 4))
    assert out.shape == (2, 8, 2)


def test_unknown_network():
    with pytest.raises(ValueError, match="unknown network 'resnet'"):
        build_network("resnet", Sizes(2, 8, 2, 2))
