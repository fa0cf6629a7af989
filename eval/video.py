"""Films of evaluated episodes, with a caption on what planning cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import envs
from eval.episodes import Episode, Experiment

_CAPTION = 32  # pixels, a multiple of _BLOCK
_BLOCK = 16  # encoders want multiples of this


def film(experiment: Experiment, episode: Episode, path: Path) -> None:
    """Run an episode once more and film it.

    Call this in a process of its own (`processes.run_apart`): rendering contexts of two simulators
    disturb each other.

    Args:
        experiment: Task, checkpoint and limits.
        episode: Which episode.
        path: The MP4 to write.

    Raises:
        envs.errors.RenderError: If this machine cannot draw the task.
    """
    torch.set_num_threads(1)
    task = envs.spec(experiment.task)
    policy = experiment.load_policy().with_sampler(episode.sampler)
    policy.reset(seed=episode.seed, repeat=episode.repeat)
    env = experiment.make_env(render_mode="rgb_array")
    observation, info = env.reset(seed=episode.seed)
    writer: Any = imageio.get_writer(path, fps=task.control_hz, macro_block_size=_BLOCK)
    with writer:
        title = f"{task.title}   {episode.sampler}   seed {episode.seed}"
        writer.append_data(_captioned(np.asarray(env.render()), title, ""))
        for step in range(experiment.max_steps):
            action = policy.act(observation)
            observation, _, terminated, truncated, info = env.step(action)
            plan = policy.last_plan
            assert plan is not None
            cost = f"step {step + 1:3d}   {plan.calls[0]} calls for the chunk"
            if info["success"]:
                cost += "   success"
            frame = _captioned(np.asarray(env.render()), title, cost)
            writer.append_data(frame)
            if terminated or truncated or info["success"]:
                break
        for _ in range(task.control_hz):  # hold the end for a second
            writer.append_data(frame)
    env.close()


def _captioned(frame: NDArray[np.uint8], title: str, text: str) -> NDArray[np.uint8]:
    """A frame (H, W, 3), its size rounded up for the encoder, over a caption of two lines."""
    height, width = (-(-size // _BLOCK) * _BLOCK for size in frame.shape[:2])
    scaled = Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (width, height + _CAPTION), "white")
    canvas.paste(scaled, (0, 0))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=12)
    draw.text((6, height + 2), title, fill="#111827", font=font)
    draw.text((6, height + 16), text, fill="#6b7280", font=font)
    return np.asarray(canvas)
