"""Leading an arm out of joint angles in which it cannot go on.

A pose of the hand says little of the joints behind it. When somebody else has driven the arm, its
wrist may be bent past its straight pose, where the grasps are out of the last joints' range, or its
elbow straight, where no force along the arm bends it again.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from envs.demonstrators.hand import Array, Hand, pointing_down
from envs.robomimic import RobomimicEnv

_SHOULDER, _ELBOW, _ROLL, _WRIST = 1, 3, 4, 5
_REST_ROTATION = pointing_down(np.pi / 2, np.array([0.0, 0.2]))
"""The fingers point back at the robot a little."""


class Posture:
    """Watches over one Panda arm's joints.

    Args:
        env: A running environment.
        hand: The arm's hand.
        rest: (3,) Where the hand of a tangled arm is to go in the end.
    """

    def __init__(self, env: RobomimicEnv, hand: Hand, rest: Array) -> None:
        robot = env.robosuite.robots[0]
        self._data = env.robosuite.sim.data
        self._positions = robot._ref_joint_pos_indexes
        self._shoulder = robot._ref_joint_indexes[_SHOULDER]
        self._forearm = robot._ref_joint_indexes[_ROLL]
        self._hand = hand
        self._tangled = False
        self._rest = rest

    def tangled(self) -> bool:
        """Whether the joints came to an impossible pose, and the hand is not yet at rest again."""
        joints = self._data.qpos[self._positions]
        away = float(np.linalg.norm(self._hand.position - self._rest))
        turn = float(np.linalg.norm(self._hand.rotation_error(_REST_ROTATION)))
        rested = away < 0.06 and turn < 0.25 and not self._folded()
        stuck = joints[_WRIST] > 3.5 or joints[_ELBOW] > -0.6
        self._tangled = bool(stuck or (self._tangled and not rested))
        return self._tangled

    def position(self) -> Array:
        """Return where a tangled arm's hand is to go (3,).

        The elbow's axis lies off the arm's line: when it is nearly straight, pulling the hand in
        straightens it all the more, and pushing it out bends it.
        """
        if self._data.qpos[self._positions][_ELBOW] < -0.55:
            return self._rest
        hand = self._hand.position
        out: Array = hand - self._data._data.xanchor[self._shoulder]
        out[2] = max(out[2], 0.2)  # and off the table
        return hand + 0.1 * out / np.linalg.norm(out)

    def rotation(self) -> Array:
        """Return how a tangled arm's hand is to be turned (3, 3).

        In line with the forearm the hand leaves the joints free to roll back, as the controller has
        them do; then it can be turned as at rest.
        """
        if not self._folded():
            return _REST_ROTATION
        forearm, rotation = self._data._data.xaxis[self._forearm], self._hand.rotation
        turn = np.cross(rotation[:, 2], forearm)
        aligned: Array = Rotation.from_rotvec(turn).as_matrix() @ rotation
        return aligned

    def _folded(self) -> bool:
        joints = self._data.qpos[self._positions]
        return bool(joints[_WRIST] > 3.2 or abs(joints[_ROLL]) > 1.2)
