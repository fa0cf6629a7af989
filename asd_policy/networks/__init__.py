"""Networks that predict from a noisy chunk, a step and a condition: plain torch modules."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from asd_policy.networks.image_conditioned import Entry, ImageConditioned
from asd_policy.networks.image_encoder import ImageEncoder, encoded_features
from asd_policy.networks.score_gpt import ScoreGPT
from asd_policy.networks.sizes import Sizes
from asd_policy.networks.transformer import DiffusionTransformer
from asd_policy.networks.unet1d import ConditionalUnet1D

__all__ = [
    "NETWORKS",
    "ConditionalUnet1D",
    "DenoisingNetwork",
    "DiffusionTransformer",
    "Entry",
    "ImageConditioned",
    "ImageEncoder",
    "ScoreGPT",
    "Sizes",
    "build_network",
    "encoded_features",
]


class DenoisingNetwork(Protocol):
    """What planning asks of a network.

    The embeddings are apart from ``denoise`` so that a step's is computed once per checkpoint and
    an observation's once per chunk, however many rows are evaluated.
    """

    def embed_steps(self, step: Tensor) -> Tensor:
        """Embed network times ``(B,)`` as ``(B, E)``."""
        ...

    def embed_condition(self, condition: Tensor) -> Tensor:
        """Embed conditions ``(B, C)`` as ``(B, F)``."""
        ...

    def denoise(self, sample: Tensor, step_embedding: Tensor, condition: Tensor) -> Tensor:
        """Predict ``(B, T, D)`` from a noisy sample ``(B, T, D)`` and rows of both embeddings."""
        ...


def _unet(sizes: Sizes, **options: Any) -> ConditionalUnet1D:
    halvings = len(options.get("down_dims", ())) - 1
    if halvings > 0 and sizes.pred_horizon % 2**halvings:
        raise ValueError(
            f"pred_horizon: down_dims {list(options['down_dims'])[:8]} halve it {halvings} times: "
            f"expected a multiple of {2**halvings}, got {sizes.pred_horizon}"
        )
    return ConditionalUnet1D(sizes.action_dim, sizes.condition_dim, **options)


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "chi_unet": _unet,
    "chi_transformer": DiffusionTransformer,
    "score_gpt": ScoreGPT,
}


def build_network(name: str, sizes: Sizes, **options: Any) -> nn.Module:
    """Build a network by name, with fresh weights.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If an option is not one of the network's.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; expected one of {sorted(NETWORKS)}")
    return NETWORKS[name](sizes, **options)
