"""Linear maps: the same numbers as PyTorch's, row by row the same, and trainable."""

import pytest
import torch
import torch.nn.functional as F

from asd_policy.networks import linear as module
from asd_policy.networks.linear import Linear, linear


@pytest.fixture(params=[True, False], ids=["onednn", "pytorch"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not module.ONEDNN:
        pytest.skip("no oneDNN on this machine")
    monkeypatch.setattr(module, "ONEDNN", request.param)
    return bool(request.param)


@pytest.mark.parametrize("shape", [(1, 24), (2, 24), (7, 24), (3, 5, 24), (0, 24), (4, 0, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_is_the_affine_map(onednn: bool, shape: tuple[int, ...], with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(40, 24, generator=generator)
    bias = torch.randn(40, generator=generator) if with_bias else None
    with torch.inference_mode():
        y = linear(x, weight, bias)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert y.shape == (*shape[:-1], 40)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)


def test_takes_views(onednn: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 24, 9, generator=generator).transpose(1, 2)[:, 1::2]
    weight, bias = torch.randn(60, 24, generator=generator), torch.randn(60, generator=generator)
    with torch.inference_mode():
        y = linear(x, weight[20:50], bias[20:50])
    torch.testing.assert_close(y, F.linear(x, weight[20:50], bias[20:50]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(10, 192), (192, 768), (768, 192), (1024, 256), (256, 20)])
def test_a_row_does_not_depend_on_the_rows_beside_it(sizes: tuple[int, int]) -> None:
    if not module.ONEDNN:
        pytest.skip("no oneDNN on this machine")
    generator = torch.Generator().manual_seed(2)
    layer = Linear(*sizes)
    x = torch.randn(1300, sizes[0], generator=generator)
    with torch.inference_mode():
        whole = layer(x)
        for rows in (2, 3, 5, 13, 16, 64, 100, 129, 640):
            assert torch.equal(layer(x[:rows]), whole[:rows])
            assert torch.equal(layer(x[-rows:]), whole[-rows:])


def test_learns(onednn: bool) -> None:
    layer = Linear(3, 2)
    layer(torch.ones(4, 3)).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full((2, 3), 4.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_other_precisions(onednn: bool, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        assert Linear(3, 2).to(dtype)(torch.ones(4, 3, dtype=dtype)).dtype == dtype


def test_autocast_is_heeded(onednn: bool) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert Linear(3, 2)(torch.ones(4, 3)).dtype == torch.bfloat16
