"""A scripted demonstrator for Tool Hang: put the frame into the stand, hang the tool on its hook.

What it does follows from where the frame, the tool and the hand are and how far the fingers are
open. Both parts are steered by fields: the frame's tip is held over the hole at a height that grows
with its misalignment, and so is the tool's ring over the hook's post; once the ring is round the
post, the handle is swung down a little at a time, and the ring follows along the bar.

The ring cannot be slid straight over the hook (post and bar are 19.5 mm high, the ring 19.4 mm
wide): it has to come from above with the handle leaning out by about 60 degrees.

It succeeds on 60 of 60 fresh seeds, in 294 to 422 steps (350 the middle one), ten of them after
success (`python -m checkpoints.collect task=tool_hang episodes=60 seed=2000000
output=tool_hang.hdf5`). Before it paused at times, it took over after 28 to 250 of its own steps
with slow noise added (standard deviation 0.2 to 0.4 in all six components), and succeeded on all
of seeds 3000 to 3024.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from envs.demonstrators.hand import Array, Hand
from envs.demonstrators.motion import CLOSE, OPEN, Approach, Manner, Motion, carried
from envs.demonstrators.posture import Posture
from envs.demonstrators.tool_hang_scene import RIM, TOOL_WIDTH, UPRIGHT, Scene
from envs.robomimic import RobomimicEnv

_TRAVEL = 1.12
"""Height at which the hand keeps clear of the frame in the stand."""
_REST = np.array([-0.08, -0.1, 1.12])
"""Where the hand goes when the arm is tangled."""
_CLEAR = 0.09
"""Distance from the frame's grip at which the open hand is off it."""
_OVER_POST = 0.0035
"""How far inwards along the bar the ring's centre is to be when the ring goes over the post."""

_SWING = np.array([0.014, 0.0, -0.006])
"""How the ring moves, in the hook's axes, while the handle swings from its full lean to none."""


@dataclass(frozen=True)
class ToolHangStyle:
    """How a person hangs the tool this time; lengths in metres, angles in radians.

    Attributes:
        manner: How the arm moves.
        approach: How the hand comes in.
        frame_tilt: How far the hand leans towards the frame's tip when it grasps the frame.
        frame_along: Where it grasps the frame, from the grip's centre towards the bar.
        frame_hover: Height over the rim at which the frame's tip is carried.
        frame_slope: Metres of height kept over the rim for each metre of misalignment.
        insert_speed: Share of the speed at which the frame is put in.
        tool_tilt: How far the hand leans towards the handle's end when it grasps the tool.
        tool_along: Where it grasps the tool, from its centre away from the ring.
        tool_hover: Height over the bar at which the ring is carried.
        tool_slope: Metres of height kept over the bar for each metre of misalignment.
        lean: How far the handle leans out while the ring goes over the post.
        final_lean: How far it still leans when it is let go.
        hang_speed: Share of the speed at which the tool is hung.
        retreat: Distance by which the hand draws back afterwards.
    """

    manner: Manner
    approach: Approach
    frame_tilt: float
    frame_along: float
    frame_hover: float
    frame_slope: float
    insert_speed: float
    tool_tilt: float
    tool_along: float
    tool_hover: float
    tool_slope: float
    lean: float
    final_lean: float
    hang_speed: float
    retreat: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "ToolHangStyle":
        """Draw a style."""
        return cls(
            manner=Manner.draw(rng),
            approach=Approach(hover=rng.uniform(0.07, 0.1), slope=rng.uniform(3.0, 6.0)),
            frame_tilt=np.deg2rad(rng.uniform(38.0, 50.0)),
            frame_along=rng.uniform(-0.005, 0.005),
            frame_hover=rng.uniform(0.02, 0.04),
            frame_slope=rng.uniform(4.0, 8.0),
            insert_speed=rng.uniform(0.5, 0.8),
            tool_tilt=np.deg2rad(rng.uniform(-10.0, 10.0)),
            tool_along=rng.uniform(0.003, 0.013),
            tool_hover=rng.uniform(0.035, 0.05),
            tool_slope=rng.uniform(4.0, 8.0),
            lean=np.deg2rad(rng.uniform(56.0, 62.0)),
            final_lean=np.deg2rad(rng.uniform(10.0, 18.0)),
            hang_speed=rng.uniform(0.5, 0.8),
            retreat=rng.uniform(0.07, 0.12),
        )


class ToolHangDemonstrator:
    """Assembles the frame and hangs the tool on it.

    Args:
        env: A Tool Hang environment, in any state.
        rng: Where the style and the tremor come from.
    """

    def __init__(self, env: RobomimicEnv, rng: np.random.Generator) -> None:
        self.style = ToolHangStyle.draw(rng)
        self._hand = Hand(env)
        self._scene = Scene(env, self._hand)
        self._motion = Motion(self._hand, self.style.manner, rng)
        self._posture = Posture(env, self._hand, _REST)

    def act(self) -> NDArray[np.float32]:
        """Return the action (7,) for the present state."""
        scene, style = self._scene, self.style
        if self._hung():
            return self._back_off(self.style.retreat)
        if not self._assembled():
            if scene.holds_frame():
                return self._put_in()
            return self._grasp(*scene.frame_grasp(style.frame_tilt, style.frame_along))
        if scene.holds_tool():
            return self._hang()
        if np.linalg.norm(self._hand.position - scene.grip) < _CLEAR:
            return self._back_off(_CLEAR)
        return self._grasp(*scene.tool_grasp(style.tool_tilt, style.tool_along), _TRAVEL)

    def _grasp(self, position: Array, rotation: Array, travel: float = 0.0) -> NDArray[np.float32]:
        """Come in along the hand's axis and close the fingers.

        Args:
            position: (3,) Where the grip site is to be.
            rotation: (3, 3) How the hand is to be turned.
            travel: Height at which the hand is to travel.
        """
        hand = self._hand
        if self._posture.tangled():
            return self._motion.towards(self._posture.position(), self._posture.rotation(), OPEN)
        off = float(np.linalg.norm(position - hand.position))
        turn = float(np.linalg.norm(hand.rotation_error(rotation)))
        closed = 1.0 - hand.opening / 0.08  # closing fingers may push the object about
        if off < 0.008 + 0.01 * closed and turn < 0.1 + 0.2 * closed:
            return self._motion.towards(position, rotation, CLOSE, 0.5)
        target = self.style.approach.target(hand, position, rotation)
        lateral = float(np.linalg.norm((target - hand.position)[:2]))
        target[2] = max(target[2], min(travel, target[2] + 3.0 * max(0.0, lateral - 0.03)))
        return self._motion.towards(target, rotation, OPEN)

    def _put_in(self) -> NDArray[np.float32]:
        """Lift the frame, turn it upright, and lower it into the hole as it comes to be centred."""
        scene, style = self._scene, self.style
        off = scene.hole - scene.tip
        lateral, depth = float(np.linalg.norm(off[:2])), -off[2]
        turn = _angle(UPRIGHT @ scene.frame.T)
        missing = max(0.0, lateral - 0.0025) + 0.05 * max(0.0, turn - 0.05)
        inside = lateral < 0.006 and depth < RIM - 0.005
        if inside or missing == 0.0:
            height = max(-0.01, depth - 0.03 * (1.0 - _ramp(turn, 0.06, 0.12)))
        else:
            height = RIM + min(style.frame_hover, style.frame_slope * missing - 0.01)
        across = 1.0 if lateral < 0.006 else _ramp(depth, RIM, RIM + 0.01)
        goal = np.array([*scene.tip[:2] + across * off[:2], scene.hole[2] + height])
        grip = scene.grip[2]
        most = 0.35 * _ramp(grip, 0.85, 0.88)
        carry = carried if inside else _carried  # the hole leaves the tip no choice: hand over it
        position, rotation = carry(self._hand, scene.tip, scene.frame, goal, UPRIGHT, most)
        lifted = 1.0 if inside else _ramp(grip, 0.98, 1.03) * _ramp(-turn, -1.0, -0.7)
        above = self._hand.position + np.array([0.0, 0.0, 1.07 - grip])
        speed = style.insert_speed + (1.0 - style.insert_speed) * _ramp(lateral, 0.01, 0.06)
        return self._motion.towards(above + lifted * (position - above), rotation, CLOSE, speed)

    def _hang(self) -> NDArray[np.float32]:
        """Lift the tool, put its ring over the post, and swing the handle down."""
        scene, style = self._scene, self.style
        goal, lean = self._next_ring_place()
        goal = scene.hook + scene.hook_axes @ goal
        height = scene.handle[2]
        most = 0.35 * _ramp(height, 0.85, 0.88)
        position, rotation = _carried(
            self._hand, scene.ring, scene.tool, goal, scene.tool_leaning(lean), most
        )
        lifted = _ramp(height, 0.87, 0.94)
        above = self._hand.position + np.array([0.0, 0.0, 1.05 - height])
        far = _ramp(float(np.linalg.norm(scene.ring_on_hook()[:2])), 0.015, 0.065)
        speed = style.hang_speed + (1.0 - style.hang_speed) * far
        return self._motion.towards(above + lifted * (position - above), rotation, CLOSE, speed)

    def _next_ring_place(self) -> tuple[Array, float]:
        """Return where the ring is to be next, in the hook's axes (3,), and the tool's lean."""
        scene, style = self._scene, self.style
        inwards, sideways, up = scene.ring_on_hook()
        goal = np.array([_OVER_POST, 0.0, 0.0025])
        if abs(sideways) < 0.008 and -0.004 < inwards < 0.035 and -0.012 < up < 0.006:
            lean = min(scene.lean(), style.lean)
            follow = goal + (1.0 - lean / style.lean) * _SWING
            step = 0.12 * (1.0 - _ramp(abs(inwards - follow[0]), 0.0015, 0.004))
            lean = max(style.final_lean, lean - step)
            return goal + (1.0 - lean / style.lean) * _SWING, lean
        off = float(np.hypot(inwards - goal[0], sideways))
        turn = _angle(scene.tool_leaning(style.lean) @ scene.tool.T)
        missing = max(0.0, off - 0.003) + 0.04 * max(0.0, turn - 0.06)
        goal[2] += min(style.tool_hover, style.tool_slope * missing)
        goal[2] = max(goal[2], up - 0.02)
        across = 1.0 if off < 0.006 else _ramp(up, 0.015, 0.03)
        goal[:2] = across * goal[:2] + (1.0 - across) * np.array([inwards, sideways])
        return goal, style.lean

    def _back_off(self, distance: float) -> NDArray[np.float32]:
        """Open, and draw back along the hand's axis when the fingers are off."""
        hand = self._hand
        share = _ramp(hand.opening, 0.045, 0.065)
        target = hand.position - share * distance * hand.rotation[:, 2]
        return self._motion.towards(target, hand.rotation, OPEN)

    def _assembled(self) -> bool:
        """Whether the frame is in the hole, deep enough to be let go."""
        off = self._scene.tip - self._scene.hole
        deep = 0.01 if self._scene.holds_frame() else 0.02
        return bool(np.abs(off[:2]).max() < 0.01 and off[2] < deep)

    def _hung(self) -> bool:
        """Whether the ring is on the bar, and the tool may be let go."""
        inwards, sideways, up = self._scene.ring_on_hook()
        off = np.hypot(sideways, up)
        if inwards < 0.006 or off > 0.0105:
            return False
        if self._hand.opening > TOOL_WIDTH + 0.005:
            return True
        return bool(off < 0.0075 and self._scene.lean() < self.style.final_lean + 0.12)


def _carried(
    hand: Hand, point: Array, rotation: Array, goal: Array, goal_rotation: Array, most: float
) -> tuple[Array, Array]:
    """As `carried`, but a turn that is nearly done does not move the point off its goal.

    The arm is soft and may leave a few hundredths of a radian, which at the far end of what it
    holds would be millimetres.
    """
    position, turned = carried(hand, point, rotation, goal, goal_rotation, most)
    share = _ramp(_angle(goal_rotation @ rotation.T), 0.03, 0.1)
    straight = goal + hand.position - point
    return straight + share * (position - straight), turned


def _angle(rotation: Array) -> float:
    """Return the angle of a rotation matrix."""
    return float(Rotation.from_matrix(rotation).magnitude())


def _ramp(value: float, low: float, high: float) -> float:
    """Return 0 up to `low`, 1 from `high` on, and in between what a straight line gives."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))
