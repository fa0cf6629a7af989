"""How a network is called on a CPU: in blocks of a few sizes that change no result."""

import pytest
import torch
from torch import Tensor, nn

from asd_policy.policies.runners import NetworkModel, block_rows
from asd_policy.sampling import CleanPrediction, GaussianChain, Parametrization

CPU = torch.device("cpu")


class _Recorder(nn.Module):
    """Predicts from its three inputs, row by row, and notes how many rows it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def embed_steps(self, step: Tensor) -> Tensor:
        return step[:, None].float()

    def embed_condition(self, condition: Tensor) -> Tensor:
        return condition

    def denoise(self, sample: Tensor, step_embedding: Tensor, condition: Tensor) -> Tensor:
        self.rows.append(len(sample))
        return sample + step_embedding[:, :, None] + 1000 * condition[:, :, None]


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 100, 256, 257, 700])
def test_blocks_change_no_result(rows: int) -> None:
    chain, network = GaussianChain.ddpm(30), _Recorder()
    clean = CleanPrediction(chain, Parametrization("sample", None), CPU)
    model = NetworkModel(network, chain, clean, CPU)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 4, 3, generator=generator)
    step = torch.randint(chain.num_steps, (rows,), generator=generator)
    index = torch.randint(5, (rows,), generator=generator)
    condition = torch.arange(5.0)[:, None]

    predicted = model.given(condition)(x, step, index)

    times = chain.network_time[step].float()
    torch.testing.assert_close(
        predicted, x + times[:, None, None] + 1000 * index[:, None, None], rtol=0, atol=1e-3
    )
    assert sum(network.rows) >= rows
    assert max(network.rows) <= 256


def test_few_sizes_of_blocks() -> None:
    sizes = {block_rows(rows) for rows in range(1, 257)}
    assert len(sizes) == 48
    assert sizes >= set(range(1, 17)) | {24, 32, 64, 96, 128, 192, 256}
    for rows in range(1, 257):
        assert rows <= block_rows(rows) < 1.125 * rows
