"""The score-GPT of BESO (Reuss et al., RSS 2023), parameter for parameter.

Names are those of the original ``DiffusionGPT``; its constant masks are computed here. The original
denoises the actions of an observed window, towards a goal if it has one; here the sequence of
actions may go on beyond the observed frames, so that it plans chunks like the other policies.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.linear import Linear
from asd_policy.networks.sizes import MOST_LAYERS, Sizes


class CausalSelfAttention(nn.Module):
    """Attention of each token to itself and those before it."""

    def __init__(self, n_emb: int, n_head: int, p_drop: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.p_drop = p_drop
        self.key = Linear(n_emb, n_emb)
        self.query = Linear(n_emb, n_emb)
        self.value = Linear(n_emb, n_emb)
        self.proj = Linear(n_emb, n_emb)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, L, n_emb)`` to the same shape."""
        query, key, value = (
            linear(x).unflatten(2, (self.n_head, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        drop = self.p_drop if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=drop)
        return F.dropout(self.proj(y.transpose(1, 2).flatten(2)), drop)


class Block(nn.Module):
    """Attention and a perceptron, each after a normalisation and beside a residual."""

    def __init__(self, n_emb: int, n_head: int, p_drop: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(n_emb)
        self.ln2 = nn.LayerNorm(n_emb)
        self.attn = CausalSelfAttention(n_emb, n_head, p_drop)
        self.mlp = nn.Sequential(
            Linear(n_emb, 4 * n_emb),
            nn.GELU(),
            Linear(4 * n_emb, n_emb),
            nn.Dropout(p_drop),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, L, n_emb)`` to the same shape."""
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class ScoreGPT(nn.Module):
    """A GPT over noise level, observed frames and noisy actions, which predicts at the actions.

    Source: Reuss et al. 2023, "Goal-Conditioned Imitation Learning using Score-based Diffusion
    Policies" (BESO), appendix on the architecture. The sequence is σ, the goal's frames, s_1, a_1,
    …, s_To, a_To, and then the actions of the chunk that have no frame yet; a frame and the action
    of its time share a position. An action sees no later frame.

    Args:
        sizes: Sizes of the policy.
        n_layer: Blocks.
        n_head: Attention heads of each.
        n_emb: Size of a token.
        p_drop_emb: Dropout of tokens in training.
        p_drop: Dropout within the blocks in training.
        goal_frames: Frames of the goal. Each observed frame then ends with a goal of so many
            frames like the one it begins with; that of the last frame counts.
        head_hidden: Width of the output's hidden layer; None for a linear output.
    """

    def __init__(
        self,
        sizes: Sizes,
        n_layer: int = 4,
        n_head: int = 6,
        n_emb: int = 240,
        p_drop_emb: float = 0.0,
        p_drop: float = 0.05,
        goal_frames: int = 0,
        head_hidden: int | None = None,
    ) -> None:
        super().__init__()
        if goal_frames < 0 or sizes.observation_dim % (1 + goal_frames):
            raise ValueError(
                f"goal_frames: {goal_frames} frames of goal and one of observation do not share "
                f"{sizes.observation_dim} values equally"
            )
        if not 1 <= n_layer <= MOST_LAYERS:
            raise ValueError(f"n_layer: expected 1 to {MOST_LAYERS}, got {n_layer}")
        if head_hidden is not None and head_hidden < 1:
            raise ValueError(f"head_hidden: expected a width or None, got {head_hidden}")
        if n_head < 1:
            raise ValueError(f"n_head: expected at least 1, got {n_head}")
        if n_emb % n_head:
            raise ValueError(f"n_emb: expected a multiple of n_head = {n_head}, got {n_emb}")
        if sizes.pred_horizon < sizes.obs_horizon:
            raise ValueError(
                f"expected at least as many actions as frames, got {sizes.pred_horizon} and "
                f"{sizes.obs_horizon}"
            )
        self.sizes = sizes
        self.n_emb = n_emb
        self.goal_frames = goal_frames
        self.frame_dim = sizes.observation_dim // (1 + goal_frames)
        self.pos_emb = nn.Parameter(torch.zeros(1, goal_frames + sizes.pred_horizon, n_emb))
        self.tok_emb = nn.Linear(self.frame_dim, n_emb)
        self.drop = nn.Dropout(p_drop_emb)
        self.blocks = nn.Sequential(*(Block(n_emb, n_head, p_drop) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_emb)
        self.sigma_emb = nn.Linear(1, n_emb)
        self.action_emb = Linear(sizes.action_dim, n_emb)
        self.action_pred: nn.Module
        if head_hidden is None:
            self.action_pred = Linear(n_emb, sizes.action_dim)
        else:
            self.action_pred = nn.Sequential(
                Linear(n_emb, head_hidden), nn.SiLU(), Linear(head_hidden, sizes.action_dim)
            )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.pos_emb, std=0.02)

    def embed_steps(self, sigma: Tensor) -> Tensor:
        """The noise level's token: ``(B,)`` to ``(B, n_emb)``."""
        return self.sigma_emb(sigma.unsqueeze(1).log() / 4)

    def embed_condition(self, condition: Tensor) -> Tensor:
        """The goal's and the frames' tokens, ``(B, To * D)`` to ``(B, (G + To) * n_emb)``."""
        frames = condition.unflatten(1, (self.sizes.obs_horizon, 1 + self.goal_frames, -1))
        tokens = torch.cat([frames[:, -1, 1:], frames[:, :, 0]], dim=1)
        return (self.tok_emb(tokens) + self.pos_emb[:, : tokens.shape[1]]).flatten(1)

    def denoise(self, sample: Tensor, step_embedding: Tensor, condition: Tensor) -> Tensor:
        """Predict from prepared embeddings.

        Args:
            sample: Noisy chunk, scaled as the preconditioning says, ``(B, Tp, action_dim)``.
            step_embedding: Rows of ``embed_steps``, ``(B, n_emb)``.
            condition: Rows of ``embed_condition``, ``(B, (G + To) * n_emb)``.

        Returns:
            The network's output, to be preconditioned, ``(B, Tp, action_dim)``.
        """
        observed = self.sizes.obs_horizon
        goal, frames = condition.unflatten(1, (-1, self.n_emb)).split(
            [self.goal_frames, observed], dim=1
        )
        actions = self.action_emb(sample) + self.pos_emb[:, self.goal_frames :]
        # s_1, a_1, s_2, a_2, …
        pairs = torch.stack([frames, actions[:, :observed]], dim=2).flatten(1, 2)
        first = [step_embedding.unsqueeze(1), goal]
        tokens = torch.cat([*first, pairs, actions[:, observed:]], dim=1)
        x = self.ln_f(self.blocks(self.drop(tokens)))[:, self.goal_frames :]
        at_actions = torch.cat([x[:, 2 : 2 * observed + 1 : 2], x[:, 2 * observed + 1 :]], dim=1)
        return self.action_pred(at_actions)

    def forward(self, sample: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """The network's output for noisy chunks at noise levels ``(B,)``, as ``denoise``."""
        return self.denoise(sample, self.embed_steps(sigma), self.embed_condition(condition))
