"""How weights move: AdamW, or Muon for the matrices between layers and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer


def build_optimizers(config: DictConfig, network: nn.Module) -> list[Optimizer]:
    """The optimisers that together move every weight of a network once.

    Muon (Jordan et al. 2024) makes the steps of all directions of a matrix equally large; scaled as
    Liu et al. (2025, arXiv 2502.16982, eq. 4) do, it takes AdamW's learning rate. Embeddings and
    the head stay with AdamW, as both recommend.

    Args:
        config: The training's, with ``optimizer``, ``learning_rate``, ``weight_decay``, ``policy``.
        network: Whose weights.

    Raises:
        ValueError: If the optimiser is unknown, not in this torch, or does not suit the network.
    """
    weights = list(network.parameters())
    if config.optimizer == "adamw":
        return [_adamw(config, weights)]
    if config.optimizer != "muon":
        raise ValueError(f"optimizer: expected adamw or muon, got {config.optimizer!r}")
    network_config = config.policy.network
    width = network_config.get("n_emb") or min(network_config.down_dims)
    # Between layers both sides are multiples of the width; the inputs of embeddings and of the
    # U-Net's conditioning, and the head's output, are sizes of the task.
    inner = [
        weight
        for weight in weights
        if weight.ndim in (2, 3) and all(side % width == 0 for side in weight.shape[:2])
    ]
    chosen = {id(weight) for weight in inner}
    muon: Callable[..., Optimizer] | None = getattr(torch.optim, "Muon", None)
    if muon is None:
        raise ValueError(
            f"optimizer=muon needs torch 2.9 or later, this is {torch.__version__}: use adamw"
        )
    return [
        muon(
            [_as_matrix(weight) for weight in inner],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        _adamw(config, [weight for weight in weights if id(weight) not in chosen]),
    ]


def _as_matrix(weight: nn.Parameter) -> nn.Parameter:
    """A matrix itself; a kernel (M, N, K) as the matrix (M, N K), in the same memory.

    torch's Muon takes matrices alone; a convolution is one over its window (Jordan et al. 2024).
    """
    if weight.ndim == 2:
        return weight
    matrix = nn.Parameter(weight.detach().view(len(weight), -1))

    def share_gradient(kernel: Tensor) -> None:
        assert kernel.grad is not None
        matrix.grad = kernel.grad.view(matrix.shape)

    weight.register_post_accumulate_grad_hook(share_gradient)
    return matrix


def _adamw(config: DictConfig, weights: list[nn.Parameter]) -> AdamW:
    return AdamW(
        weights,
        lr=config.learning_rate,
        betas=(0.95, 0.999),
        weight_decay=config.weight_decay,
        fused=True,
    )
