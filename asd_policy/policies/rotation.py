"""Rotations as numbers a network can learn: six without jumps, instead of vectors or quaternions.

The six numbers are the first two rows of the rotation matrix (Zhou et al. 2019, arXiv 1812.07035;
rows, as in pytorch3d and in Chi et al.'s absolute actions). Rotation vectors jump at half a turn,
where a hand that points down lives, and q and -q are one rotation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ARM_VECTOR = 7
"""Numbers of one arm's pose action: position 3, rotation vector 3, gripper 1."""
ARM_6D = 10
"""The same with the rotation in six numbers."""


def pose_to_6d(action: Tensor) -> Tensor:
    """Pose actions ``(..., 7 * arms)`` with rotation vectors as ``(..., 10 * arms)``."""
    arms = action.unflatten(-1, (-1, ARM_VECTOR))
    six = matrix_to_6d(vector_to_matrix(arms[..., 3:6]))
    return torch.cat([arms[..., :3], six, arms[..., 6:]], dim=-1).flatten(-2)


def pose_from_6d(action: Tensor) -> Tensor:
    """Pose actions ``(..., 10 * arms)`` with six-number rotations as ``(..., 7 * arms)``.

    The six numbers need not be exact rows: they are made orthonormal (Gram-Schmidt).
    """
    arms = action.unflatten(-1, (-1, ARM_6D))
    vector = matrix_to_vector(matrix_from_6d(arms[..., 3:9]))
    return torch.cat([arms[..., :3], vector, arms[..., 9:]], dim=-1).flatten(-2)


def quaternion_to_6d(quaternion: Tensor) -> Tensor:
    """Quaternions ``(..., 4)``, real part last and of any length but zero, as ``(..., 6)``.

    A quaternion of zeros, which an absent object may have, gives zeros.
    """
    x, y, z, w = F.normalize(quaternion, dim=-1).unbind(-1)
    present = x * x + y * y + z * z + w * w
    return torch.stack(
        [
            present - 2 * (y * y + z * z),
            2 * (x * y - z * w),
            2 * (x * z + y * w),
            2 * (x * y + z * w),
            present - 2 * (x * x + z * z),
            2 * (y * z - x * w),
        ],
        dim=-1,
    )


def matrix_to_6d(matrix: Tensor) -> Tensor:
    """The first two rows of ``(..., 3, 3)``, as ``(..., 6)``."""
    return matrix[..., :2, :].flatten(-2)


def matrix_from_6d(six: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` whose first rows are nearest to ``(..., 6)``."""
    first, second = six[..., :3], six[..., 3:]
    first = F.normalize(first, dim=-1)
    second = F.normalize(second - (first * second).sum(-1, keepdim=True) * first, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)


def vector_to_matrix(vector: Tensor) -> Tensor:
    """Rotation matrices ``(..., 3, 3)`` of rotation vectors ``(..., 3)`` (Rodrigues)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)


def matrix_to_vector(matrix: Tensor) -> Tensor:
    """Rotation vectors ``(..., 3)``, at most half a turn long, of matrices ``(..., 3, 3)``."""
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    diagonal = torch.diagonal(m, dim1=-2, dim2=-1)
    # Squared quaternion components times 4, w first: the largest is far from zero.
    squares = torch.cat([(1 + trace).unsqueeze(-1), 1 - trace.unsqueeze(-1) + 2 * diagonal], dim=-1)
    wx, wy, wz = (
        m[..., 2, 1] - m[..., 1, 2],
        m[..., 0, 2] - m[..., 2, 0],
        m[..., 1, 0] - m[..., 0, 1],
    )
    xy, xz, yz = (
        m[..., 0, 1] + m[..., 1, 0],
        m[..., 0, 2] + m[..., 2, 0],
        m[..., 1, 2] + m[..., 2, 1],
    )
    w2, x2, y2, z2 = squares.unbind(-1)
    # Each row is the quaternion (w, x, y, z) times 4 of its component on the diagonal.
    rows = torch.stack([w2, wx, wy, wz, wx, x2, xy, xz, wy, xy, y2, yz, wz, xz, yz, z2], dim=-1)
    largest = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quaternion = F.normalize(rows.unflatten(-1, (4, 4)).gather(-2, largest).squeeze(-2), dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    axis = quaternion[..., 1:]
    length = axis.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, quaternion[..., :1])
    # angle / length tends to 2 where there is hardly any turn.
    return axis * torch.where(length > 1e-7, angle / length.clamp(min=1e-7), 2.0)
