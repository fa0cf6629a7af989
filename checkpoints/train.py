"""Train a diffusion policy: ``python -m checkpoints.train task=pusht dataset=PATH``.

A run can be stopped at any time and goes on where it was: the batches depend on the seed and the
step alone, and the state is written every ``save_every`` steps and on Ctrl-C. It goes on with the
data that it began with alone, wherever that lies now.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import asd_policy
from asd_policy.formats.native import (
    CONFIG_FILE,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    weights_digest,
)
from asd_policy.policies.normalizer import Normalizer
from asd_policy.policies.observation import features
from asd_policy.policies.rotation import ARM_6D, pose_to_6d
from asd_policy.policies.spec import ObservationKey, PolicySpec
from asd_policy.sampling import CleanPrediction, Parametrization
from checkpoints.datasets import Demonstrations, load_demonstrations, window_indices
from checkpoints.optimizers import build_optimizers
from checkpoints.stopping import stop_like_ctrl_c, uninterrupted


class ChunkData:
    """Normalised training windows in memory.

    Args:
        demonstrations: Where they come from.
        spec: The policy.
        normalizers: Of a policy that is trained on; fitted to the demonstrations when None.
    """

    def __init__(
        self,
        demonstrations: Demonstrations,
        spec: PolicySpec,
        normalizers: Mapping[str, Normalizer] | None = None,
    ) -> None:
        self.normalizers: dict[str, Normalizer] = {}
        # Normalised values; images stay bytes, which as numbers would take four times the memory.
        self._observed: list[Tensor] = []
        for entry in spec.observations:
            values = _checked(entry, demonstrations.observations[entry.key])
            if entry.image:
                channels = torch.ones(entry.shape[0])
                self.normalizers[entry.key] = Normalizer(2 * channels, -channels)
            else:
                values = features([entry], values)
                self.normalizers[entry.key] = (
                    normalizers[entry.key] if normalizers else Normalizer.fit_limits(values)
                )
                values = self.normalizers[entry.key].normalize(values)
            self._observed.append(values)
        actions = demonstrations.actions
        if actions.shape[1:] != (spec.action_dim,):
            raise ValueError(
                f"actions: the task says {spec.action_dim} numbers, the demonstrations have "
                f"{tuple(actions.shape[1:])}; set task.action_dim"
            )
        self.normalizers["action"] = Normalizer.fit_limits(actions)
        if spec.action_rotation == "rotation_6d":
            actions = pose_to_6d(actions.double()).float()
            self.normalizers["action"] = _position_limits(actions)
        if normalizers:
            self.normalizers["action"] = normalizers["action"]
        self._actions = self.normalizers["action"].normalize(actions)
        self._windows = torch.from_numpy(
            window_indices(
                demonstrations.episode_ends,
                obs_horizon=spec.obs_horizon,
                pred_horizon=spec.pred_horizon,
                action_horizon=spec.action_horizon,
            )
        )
        if not len(self._windows):
            raise ValueError(
                f"the demonstrations are too short: expected an episode of more than "
                f"{spec.pred_horizon - spec.obs_horizon + 1 - spec.action_horizon} steps"
            )
        self._obs_horizon = spec.obs_horizon
        self.digest = demonstrations.digest()

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions ``(B, C)`` and chunks ``(B, Tp, Da)`` of the windows at ``index`` ``(B,)``."""
        steps = self._windows[index]
        seen = [values[steps[:, : self._obs_horizon]] for values in self._observed]
        condition = torch.cat([_numbers(values) for values in seen], dim=2).flatten(1)
        return condition, self._actions[steps]


def _checked(entry: ObservationKey, values: Tensor) -> Tensor:
    """Values of an observation: bytes if it is an image, else numbers, of the task's shape.

    Raises:
        ValueError: Saying what the task expects and the demonstrations have.
    """
    shape, kind = tuple(values.shape[1:]), values.dtype
    if entry.image:
        expected = (*entry.shape[1:], entry.shape[0])
        if kind == torch.uint8 and shape == expected:
            return values
        raise ValueError(
            f"{entry.key}: the task says images, bytes of (height, width, channels) {expected}; "
            f"the demonstrations have {kind} of shape {shape}"
        )
    if shape != entry.shape and (shape, entry.shape) != ((), (1,)):
        raise ValueError(
            f"{entry.key}: the task says shape {entry.shape}, the demonstrations have {shape}"
        )
    return values.float().reshape(len(values), -1)


def _numbers(values: Tensor) -> Tensor:
    """Frames ``(B, To, D)``; images ``(B, To, H, W, C)`` come out channels first, in [-1, 1]."""
    if values.dtype != torch.uint8:
        return values
    return values.movedim(-1, 2).flatten(2).float() / 127.5 - 1


def _position_limits(actions: Tensor) -> Normalizer:
    """Positions to [-1, 1]; rotations and grippers are in that range (Chi et al. 2023)."""
    fitted = Normalizer.fit_limits(actions)
    fixed = (torch.arange(ARM_6D) >= 3).repeat(actions.shape[1] // ARM_6D)
    return Normalizer(fitted.scale.masked_fill(fixed, 1.0), fitted.offset.masked_fill(fixed, 0.0))


class Trainer:
    """Network, its moving average, optimisers and step: all that a stopped run needs to go on."""

    def __init__(self, config: DictConfig, spec: PolicySpec, data: ChunkData) -> None:
        torch.manual_seed(config.seed)
        self.config, self.spec, self.data = config, spec, data
        self.device = torch.device(config.device)
        self.chain = spec.build_chain()
        self.signal = self.chain.signal.to(self.device, torch.float32)
        self.noise = self.chain.noise.to(self.device, torch.float32)
        time = self.chain.network_time.to(self.device)
        self.time = time.float() if time.is_floating_point() else time
        self.clean = CleanPrediction(self.chain, spec.parametrization, self.device)
        # Convolutions of images take nearly half the time in this layout; the others do not mind.
        self.network = spec.build_network().to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizers = build_optimizers(config, self.network)
        self.step = 0
        # What the paths in the configuration stand for: files may be replaced, or move.
        self.sources = {"dataset": data.digest}
        if config.initial is not None:
            self.sources["initial"] = weights_digest(config.initial)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, self.config.bfloat16):
            if self.config.bfloat16 and self.device.type == "cpu":
                # The fused attention's backward in bfloat16 takes half of a transformer's step.
                with sdpa_kernel(SDPBackend.MATH):
                    yield
            else:
                yield

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        config = self.config
        if self.step < config.warmup_steps:
            return config.learning_rate * (self.step + 1) / config.warmup_steps
        progress = (self.step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def update(self) -> float:
        """One optimiser step on the denoising loss (Ho et al. 2020, eq. 14); returns the loss.

        Raises:
            FloatingPointError: If the loss or its gradient is not finite; nothing was moved then.
        """
        # Every draw is keyed by the step, so that a resumed run sees the batches it would have.
        seed = self.config.seed * 1_000_003 + self.step
        draw = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout, and the crops of images
        size = self.config.batch_size
        index = torch.randint(len(self.data), (size,), generator=draw)
        level = torch.randint(self.chain.num_steps, (size,), generator=draw)
        condition, chunk = (t.to(self.device) for t in self.data.batch(index))
        epsilon = torch.randn(chunk.shape, generator=draw).to(self.device)
        level = level.to(self.device)
        noisy = self.signal[level, None, None] * chunk + self.noise[level, None, None] * epsilon
        shown = self.clean.network_input(noisy, level)
        with self._precision():
            output = self.network(shown, self.time[level], condition).float()
        # The plain squared error of what the network puts out.
        loss = F.mse_loss(output, self.clean.target(noisy, chunk, level))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise FloatingPointError(
                f"step {self.step}: expected a finite loss and gradient, got {loss.item()} and one "
                f"of norm {norm.item()}; look for NaN in the data, or take a lower learning_rate "
                "and another output=…"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self._update_ema()
        return loss.item()

    @torch.no_grad()
    def _update_ema(self) -> None:
        # A short memory at first, else the fresh weights would linger in the average.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for average, weight in zip(self.ema.parameters(), self.network.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)
        # The statistics of batch norms are averages already.
        for kept, value in zip(self.ema.buffers(), self.network.buffers(), strict=True):
            kept.copy_(value)

    def save_state(self, path: Path) -> None:
        """Write the run's state atomically."""
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "config": OmegaConf.to_container(self.config),
                "sources": self.sources,
                "step": self.step,
                "network": self.network.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            },
            temporary,
        )
        os.replace(temporary, path)

    def load_state(self, path: Path) -> None:
        """Go on from a state that the same configuration wrote, from the same data.

        Raises:
            ValueError: If the state was written under another configuration, or from other data.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        # Where the data and the run lie and how often it reports do not change what is learned.
        free = {"dataset", "initial", "output", "device", "threads", "save_every", "half"}
        now: dict[str, Any] = OmegaConf.to_container(self.config)  # type: ignore[assignment]
        changed = {
            key
            for key in set(now) | set(state["config"])
            if key not in free and now.get(key) != state["config"].get(key)
        }
        if changed:
            raise ValueError(
                f"{path} was written with other values of {sorted(changed)}: restore them, or "
                "choose another output=… for a new run"
            )
        # States of earlier versions do not say what they were made from.
        known = state.get("sources", self.sources)
        both = set(known) | set(self.sources)
        replaced = sorted(key for key in both if known.get(key) != self.sources.get(key))
        if replaced:
            raise ValueError(
                f"{path} was written from other contents of {replaced}: restore them, or choose "
                "another output=… for a new run"
            )
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    def export(self, directory: Path) -> None:
        """Write the averaged weights as a native checkpoint."""
        recipe: dict[str, Any] = OmegaConf.to_container(self.config)  # type: ignore[assignment]
        recipe.pop("output")
        recipe["initial"] = None if self.config.initial is None else Path(self.config.initial).name
        recipe["dataset"] = [Path(path).name for path in dataset_paths(self.config)]
        provenance = {
            "recipe": recipe,
            "steps": self.step,
            "windows": len(self.data),
            "versions": {"asd_policy": asd_policy.__version__, "torch": torch.__version__},
        }
        save_checkpoint(
            Checkpoint(self.spec, self.ema, self.data.normalizers, provenance),
            directory,
            stored=torch.float16 if self.config.half else torch.float32,
        )


def dataset_paths(config: DictConfig) -> list[str]:
    """The files of demonstrations that a configuration names, one or several."""
    return [config.dataset] if isinstance(config.dataset, str) else list(config.dataset)


def policy_spec(config: DictConfig) -> PolicySpec:
    """The policy that a training configuration describes.

    Raises:
        asd_policy.AsdPolicyError: If there is no such policy.
    """
    task, policy = config.task, config.policy
    return PolicySpec(
        task=task.name,
        observations=tuple(
            ObservationKey(
                entry.key,
                tuple(entry.shape),
                tuple(entry.get("quaternions", ())),
                entry.get("image", False),
            )
            for entry in task.observations
        ),
        action_dim=task.action_dim,
        action_mode=task.action_mode,
        action_rotation=task.action_rotation,
        obs_horizon=policy.obs_horizon,
        pred_horizon=policy.pred_horizon,
        action_horizon=policy.action_horizon,
        first_action=policy.obs_horizon - 1,
        network=OmegaConf.to_container(policy.network),  # type: ignore[arg-type]
        encoder=(
            OmegaConf.to_container(policy.encoder)  # type: ignore[arg-type]
            if policy.get("encoder") is not None
            else None
        ),
        chain=OmegaConf.to_container(policy.chain),  # type: ignore[arg-type]
        parametrization=Parametrization(
            policy.prediction, sigma_data=0.5 if policy.prediction == "edm" else None
        ),
    )


def train(config: DictConfig) -> Path:
    """Train, or go on training, as ``configs/train.yaml`` describes.

    Returns:
        The folder of the finished checkpoint, which a run that was at its end leaves as it is.

    Raises:
        FileNotFoundError: If there are no demonstrations.
        ValueError: If a setting is missing, the demonstrations cannot be read, the output holds a
            run of another recipe or other data, or the initial checkpoint is another policy's.
        FloatingPointError: If training diverges; the state that was last written stays.
        asd_policy.AsdPolicyError: If there is no such policy, or the initial checkpoint cannot be
            read.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"settings without a value: {missing}; give {missing[0]}=…")
    torch.set_num_threads(config.threads)
    spec = policy_spec(config)
    keys = [entry.key for entry in spec.observations]
    demonstrations = load_demonstrations(dataset_paths(config), keys, spec.action_mode)
    initial = None if config.initial is None else load_checkpoint(config.initial)
    if initial is not None and initial.spec != spec:
        raise ValueError(f"initial: {config.initial} is another policy than the one to be trained")
    data = ChunkData(demonstrations, spec, None if initial is None else initial.normalizers)
    trainer = Trainer(config, spec, data)
    if initial is not None:
        for network in (trainer.network, trainer.ema):
            network.load_state_dict(initial.network.state_dict())
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    state = output / "train_state.pt"
    if state.exists():
        trainer.load_state(state)
    begun, average = trainer.step, math.nan
    with tqdm(total=config.steps, initial=trainer.step, desc=config.task.name) as progress:
        try:
            while trainer.step < config.steps:
                with uninterrupted():
                    loss = trainer.update()
                average = loss if math.isnan(average) else 0.99 * average + 0.01 * loss
                progress.update()
                progress.set_postfix(loss=f"{average:.4f}", refresh=False)
                if trainer.step % config.save_every == 0:
                    trainer.save_state(state)
        except FloatingPointError:
            raise  # the weights may be spoilt already: the state last written is worth more
        except BaseException:
            trainer.save_state(state)
            raise
    finished = output / "checkpoint"
    # A checkpoint that is there may have been given a gain since.
    if trainer.step > begun or not (finished / CONFIG_FILE).is_file():
        trainer.export(finished)
        trainer.save_state(state)  # after it: a state at its end says that the checkpoint is there
    return finished


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    """Run ``train`` from the command line."""
    stop_like_ctrl_c()
    try:
        print(f"wrote {train(config)}")
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None
    except (
        FileNotFoundError,
        ValueError,
        FloatingPointError,
        asd_policy.AsdPolicyError,
    ) as error:
        raise SystemExit(f"train: {error}") from error


if __name__ == "__main__":
    main()
