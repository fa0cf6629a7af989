"""Environments as robomimic's files of several years describe them."""

import copy

import numpy as np
import pytest

import envs
from envs.errors import EnvMetaError

pytest.importorskip("robosuite")
pytestmark = pytest.mark.sim

from envs.env_meta import _read, make_from_meta  # noqa: E402

OLD = {
    "env_name": "NutAssemblySquare",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "control_freq": 20,
        "controller_configs": {
            "type": "OSC_POSE",
            "input_max": 1,
            "input_min": -1,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
            "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "kp": 150,
            "damping": 1,
            "impedance_mode": "fixed",
            "kp_limits": [0, 300],
            "damping_limits": [0, 10],
            "position_limits": None,
            "orientation_limits": None,
            "uncouple_pos_ori": True,
            "control_delta": True,
            "interpolation": None,
            "ramp_ratio": 0.2,
        },
        "robots": ["Panda"],
        "camera_depths": False,
        "camera_heights": 84,
        "camera_widths": 84,
        "reward_shaping": False,
    },
}


def edited(meta=OLD, controller=None, **kwargs):
    """A copy with other arguments, or other options of the controller."""
    changed = copy.deepcopy(meta)
    changed["env_kwargs"] |= kwargs
    changed["env_kwargs"]["controller_configs"] |= controller or {}
    return changed


def test_an_old_file_is_the_same_environment():
    ours = envs.make("square")
    theirs = make_from_meta(OLD)
    observation, _ = ours.reset(seed=1)
    other, _ = theirs.reset(seed=1)
    action = np.random.default_rng(0).uniform(-1, 1, 7).astype(np.float32)
    for _ in range(5):
        observation, *_ = ours.step(action)
        other, *_ = theirs.step(action)
    assert all(np.array_equal(observation[key], other[key]) for key in observation)
    again = make_from_meta(theirs.env_meta())
    assert again.env_meta() == theirs.env_meta()
    for env in (ours, theirs, again):
        env.close()


def test_absolute_control_of_either_era():
    old, _ = _read(edited(controller={"control_delta": False})), None
    arm = old[1]["controller_configs"]["body_parts"]["right"]
    assert (arm["input_type"], arm["input_ref_frame"]) == ("absolute", "world")
    part = {k: v for k, v in arm.items() if k not in ("damping_ratio", "input_ref_frame")}
    new = copy.deepcopy(OLD)
    new["env_version"] = "1.5.1"
    new["env_kwargs"]["controller_configs"] = {
        "type": "BASIC",
        "body_parts": {"arms": {"right": part | {"damping_ratio": 2}}},
    }
    arm = _read(new)[1]["controller_configs"]["body_parts"]["right"]
    # What 1.5 means where nothing is said.
    assert (arm["input_ref_frame"], arm["damping_ratio"]) == ("base", 2)


@pytest.mark.parametrize(
    ("version", "frame"), [("1.4.1", "world"), ("1.5.2", "base"), ("1.10.0", "base")]
)
def test_versions_are_compared_as_numbers(version, frame):
    meta = edited(controller={"control_delta": True}) | {"env_version": version}
    arm = _read(meta)[1]["controller_configs"]["body_parts"]["right"]
    assert arm["input_ref_frame"] == frame


def test_one_configuration_is_for_both_arms():
    two = edited(robots=["Panda", "Panda"], env_configuration="single-arm-opposed")
    two["env_name"] = "TwoArmTransport"
    task, arguments = _read(two)
    assert task == "transport" and len(arguments["controller_configs"]) == 2


def test_both_arms_must_take_the_same_actions():
    two = edited(robots=["Panda", "Panda"], env_configuration="single-arm-opposed")
    two["env_name"] = "TwoArmTransport"
    one = two["env_kwargs"]["controller_configs"]
    two["env_kwargs"]["controller_configs"] = [one, one | {"control_delta": False}]
    with pytest.raises(EnvMetaError, match="input_type of every arm: .* got .*absolute"):
        make_from_meta(two)


def composite(arm=None, **options):
    """The same environment as robosuite 1.5 describes it."""
    new = copy.deepcopy(OLD) | {"env_version": "1.5.1"}
    part = new["env_kwargs"]["controller_configs"] | (arm or {})
    part = {key: value for key, value in part.items() if value is not Ellipsis}
    new["env_kwargs"]["controller_configs"] = {
        "type": "BASIC",
        "body_parts": {"arms": {"right": part}},
    } | options
    return new


def test_what_robomimic_adds_and_what_a_panda_lacks_is_passed_over():
    """robomimic repeats `env_name`; robosuite's own BASIC controller is for humanoids, too."""
    meta = composite({"kp_limits": [[0] * 6, [300] * 6], "kp": np.full(6, 150.0)})
    meta["env_kwargs"] |= {"env_name": "NutAssemblySquare", "env_lang": "put the nut on the peg"}
    parts = meta["env_kwargs"]["controller_configs"]["body_parts"]
    parts["arms"]["left"] = parts["torso"] = parts["legs"] = {"type": "JOINT_POSITION"}
    before = copy.deepcopy(parts["arms"]["left"])
    body = _read(meta)[1]["controller_configs"]["body_parts"]
    assert set(body) == {"right"} and body["right"]["kp"] == [150.0] * 6
    assert parts["arms"]["left"] == before  # what was given is as it was


def test_the_description_says_what_actions_mean_now():
    env = envs.make("lift")
    env.action_mode = "absolute"
    again = make_from_meta(env.env_meta())
    assert again.action_mode == "absolute"
    env.close()
    again.close()


def test_a_file_of_robosuite_1_5_may_repeat_that_its_actions_are_deltas():
    arm = _read(composite())[1]["controller_configs"]["body_parts"]["right"]
    assert arm["input_type"] == "delta"
    absolute = composite({"control_delta": False, "input_type": "absolute"})
    arm = _read(absolute)[1]["controller_configs"]["body_parts"]["right"]
    assert arm["input_type"] == "absolute"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{}", "description: expected names and values .* got '{}'"),
        (OLD | {"env_kwargs": None}, "env_kwargs: expected names and values .* got None"),
        (OLD | {"env_kwargs": "{}"}, "env_kwargs: expected names and values"),
        (
            composite({"control_delta": False}),
            "control_delta=False and input_type=delta, which robosuite 1.5 takes",
        ),
        (
            edited(controller={"control_delta": False, "input_type": "delta"}),
            "control_delta=False and input_type=delta contradict",
        ),
        (composite({"damping_ratio": 2}), "damping, which robosuite 1.5 does not read .* 2, got 1"),
        (composite(body_parts=[]), "body_parts: expected names and values"),
        (
            composite(composite_controller_specific_configs={"x": 1}),
            r"options \['composite_controller_specific_configs'\] of the controller",
        ),
        (edited(controller={"kp": "high"}), "option kp: expected a positive number,.*got 'high'"),
        (edited(controller={"kp": -150}), "option kp: expected a positive number,.*got -150"),
        (edited(controller={"kp": 0}), "option kp: expected a positive number"),
        (edited(controller={"kp": float("nan")}), "option kp: expected a positive number"),
        (edited(controller={"kp": [150]}), r"option kp: .* or six in a list, got \[150\]"),
        (edited(controller={"output_max": [0.05] * 5 + [True]}), "output_max: expected a number"),
        (edited(controller={"damping": 1, "damping_ratio": 2}), "options damping_ratio and damp"),
        (edited(controller={"control_delta": "False"}), "control_delta: expected true or false"),
        (edited(controller={"uncouple_pos_ori": "false"}), "uncouple_pos_ori: expected true or"),
        (edited(controller={"input_max": [[1]]}), r"input_max: expected 1, got \[\[1\]\]"),
        (edited(controller={"input_max": [1] * 7}), "input_max: expected 1, got"),
        (edited(lite_physics="false"), "lite_physics: expected true or false, got 'false'"),
        (edited(robots=None), "robots: expected .* got None"),
        (edited(robots=7), "robots: expected .* got 7"),
        (edited(env_configuration=["x"]), "env_configuration: expected"),
        (edited(env_name="Lift"), "env_name: expected 'NutAssemblySquare', got 'Lift'"),
        (edited(robots=object()), "description: got a object; expected JSON"),
        (OLD | {"env_name": ["Lift"]}, r"unknown env_name \['Lift'\]"),
        (composite({"damping": 2}), "damping, which robosuite 1.5 does not read .* 1, got 2"),
        (composite(control_delta=False), "control_delta.*give input_type alone"),
        (composite(body_parts={"arms": ["right"]}), "arms: expected names and values"),
        (composite(body_parts={"right": "OSC"}), "right: expected names and values"),
        (composite(body_parts={"right": None}), "right: expected names and values"),
        (composite(body_parts={"left": {}}), r"of the right arm .* got \['left'\]"),
        (composite(body_parts={"right": {}, "tail": {}}), "'tail'"),
        (composite({"type": ...}), "option type: expected 'OSC_POSE', got none"),
        (OLD | {"env_name": "Door"}, "unknown env_name 'Door'"),
        (OLD | {"type": 2}, "robosuite"),
        (OLD | {"env_version": "new"}, "env_version: expected one such as '1.4.1', got 'new'"),
        (OLD | {"env_kwargs": {}}, "no controller_configs"),
        (edited(robots=["Sawyer"]), r"robots: expected \['Panda'\], got \['Sawyer'\]"),
        (edited(control_freq=10), "control_freq: expected 20, got 10"),
        (edited(reward_shaping=True), "reward_shaping"),
        (edited(placement_initializer="x"), r"\['placement_initializer'\] cannot be expressed"),
        (edited(env_configuration="parallel"), "env_configuration"),
        (edited(controller={"type": "JOINT_VELOCITY"}), "option type: expected 'OSC_POSE'"),
        (edited(controller={"impedance_mode": "variable"}), "impedance_mode"),
        (edited(controller={"input_max": 2}), "input_max: expected 1, got 2"),
        (edited(controller={"input_min": [-1] * 5 + [-2]}), "input_min: expected -1, got"),
        (edited(controller={"interpolation": "linear"}), "interpolation: expected None"),
        (edited(controller={"position_limits": [0, 1]}), "position_limits"),
        (edited(controller={"kd": 3}), r"options \['kd'\] cannot be expressed"),
        (edited(controller={"input_ref_frame": "eef"}), "input_ref_frame"),
    ],
)
def test_what_cannot_be_expressed_is_named(meta, message):
    with pytest.raises(EnvMetaError, match=message):
        make_from_meta(meta)
