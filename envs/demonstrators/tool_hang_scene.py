"""Where the parts of Tool Hang are, and how a hand may hold them.

Upright in the stand, the frame's rod points up, and its bar points out towards the world's -y and
ends in a post: the hook. The tool's x axis points from its ring to its handle. It has no upper
side, so its y and z axes are taken such that the hand comes in against z.
"""

import numpy as np

from envs.demonstrators.hand import Array, Hand
from envs.robomimic import RobomimicEnv

DOWN = np.array([0.0, 0.0, -1.0])
OUT = np.array([0.0, -1.0, 0.0])
"""Where the hook of the upright frame points."""
FRAME_WIDTH, TOOL_WIDTH = 0.0254, 0.03
"""Distances between the fingertips when they hold the frame's grip or the tool's."""
RIM = 0.15
"""Height of the stand's rim over the bottom of its hole."""
UPRIGHT = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""Rotation of the frame when its rod is upright and its hook points to -y."""

_GRIP = np.array([0.04375, 0.0, 0.0525])
"""Centre of the frame's grip in the frame's coordinates."""
_HOLE = np.array([0.0, 0.045, 0.005])
"""Bottom of the stand's hole, from the centre of its foot."""


class Scene:
    """What the demonstrator knows of the stand, the frame and the tool.

    Args:
        env: A Tool Hang environment.
        hand: The robot's hand.
    """

    def __init__(self, env: RobomimicEnv, hand: Hand) -> None:
        simulation = env.robosuite
        self._data = simulation.sim.data
        self._bodies = simulation.obj_body_id
        self._sites = simulation.obj_site_id
        self._foot = simulation.obj_geom_id["stand_base"]
        self._hand = hand

    @property
    def hole(self) -> Array:
        """Bottom of the stand's hole (3,)."""
        return np.array(self._data.geom_xpos[self._foot]) + _HOLE

    @property
    def frame(self) -> Array:
        """Rotation (3, 3) of the frame."""
        return self._rotation("frame")

    @property
    def tip(self) -> Array:
        """Tip (3,) of the frame's rod."""
        return self._site("frame_tip_site")

    @property
    def grip(self) -> Array:
        """Centre (3,) of the frame's grip."""
        return np.array(self._data.body_xpos[self._bodies["frame"]]) + self.frame @ _GRIP

    @property
    def tool(self) -> Array:
        """Rotation (3, 3) of the tool, its z axis on the side from which the hand comes."""
        rotation = self._rotation("tool")
        up = rotation[2, 2]
        if abs(up) < 0.5 or self.tool_in_hand():
            up = -self._hand.rotation[:, 2] @ rotation[:, 2]
        return rotation * np.array([1.0, np.copysign(1.0, up), np.copysign(1.0, up)])

    @property
    def handle(self) -> Array:
        """Centre (3,) of the tool."""
        return np.array(self._data.body_xpos[self._bodies["tool"]])

    @property
    def ring(self) -> Array:
        """Centre (3,) of the tool's ring."""
        return self._site("tool_hole1_center")

    @property
    def hook(self) -> Array:
        """End (3,) of the bar's centreline, below the post."""
        return self._site("frame_hang_site")

    @property
    def bar(self) -> Array:
        """Direction (3,) from the hook along the bar to the rod."""
        bar = self._site("frame_intersection_site") - self.hook
        return bar / np.linalg.norm(bar)

    @property
    def hook_axes(self) -> Array:
        """Axes (3, 3) of places at the hook, as columns: inwards along the bar, sideways, up."""
        return np.stack([self.bar, np.cross(DOWN, self.bar), -DOWN], axis=1)

    def frame_grasp(self, tilt: float, along: float) -> tuple[Array, Array]:
        """Return the hand's pose that grasps the frame's grip: position (3,), rotation (3, 3).

        Args:
            tilt: Angle in radians by which the hand leans towards the tip.
            along: Where it grasps, from the grip's centre towards the bar, in metres.
        """
        closing, side, rod = self.frame.T
        if side[2] > 0.5:  # it lies on its other face
            side = -side
        axis = np.cos(tilt) * side - np.sin(tilt) * rod
        position = self.grip + along * rod - 0.004 * side
        return position, np.stack([closing, np.cross(axis, closing), axis], axis=1)

    def tool_grasp(self, tilt: float, along: float) -> tuple[Array, Array]:
        """Return the hand's pose that grasps the tool: position (3,), rotation (3, 3).

        Args:
            tilt: Angle in radians by which the hand leans towards the end of the handle.
            along: Where it grasps, from the tool's centre away from the ring, in metres.
        """
        outwards, across, up = self.tool.T
        axis = np.sin(tilt) * outwards - np.cos(tilt) * up
        position = self.handle + along * outwards + 0.004 * up
        return position, np.stack([-across, np.cross(axis, -across), axis], axis=1)

    @staticmethod
    def tool_leaning(angle: float) -> Array:
        """Return the tool's rotation (3, 3): ring up, handle out from the hook by `angle`.

        It does not follow the frame, which has some play in the hole: tool and frame would twist
        each other away.
        """
        along = np.cos(angle) * DOWN + np.sin(angle) * OUT
        across = np.cross(OUT, DOWN)
        return np.stack([along, across, np.cross(along, across)], axis=1)

    def lean(self) -> float:
        """Angle in radians by which the tool's handle leans out from hanging straight down."""
        along = self.tool[:, 0]
        return float(np.arctan2(along @ OUT, along @ DOWN))

    def ring_on_hook(self) -> Array:
        """Return the ring's centre (3,) from the hook, in `hook_axes`."""
        return self.hook_axes.T @ (self.ring - self.hook)

    def holds_frame(self) -> bool:
        """Whether the fingers are closed on the frame's grip."""
        off = self.frame.T @ (self._hand.position - self.grip)
        near = bool((np.abs(off) < [0.012, 0.025, 0.04]).all())
        return near and self._closed_on(FRAME_WIDTH)

    def holds_tool(self) -> bool:
        """Whether the fingers are closed on the tool's handle."""
        return self.tool_in_hand() and self._closed_on(TOOL_WIDTH)

    def tool_in_hand(self) -> bool:
        """Whether the hand is about the tool's handle, however far its fingers are open."""
        off = self._rotation("tool").T @ (self._hand.position - self.handle)
        return bool((np.abs(off) < [0.05, 0.012, 0.025]).all())

    def _closed_on(self, width: float) -> bool:
        return abs(self._hand.opening - width) < 0.005

    def _rotation(self, name: str) -> Array:
        return np.array(self._data.body_xmat[self._bodies[name]]).reshape(3, 3)

    def _site(self, name: str) -> Array:
        return np.array(self._data.site_xpos[self._sites[name]])
