"""Normalisers: the range of the data becomes [-1, 1], and nothing is lost."""

from __future__ import annotations

import pytest
import torch

from asd_policy.policies import Normalizer


def test_limits_map_to_the_unit_range():
    data = torch.randn(500, 3) * torch.tensor([1.0, 100.0, 1e-2]) + torch.tensor([0.0, 50.0, 3.0])
    normalized = Normalizer.fit_limits(data).normalize(data)
    assert torch.allclose(normalized.amin(0), torch.full((3,), -1.0), atol=1e-3)
    assert torch.allclose(normalized.amax(0), torch.full((3,), 1.0), atol=1e-3)


def test_a_constant_dimension_is_centred_not_stretched():
    data = torch.tensor([[0.82, 1.0], [0.82, -1.0]])
    normalizer = Normalizer.fit_limits(data)
    assert normalizer.scale.tolist() == [1.0, 1.0]
    assert torch.allclose(normalizer.normalize(data)[:, 0], torch.zeros(2), atol=1e-6)


def test_unnormalize_undoes_normalize():
    data = torch.randn(100, 4) * 50 + 20
    normalizer = Normalizer.fit_limits(data)
    assert torch.allclose(normalizer.unnormalize(normalizer.normalize(data)), data, atol=1e-3)


@pytest.mark.parametrize(
    ("scale", "offset", "message"),
    [
        (torch.ones(2), torch.ones(3), "share one shape"),
        (torch.ones(2, 1), torch.ones(2, 1), "share one shape"),
        (torch.ones(2), torch.zeros(2).double(), "one floating-point type"),
        (torch.ones(2).long(), torch.zeros(2).long(), "one floating-point type"),
        (torch.tensor([1.0, float("nan")]), torch.zeros(2), "finite"),
    ],
)
def test_refuses_what_is_no_such_map(scale, offset, message):
    with pytest.raises(ValueError, match=message):
        Normalizer(scale, offset)


def test_statistics_in_float64_keep_the_digits_of_what_hardly_varied():
    least = torch.tensor([1.2345678])
    scale = 2 / torch.full((1,), 1e-8, dtype=torch.float64)  # as LeRobot's of a constant
    normalizer = Normalizer(scale, -least.double() * scale - 1)
    assert normalizer.normalize(least).item() == pytest.approx(-1, abs=1e-6)
    assert normalizer.normalize(least).dtype == torch.float32


def test_a_run_of_values_for_each_entry():
    repeated = Normalizer(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])).repeated(6)
    assert repeated.scale.tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="runs of equal length"):
        repeated.repeated(7)
