"""Frames of a MuJoCo scene: by OpenGL where it works without a display, else by ray casting.

Nothing of OpenGL is imported before the first frame is asked for, so runs that draw nothing need
none of it. `MUJOCO_GL` is obeyed: "egl" or "osmesa" names the platform to try, "disabled" (or
"off", "false", "0") asks for ray casting. Ray casting is for people to look at: a policy that was
trained on images of the one renderer sees others in those of the other.
"""

import atexit
import ctypes.util
import importlib
import logging
import os
from typing import Any, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from envs.errors import RenderError
from envs.raycast import RayCaster

_log = logging.getLogger(__name__)
_PLATFORMS = {"egl": "EGL", "osmesa": "OSMesa"}
_OFF = ("disable", "disabled", "off", "false", "0")


class SceneRenderer(Protocol):
    """Draws one model; to be closed before the model goes."""

    def render(self, data: mujoco.MjData, camera: int) -> NDArray[np.uint8]:
        """Return (height, width, 3) uint8 RGB, top row first, of a state seen by a camera."""
        ...

    def close(self) -> None:
        """Free what the renderer holds."""
        ...


class GLRenderer:
    """Draws one model with MuJoCo's own renderer.

    Args:
        model: The model; its visual geoms must be in group 1, as robosuite's are.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.
        platform: "egl" or "osmesa".
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, platform: str) -> None:
        # Not mujoco.Renderer: its platform is fixed when mujoco is imported.
        self._gl: Any = importlib.import_module(f"mujoco.{platform}").GLContext(width, height)
        try:
            self._gl.make_current()
            self._model = model
            model.vis.global_.offwidth = max(width, model.vis.global_.offwidth)
            model.vis.global_.offheight = max(height, model.vis.global_.offheight)
            self._scene = mujoco.MjvScene(model, maxgeom=10_000)
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        except BaseException:
            self._gl.free()
            raise
        self._open = True
        # A context that outlives its platform, which ends at the interpreter's exit, is an error.
        atexit.register(self.close)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = [0, 1, 0, 0, 0, 0]
        self._options.sitegroup[:] = 0
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, width, height)

    def render(self, data: mujoco.MjData, camera: int) -> NDArray[np.uint8]:
        """Return (height, width, 3) uint8 RGB, top row first, of a state seen by a camera."""
        self._gl.make_current()
        self._view.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._view, everything, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        frame = np.empty((self._viewport.height, self._viewport.width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, self._viewport, self._context)
        return frame[::-1].copy()

    def close(self) -> None:
        """Free the OpenGL context; calling it twice does no harm."""
        if self._open:
            self._open = False
            atexit.unregister(self.close)
            self._gl.make_current()
            self._context.free()
            self._gl.free()


def make_renderer(
    model: mujoco.MjModel, height: int, width: int, observed: bool = False
) -> SceneRenderer:
    """Return the best renderer that works here, and log which one it is.

    Args:
        model: The model to draw.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.
        observed: Whether a policy is to see the frames: then ray casting is no substitute, and
            used only where it is asked for.

    Raises:
        RenderError: If frames are to be observed, and OpenGL does not work.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    tried = []
    for platform, library in _PLATFORMS.items():
        if wanted in _OFF or (wanted in _PLATFORMS and wanted != platform):
            continue
        if ctypes.util.find_library(library) is None:
            tried.append(f"{platform}: no library {library}")
            continue
        try:
            renderer = GLRenderer(model, height, width, platform)
        except Exception as error:  # a broken driver fails in any way it likes
            _log.debug("no rendering by %s: %s", platform, error)
            tried.append(f"{platform}: {error}")
        else:
            _log.info("rendering by OpenGL (%s)", platform)
            return renderer
    if observed and wanted not in _OFF:
        raise RenderError(
            f"images cannot be observed as they were recorded: OpenGL does not work ({tried}). "
            "Install EGL or OSMesa, or ask for ray casting, whose images look otherwise, with "
            "MUJOCO_GL=disabled"
        )
    _log.info("rendering by ray casting, without OpenGL")
    return RayCaster(model, height, width)


def camera_index(model: mujoco.MjModel, name: str) -> int:
    """Return the index of a camera.

    Raises:
        RenderError: If the model has no camera of that name.
    """
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
    if index < 0:
        known = ", ".join(model.camera(i).name for i in range(model.ncam))
        raise RenderError(f"no camera {name!r} in this scene; there are: {known}")
    return int(index)
