import logging

import numpy as np
import pytest

import envs
from envs.errors import EpisodeError, RenderError

mujoco = pytest.importorskip("mujoco")

from envs.raycast import RayCaster  # noqa: E402
from envs.rendering import camera_index, make_renderer  # noqa: E402

# A green ball with no collision geometry of its own hangs beside a small box of the same body:
# MuJoCo's bounding boxes know of the box alone.
SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3" dir="0 0 -1" diffuse="0.7 0.7 0.7"/>
    <camera name="top" pos="0 0 2" xyaxes="1 0 0 0 1 0" fovy="45"/>
    <geom type="plane" size="5 5 0.1" group="1" rgba="0.9 0.9 0.9 1"/>
    <body pos="-0.4 0 0.2">
      <freejoint/>
      <geom type="box" size="0.02 0.02 0.02" group="0"/>
      <geom type="sphere" size="0.15" pos="0.8 0 0" group="1" rgba="0 1 0 1" contype="0"
        conaffinity="0"/>
    </body>
    <body pos="0 0.4 0.2"><geom type="box" size="0.1 0.1 0.1" group="1" rgba="1 0 0 1"/></body>
    <body pos="0 -0.4 0.2"><geom type="box" size="0.1 0.1 0.1" group="0" rgba="0 0 1 1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def scene():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.fixture(scope="module")
def frame(scene):
    return RayCaster(scene[0], 64, 96).render(scene[1], 0).astype(int)


def test_ray_casting_draws_what_is_there_where_it_is(frame):
    assert frame.shape == (64, 96, 3)
    focal = 32 / np.tan(np.deg2rad(22.5))
    offset = round(0.4 / 1.8 * focal)
    red, green, hidden = frame[32 - offset, 48], frame[32, 48 + offset], frame[32 + offset, 48]
    assert red[0] > 100 and red[1:].max() < 20
    assert green[1] > 100 and green[[0, 2]].max() < 20
    assert np.ptp(hidden) < 5  # collision geoms are not drawn: this is the grey floor


def test_ray_casting_sees_every_visual_geom_that_single_rays_see(scene):
    model, data = scene
    caster = RayCaster(model, 24, 36)
    rows, columns = np.mgrid[0:24, 0:36] + 0.5
    rays = caster._rays(data, 0, rows, columns)
    seen, _ = caster._trace_image(data, data.cam_xpos[0].copy(), rays)

    found, group = np.zeros(1, dtype=np.int32), np.array([0, 1, 0, 0, 0, 0], dtype=np.uint8)
    for row, column in np.ndindex(24, 36):
        mujoco.mj_ray(model, data, data.cam_xpos[0], rays[row, column], group, 1, -1, found)
        assert seen[row, column] == found[0]


def test_ray_casting_follows_what_moves(scene):
    model, _ = scene
    data = mujoco.MjData(model)
    caster = RayCaster(model, 32, 32)
    mujoco.mj_forward(model, data)
    before = caster.render(data, 0)
    data.qpos[1] += 0.3
    mujoco.mj_forward(model, data)
    after = caster.render(data, 0)

    np.testing.assert_array_equal(after, RayCaster(model, 32, 32).render(data, 0))
    assert not np.array_equal(before, after)


def test_outlines_are_smooth(frame):
    greenness = frame[..., 1] - frame[..., 0]
    between = (greenness > 40) & (greenness < greenness.max() // 2)
    assert between.any()


def test_the_renderer_in_use_is_logged(scene, monkeypatch, caplog):
    monkeypatch.setenv("MUJOCO_GL", "off")
    with caplog.at_level(logging.INFO, logger="envs.rendering"):
        renderer = make_renderer(scene[0], 8, 8)

    assert isinstance(renderer, RayCaster)
    assert [record.message for record in caplog.records] == [
        "rendering by ray casting, without OpenGL"
    ]


def test_without_opengl_libraries_frames_are_ray_cast(scene, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert isinstance(make_renderer(scene[0], 8, 8), RayCaster)


def test_without_opengl_images_are_not_observed_unless_asked_for(scene, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(RenderError, match="egl: no library EGL.*MUJOCO_GL=disabled"):
        make_renderer(scene[0], 8, 8, observed=True)
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    assert isinstance(make_renderer(scene[0], 8, 8, observed=True), RayCaster)


def test_unknown_cameras_are_named(scene):
    with pytest.raises(RenderError, match="'side'.*top"):
        camera_index(scene[0], "side")


@pytest.mark.sim
def test_lift_draws_on_demand_only(monkeypatch):
    pytest.importorskip("robosuite")
    monkeypatch.setenv("MUJOCO_GL", "off")
    env = envs.make("lift", render_mode="rgb_array", width=64, height=48)
    with pytest.raises(EpisodeError, match="reset"):
        env.render()
    env.reset(seed=0)
    env.step(np.zeros(7, dtype=np.float32))
    assert not env._renderers

    frame = env.render().astype(int)
    env.reset(seed=1)  # a new model
    other = env.render()
    env.close()

    assert frame.shape == (48, 64, 3)
    reddest = (frame[..., 0] - frame[..., 1:].max(axis=-1)).max()
    assert reddest > 50  # the cube
    assert not np.array_equal(frame, other)
