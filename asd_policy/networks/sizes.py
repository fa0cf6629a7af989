"""What a policy tells its network of its sizes."""

from dataclasses import dataclass

MOST_LAYERS = 256
"""Far above any network in use: a hostile file must not make a loader build without end."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the tensors that a network maps between.

    Attributes:
        action_dim: Dimensions of one action, as the network plans it.
        pred_horizon: Tp, actions in a chunk.
        observation_dim: Values in one frame of observations, as the network sees it.
        obs_horizon: To, frames of observation; a condition is ``(To * observation_dim,)``.
    """

    action_dim: int
    pred_horizon: int
    observation_dim: int
    obs_horizon: int

    @property
    def condition_dim(self) -> int:
        """Values in a condition: To frames, time-major."""
        return self.obs_horizon * self.observation_dim
