"""Linear maps: the same numbers as PyTorch's, row by row the same, and trainable."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from asd_policy.networks import linear as module
from asd_policy.networks.linear import Linear, linear, packed_weights


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


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sizes", [(10, 192), (192, 768), (768, 192), (1024, 256), (256, 20)])
def test_a_row_does_not_depend_on_the_rows_beside_it(sizes: tuple[int, int], packed: bool) -> None:
    if not module.ONEDNN:
        pytest.skip("no oneDNN on this machine")
    generator = torch.Generator().manual_seed(2)
    layer = Linear(*sizes)
    x = torch.randn(1300, sizes[0], generator=generator)
    packing = packed_weights({}) if packed else contextlib.nullcontext()
    with torch.inference_mode(), packing:
        whole = layer(x)
        for rows in (2, 3, 5, 13, 16, 64, 100, 129, 640):
            assert torch.equal(layer(x[:rows]), whole[:rows])
            assert torch.equal(layer(x[-rows:]), whole[-rows:])


def test_packed_weights_follow_the_weights(onednn: bool) -> None:
    layer, x = Linear(24, 40), torch.ones(3, 24)
    packs: module.Packs = {}
    for change in (0.0, 1.0):
        with torch.no_grad():
            layer.weight += change
            expected = F.linear(x, layer.weight, layer.bias)
            for _ in range(2):
                with packed_weights(packs):
                    y = layer(x)
                    halves = [linear(x, half, None) for half in layer.weight.chunk(2)]
                torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(
                    torch.cat(halves, dim=1) + layer.bias, expected, rtol=1e-5, atol=1e-5
                )
    # The layer's and its halves', of which the first begins where the layer's does.
    assert len(packs) == (3 if onednn else 0)


def test_weights_made_in_inference_can_be_packed(onednn: bool) -> None:
    with torch.inference_mode():
        weight, x = torch.randn(40, 24), torch.randn(3, 24)
        with packed_weights({}):
            y = linear(x, weight, None)
        torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-5)


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
