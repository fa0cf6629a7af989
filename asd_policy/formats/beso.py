"""Runs of BESO (Reuss et al., RSS 2023): a folder with ``.hydra/config.yaml`` and weights.

``model_state_dict.pth`` holds the moving average. The scaler is not saved by the original, which
fits it to the data anew: its statistics must come from a file that the user names.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asd_policy.errors import CheckpointError
from asd_policy.formats.configuration import Config
from asd_policy.formats.native import Checkpoint
from asd_policy.formats.torch_files import TorchFile
from asd_policy.formats.weights import affine, filled, part, shape, values
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.spec import ObservationKey, PolicySpec
from asd_policy.sampling.denoiser import Parametrization

CONFIG_FILE, WEIGHTS_FILE = ".hydra/config.yaml", "model_state_dict.pth"
NUM_STEPS = 100
# Of a goal of ten numbers (block pushing), those that the original sets to zero.
_UNSEEN = {10: (2, 5, 6, 7, 8, 9)}
_MISSING = """\
BESO does not save its scaler: the statistics of the training data must be given as a .npz file \
with x_mean and x_std (observations), y_bounds (2, actions), and y_mean and y_std, or y_min and \
y_max where the run has use_minmax_scaler; in the original they are agent.scaler's attributes of \
these names. Pass it as scaler=FILE"""


def recognises(folder: Path) -> bool:
    """Whether a folder is a run of BESO."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def read(folder: Path, scaler: str | Path | None) -> Checkpoint:
    """The checkpoint of a run.

    Args:
        folder: The run.
        scaler: A ``.npz`` file with the statistics of the training data.

    Raises:
        CheckpointError: If the policy is one that is not supported, its parts do not fit, or the
            scaler is missing.
    """
    where = str(folder)
    config = Config(_yaml(folder / CONFIG_FILE), where)
    inner = "agents.model.inner_model."
    if scaler is None:
        raise CheckpointError(f"{where}: {_MISSING}")
    with TorchFile(folder / WEIGHTS_FILE) as file:
        content = file.content()
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{where}: {WEIGHTS_FILE}: expected a dictionary of tensors")
        tensors: dict[str, Any] = {
            name: values(tensor)
            for name, tensor in part(content, "inner_model.").items()
            if not name.endswith(".attn.mask")
        }
    goal_conditioned = bool(config.get(inner + "goal_conditioned", True))
    goal = config.integer(inner + "goal_seq_len") if goal_conditioned else 0
    window = config.integer(inner + "obs_seq_len")
    n_emb, frame = shape(tensors, "tok_emb.weight", where)
    # The original keeps one position more than it uses.
    tensors["pos_emb"] = tensors["pos_emb"][:, : goal + window]
    layers = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d{1,3})\.", name))]
    observations = [ObservationKey("observation", (frame,))]
    if goal:
        observations.append(ObservationKey("goal_observation", (goal, frame)))
    # A linear head, or a perceptron: Sequential(Linear, SiLU, Linear).
    perceptron = "action_pred.0.weight" in tensors
    head = "action_pred.2.weight" if perceptron else "action_pred.weight"
    action_dim, width = shape(tensors, head, where)
    statistics = _Scaler(Path(scaler), config, frame, action_dim)
    spec = PolicySpec(
        task=str(config.get("workspaces.env_name", "unknown")),
        observations=tuple(observations),
        action_dim=action_dim,
        action_mode="unknown",
        action_rotation=None,
        obs_horizon=window,
        pred_horizon=window,
        action_horizon=1,
        first_action=window - 1,
        network={
            "name": "score_gpt",
            "n_layer": 1 + max(layers, default=-1),
            "n_head": config.integer(inner + "n_heads"),
            "n_emb": n_emb,
            "p_drop_emb": float(config.get(inner + "embed_pdrob", 0.0)),
            "p_drop": float(config.get(inner + "attn_pdrop", 0.0)),
            "goal_frames": goal,
            "head_hidden": width if perceptron else None,
        },
        context="growing",
        action_limits=statistics.limits,
        chain={
            "name": "edm_ancestral",
            "num_steps": NUM_STEPS,
            "grid": "exponential",
            "sigma_min": float(config.get("agents.sigma_min")),
            "sigma_max": float(config.get("agents.sigma_max")),
        },
        parametrization=Parametrization("edm", None, float(config.get("agents.sigma_data", 0.5))),
    )
    normalizers = {"observation": statistics.observations, "action": statistics.actions}
    if goal:
        normalizers["goal_observation"] = statistics.goals(goal)
    notes = {"format": "beso", "weights": WEIGHTS_FILE, "scaler": Path(scaler).name}
    if config.get("cond_lambda", 1) != 1:
        # The original's evaluations name their own, 1 where nobody asks for another.
        notes["guidance"] = "none: classifier-free guidance is not applied"
    return Checkpoint(spec, filled(spec, tensors, where), normalizers, notes)


class _Scaler:
    """Statistics of the training data, as the original's scalers use them."""

    def __init__(self, path: Path, config: Config, frame: int, action_dim: int) -> None:
        self.where = str(path)
        self.frame = frame
        arrays = _arrays(path)
        # The workspace makes the scaler, and MinMaxScaler too scales only where scale_data says so.
        scaled = config.get("workspaces.scale_data")
        if not isinstance(scaled, bool):
            raise CheckpointError(
                f"{config.where}: cfg.workspaces.scale_data: expected true or false, got {scaled!r}"
            )
        minmax = bool(config.get("workspaces.use_minmax_scaler", False))
        one, zero = torch.ones(1).double(), torch.zeros(1).double()
        scale, offset = one, zero
        if scaled:
            scale = 1 / (self._vector(arrays, "x_std", frame) + 1e-12)
            offset = -self._vector(arrays, "x_mean", frame) * scale
        self.observations = affine(scale, offset, frame, "observation", self.where)
        low, high = self._bounds(arrays, action_dim)
        scale, offset = one, zero
        if scaled and minmax:
            least = self._vector(arrays, "y_min", action_dim)
            scale = 2 / (self._vector(arrays, "y_max", action_dim) - least)
            offset = -least * scale - 1
        elif scaled:
            scale = 1 / (self._vector(arrays, "y_std", action_dim) + 1e-12)
            offset = -self._vector(arrays, "y_mean", action_dim) * scale
        self.actions = affine(scale, offset, action_dim, "action", self.where)
        self.limits = tuple((1.1 * low).tolist()), tuple((1.1 * high).tolist())

    def goals(self, count: int) -> Normalizer:
        """The normaliser of a goal of so many frames: that of observations, in part unseen."""
        scale, offset = self.observations.scale.clone(), self.observations.offset.clone()
        unseen = list(_UNSEEN.get(self.frame, ()))
        scale[unseen] = offset[unseen] = 0.0
        return Normalizer(scale.repeat(count), offset.repeat(count))

    def _vector(self, arrays: Mapping[str, Any], name: str, size: int) -> Tensor:
        if name not in arrays:
            raise CheckpointError(f"{self.where}: no {name} among {sorted(arrays)}. {_MISSING}")
        array = arrays[name]
        if array.size != size or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise CheckpointError(
                f"{self.where}: {name}: expected {size} finite numbers, got {array.dtype} of shape "
                f"{array.shape}"
            )
        return torch.from_numpy(array.astype(np.float64)).flatten()

    def _bounds(self, arrays: Mapping[str, Any], size: int) -> tuple[Tensor, Tensor]:
        both = self._vector(arrays, "y_bounds", 2 * size).view(2, size)
        return both[0], both[1]


def _arrays(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: expected a .npz file of arrays: {error}") from error


def _yaml(path: Path) -> Mapping[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise CheckpointError(f"{path}: reading it needs PyYAML: pip install pyyaml") from error
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            # A few of them can stand for gigabytes; hydra writes none.
            raise CheckpointError(f"{path}: expected plain YAML, got an alias")
        tree = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not readable YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{path}: expected a mapping, got {type(tree).__name__}")
    return tree
