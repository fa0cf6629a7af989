"""What a checkpoint says of its policy: everything needed to run it, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from asd_policy.errors import CheckpointError
from asd_policy.networks import (
    NETWORKS,
    Entry,
    ImageConditioned,
    Sizes,
    build_network,
    encoded_features,
)
from asd_policy.policies.rotation import ARM_6D, ARM_VECTOR
from asd_policy.sampling.chain import GaussianChain
from asd_policy.sampling.denoiser import Parametrization

# Far above any policy in use: a hostile config must not make the loader allocate without end.
_MAX_SIZE = 1 << 16
_CONTEXTS = ("repeated", "growing")
_ACTION_MODES = ("position", "delta", "absolute", "unknown")
_CHAINS: Mapping[str, Callable[..., GaussianChain]] = {
    "ddpm": GaussianChain.ddpm,
    "edm_ancestral": GaussianChain.edm_grid,
}


@dataclass(frozen=True)
class ObservationKey:
    """One entry of the observation dictionary, in the order in which the network sees them.

    Attributes:
        key: Its name.
        shape: Its shape in one frame.
        quaternions: Where quaternions (x, y, z, w) begin in the flattened entry; the network sees
            each as six numbers (see ``rotation``), because q and -q are one rotation.
        image: Whether it is an image, of shape ``(C, H, W)``, that the policy's encoder reads.
    """

    key: str
    shape: tuple[int, ...]
    quaternions: tuple[int, ...] = ()
    image: bool = False

    def __post_init__(self) -> None:
        """Refuse quaternions that overlap or lie outside, and images without three axes."""
        if type(self.image) is not bool or (
            self.image and (len(self.shape) != 3 or self.quaternions)
        ):
            raise CheckpointError(
                f"observations: {self.key}: image: expected true or false, and a shape (C, H, W) "
                f"without quaternions if true; got {self.image!r} with shape {self.shape}"
            )
        ends = (0, *(start + 4 for start in self.quaternions))
        starts = (*self.quaternions, self.size)
        if any(start < end for start, end in zip(starts, ends, strict=True)):
            raise CheckpointError(
                f"observations: {self.key}: quaternions at {list(self.quaternions)}: expected "
                f"increasing positions of four values each among {self.size}"
            )

    @property
    def size(self) -> int:
        """Number of values in one frame of this entry."""
        return math.prod(self.shape)

    @property
    def features(self) -> int:
        """Number of values in the network's condition: quaternions as six numbers each."""
        return self.size + 2 * len(self.quaternions)

    @property
    def scales(self) -> int:
        """Number of values of its normaliser: one for each channel of an image."""
        return self.shape[0] if self.image else self.features


@dataclass(frozen=True)
class PolicySpec:
    """Shapes, horizons, network, chain and parametrisation of a policy.

    Attributes:
        task: Name of the task that the policy was trained for.
        observations: Observation entries in the network's order.
        action_dim: Dimensions of one action, as the environment takes it.
        action_mode: What an action means to the environment: ``position``, ``delta``, ``absolute``,
            or ``unknown`` where an imported file does not say.
        action_rotation: None, or ``rotation_6d`` where the network plans poses whose rotations are
            six numbers, which become the rotation vectors of absolute actions.
        obs_horizon: To, frames of observation that the network sees.
        pred_horizon: Tp, actions that the network predicts, the first for the oldest frame.
        action_horizon: Ta, actions executed from a chunk.
        first_action: Index in a chunk of the first action executed: To - 1, the present, but for
            policies that were trained otherwise.
        context: What the network sees when an episode is younger than To frames. ``repeated``: the
            first frame repeated before the others. ``growing``: the frames there are, and as part
            of the chunk the actions executed at them; action i of a chunk is that of frame i, and
            only the newest is executed (BESO).
        action_limits: Least and largest normalised action, to which samples are clamped before
            they are executed; None where they are not.
        network: Name and options of the network.
        encoder: Options of the images' ``ImageEncoder``, and ``shared``, whether there is one for
            all of them; None without images.
        chain: Name and options of the reverse process.
        parametrization: What the network predicts and how x̂0 is clipped.
    """

    task: str
    observations: tuple[ObservationKey, ...]
    action_dim: int
    action_mode: str
    action_rotation: str | None
    obs_horizon: int
    pred_horizon: int
    action_horizon: int
    first_action: int
    network: Mapping[str, Any]
    context: str = "repeated"
    action_limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    encoder: Mapping[str, Any] | None = None
    chain: Mapping[str, Any] = field(default_factory=lambda: {"name": "ddpm", "num_steps": 100})
    parametrization: Parametrization = field(default_factory=Parametrization)

    def __post_init__(self) -> None:
        """Refuse a specification that could not run."""
        for name in ("action_dim", "obs_horizon", "pred_horizon", "action_horizon"):
            _check_size(name, getattr(self, name))
        if self.action_mode not in _ACTION_MODES:
            raise CheckpointError(
                f"action_mode: expected one of {_ACTION_MODES}, got {self.action_mode!r}"
            )
        if self.action_rotation not in (None, "rotation_6d") or (
            self.action_rotation == "rotation_6d"
            and (self.action_mode != "absolute" or self.action_dim % ARM_VECTOR)
        ):
            raise CheckpointError(
                f"action_rotation: expected null, or 'rotation_6d' with absolute actions of "
                f"{ARM_VECTOR} numbers an arm; got {self.action_rotation!r} with "
                f"{self.action_mode!r} actions of {self.action_dim}"
            )
        if not self.observations:
            raise CheckpointError("observations: expected at least one entry, got none")
        keys = [entry.key for entry in self.observations]
        if len(set(keys)) != len(keys):
            raise CheckpointError(f"observations: the keys must differ, got {keys}")
        if "action" in keys:
            raise CheckpointError(
                "observations: a key 'action' would share the normaliser of the actions: rename it"
            )
        for entry in self.observations:
            for size in entry.shape:
                _check_size(f"observations: {entry.key}: shape", size)
        if type(self.first_action) is not int or self.first_action < 0:
            raise CheckpointError(f"first_action: expected an index, got {self.first_action!r}")
        self._check_context()
        if any(entry.image for entry in self.observations) != (self.encoder is not None):
            raise CheckpointError(
                "encoder: expected options if and only if an observation is an image; got "
                f"{self.encoder!r}"
            )
        last = self.first_action + self.action_horizon
        if last > self.pred_horizon:
            raise CheckpointError(
                f"first_action + action_horizon = {last} actions are needed of a chunk that "
                f"has pred_horizon = {self.pred_horizon}"
            )
        if self.network.get("name") not in NETWORKS:
            raise CheckpointError(
                f"network: unknown name {self.network.get('name')!r}; expected one of "
                f"{sorted(NETWORKS)}"
            )
        for key in ("num_steps", "num_train_steps"):
            if self.chain.get(key) is not None:
                _check_size(f"chain: {key}", self.chain[key])
        if self.chain.get("name") not in _CHAINS:
            raise CheckpointError(
                f"chain: unknown name {self.chain.get('name')!r}; expected one of {sorted(_CHAINS)}"
            )

    def _check_context(self) -> None:
        if self.context not in _CONTEXTS:
            raise CheckpointError(f"context: expected one of {_CONTEXTS}, got {self.context!r}")
        horizons = self.obs_horizon, self.pred_horizon, self.action_horizon, self.first_action
        to = self.obs_horizon
        if self.context == "growing" and horizons != (to, to, 1, to - 1):
            raise CheckpointError(
                "context: a growing window has as many actions as frames and executes one, the "
                f"last; got To, Tp, Ta and first_action {horizons}"
            )
        limits = self.action_limits
        if limits is None:
            return
        if (
            len(limits) != 2
            or any(len(side) != self.planned_dim for side in limits)
            or not all(low <= high for low, high in zip(*limits, strict=True))
        ):
            raise CheckpointError(
                f"action_limits: expected {self.planned_dim} least and as many largest values, got "
                f"{limits}"
            )

    @property
    def observation_dim(self) -> int:
        """Values in one frame of all observation entries together."""
        return sum(entry.size for entry in self.observations)

    @property
    def planned_dim(self) -> int:
        """Dimensions of one action as the network plans it."""
        if self.action_rotation == "rotation_6d":
            return self.action_dim // ARM_VECTOR * ARM_6D
        return self.action_dim

    @property
    def images(self) -> dict[str, tuple[int, int]]:
        """Height and width of each image that is observed, by its key."""
        return {e.key: (e.shape[1], e.shape[2]) for e in self.observations if e.image}

    @property
    def normalizer_sizes(self) -> dict[str, int]:
        """Number of values of each normaliser, by its key."""
        return {entry.key: entry.scales for entry in self.observations} | {
            "action": self.planned_dim
        }

    @property
    def sizes(self) -> Sizes:
        """What the network must know of the policy."""
        encoded = encoded_features(self.encoder or {})
        features = sum(encoded if e.image else e.features for e in self.observations)
        return Sizes(self.planned_dim, self.pred_horizon, features, self.obs_horizon)

    def build_chain(self) -> GaussianChain:
        """The reverse process that the checkpoint names."""
        options = {key: value for key, value in self.chain.items() if key != "name"}
        try:
            return _CHAINS[self.chain["name"]](**options)
        except TypeError as error:
            raise CheckpointError(f"chain: {error}") from error

    def build_network(self) -> nn.Module:
        """The network that the checkpoint names, with fresh weights."""
        options = {key: value for key, value in self.network.items() if key != "name"}
        entries = [Entry(e.shape if e.image else (e.features,)) for e in self.observations]
        try:
            network = build_network(self.network["name"], self.sizes, **options)
            if self.encoder is not None:
                network = ImageConditioned(network, entries, self.obs_horizon, **self.encoder)
            return network
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"network: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The specification as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicySpec:
        """Read a specification strictly: every field present, none unknown, all of their types.

        Raises:
            CheckpointError: Naming the field, what was expected and what came.
        """
        _check_fields("policy", data, {f.name for f in fields(cls)})
        if not isinstance(data["task"], str):
            raise CheckpointError(f"task: expected a string, got {data['task']!r}")
        for name in ("network", "chain", "parametrization", "encoder"):
            if not isinstance(data[name], Mapping) and (name, data[name]) != ("encoder", None):
                raise CheckpointError(f"{name}: expected an object, got {data[name]!r}")
        if not isinstance(data["observations"], list):
            raise CheckpointError(f"observations: expected a list, got {data['observations']!r}")
        entries = []
        for entry in data["observations"]:
            if not isinstance(entry, Mapping):
                raise CheckpointError(f"observations: expected objects, got {entry!r}")
            _check_fields("observations", entry, {f.name for f in fields(ObservationKey)})
            if not isinstance(entry["key"], str) or not isinstance(entry["shape"], list):
                raise CheckpointError(f"observations: expected a key and a shape, got {entry!r}")
            for size in entry["shape"]:
                _check_size(f"observations: {entry['key']}: shape", size)
            quaternions = entry["quaternions"]
            if not isinstance(quaternions, list) or any(type(at) is not int for at in quaternions):
                raise CheckpointError(
                    f"observations: {entry['key']}: quaternions: expected a list of integers, got "
                    f"{quaternions!r}"
                )
            shape = tuple(entry["shape"])
            entries.append(ObservationKey(entry["key"], shape, tuple(quaternions), entry["image"]))
        parametrization = data["parametrization"]
        _check_fields("parametrization", parametrization, {f.name for f in fields(Parametrization)})
        return cls(
            **{
                **data,
                "observations": tuple(entries),
                "parametrization": Parametrization(**parametrization),
                "action_limits": _limits(data["action_limits"]),
            }
        )


def _limits(value: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if value is None:
        return None
    try:
        low, high = (tuple(float(number) for number in side) for side in value)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"action_limits: expected null or two lists: {error}") from error
    return low, high


def _check_fields(where: str, data: Mapping[str, Any], expected: set[str]) -> None:
    missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
    if missing or unknown:
        raise CheckpointError(f"{where}: missing fields {missing}, unknown fields {unknown}")


def _check_size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZE:
        raise CheckpointError(f"{name}: expected an integer in 1…{_MAX_SIZE}, got {value!r}")
