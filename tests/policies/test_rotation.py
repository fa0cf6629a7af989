"""Rotations in six numbers against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from asd_policy.policies.rotation import (
    matrix_from_6d,
    matrix_to_6d,
    matrix_to_vector,
    pose_from_6d,
    pose_to_6d,
    quaternion_to_6d,
    vector_to_matrix,
)


@pytest.fixture
def rotations():
    """Many, with turns of nothing, nearly half and exactly half among them."""
    axes = np.random.default_rng(0).normal(size=(600, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = np.random.default_rng(1).uniform(0, np.pi, 600)
    angles[:100], angles[100:200], angles[200:300] = 0, np.pi, np.pi - 1e-9
    angles[300:400] = 1e-9
    axes[:6] = axes[100:106] = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    return Rotation.from_rotvec(axes * angles[:, None])


def test_vectors_and_matrices_are_scipys(rotations):
    matrix = torch.from_numpy(rotations.as_matrix())
    vector = torch.from_numpy(rotations.as_rotvec())
    torch.testing.assert_close(vector_to_matrix(vector), matrix, atol=1e-9, rtol=0)
    back = matrix_to_vector(matrix)
    # At half a turn a vector and its opposite are one rotation: the matrices are compared.
    torch.testing.assert_close(vector_to_matrix(back), matrix, atol=1e-9, rtol=0)
    assert back.norm(dim=-1).max() <= np.pi + 1e-9
    torch.testing.assert_close(back[300:], vector[300:], atol=1e-8, rtol=0)


def test_quaternions_of_either_sign_and_any_length_are_one_rotation(rotations):
    quaternion = torch.from_numpy(rotations.as_quat())
    six = matrix_to_6d(torch.from_numpy(rotations.as_matrix()))
    for factor in (1.0, -1.0, 2.5):
        torch.testing.assert_close(quaternion_to_6d(factor * quaternion), six, atol=1e-12, rtol=0)
    assert torch.equal(quaternion_to_6d(torch.zeros(2, 4)), torch.zeros(2, 6))


def test_six_numbers_are_two_rows_and_need_not_be_orthonormal(rotations):
    matrix = torch.from_numpy(rotations.as_matrix())
    assert torch.equal(matrix_to_6d(matrix), matrix[:, :2].flatten(1))
    noise = 1e-2 * torch.randn(600, 6, generator=torch.Generator().manual_seed(0)).double()
    found = matrix_from_6d(2 * matrix_to_6d(matrix) + noise)
    eye = torch.eye(3, dtype=torch.double).expand(600, 3, 3)
    torch.testing.assert_close(found @ found.mT, eye, atol=1e-12, rtol=0)
    assert torch.linalg.det(found).min() > 0.999
    torch.testing.assert_close(found, matrix, atol=0.06, rtol=0)


def test_poses_of_two_arms_survive_the_way_there_and_back(rotations):
    vector = torch.from_numpy(rotations[400:].as_rotvec()).view(100, 2, 3)
    rest = torch.randn(100, 2, 4, generator=torch.Generator().manual_seed(0)).double()
    action = torch.cat([rest[..., :3], vector, rest[..., 3:]], dim=-1).flatten(1)
    six = pose_to_6d(action)
    assert action.shape == (100, 14) and six.shape == (100, 20)
    torch.testing.assert_close(pose_from_6d(six), action, atol=1e-7, rtol=0)
