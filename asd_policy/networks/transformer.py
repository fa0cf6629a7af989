"""The transformer of Diffusion Policy (Chi et al., RSS 2023), parameter for parameter.

Names are those of the original ``TransformerForDiffusion`` with the step and the observations as
conditions, so that published weights load unchanged (its constant masks are computed here). As the
encoder of the conditions works on each token alone, the step's tokens are tabulated once per
checkpoint and the observation's computed once per chunk.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from asd_policy.networks.sizes import MOST_LAYERS, Sizes
from asd_policy.networks.unet1d import SinusoidalPosEmb


class DiffusionTransformer(nn.Module):
    """Decoder over a chunk of actions that attends to the step and to the observed frames.

    Source: Chi et al. 2023, section III-C; ``causal_attn``, ``time_as_cond`` and ``obs_as_cond`` of
    the original are on, and its ``n_cond_layers`` is 0, as in all released configurations. An
    action sees the actions before it, and of the conditions those up to its own time.

    Args:
        sizes: Sizes of the policy.
        n_layer: Decoder layers.
        n_head: Attention heads of each.
        n_emb: Size of a token.
        p_drop_emb: Dropout of tokens in training.
        p_drop_attn: Dropout within the layers in training.
    """

    def __init__(
        self,
        sizes: Sizes,
        n_layer: int = 8,
        n_head: int = 4,
        n_emb: int = 256,
        p_drop_emb: float = 0.0,
        p_drop_attn: float = 0.3,
    ) -> None:
        super().__init__()
        if not 1 <= n_layer <= MOST_LAYERS:
            raise ValueError(f"n_layer: expected 1 to {MOST_LAYERS}, got {n_layer}")
        if n_emb % (2 * n_head):
            raise ValueError(
                f"n_emb: expected a multiple of 2 * n_head = {2 * n_head}, got {n_emb}"
            )
        self.sizes = sizes
        self.n_emb = n_emb
        self.pos_emb = nn.Parameter(torch.zeros(1, sizes.pred_horizon, n_emb))
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, 1 + sizes.obs_horizon, n_emb))
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.drop = nn.Dropout(p_drop_emb)
        self.input_emb = nn.Linear(sizes.action_dim, n_emb)
        self.cond_obs_emb = nn.Linear(sizes.observation_dim, n_emb)
        self.encoder = nn.Sequential(
            nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb)
        )
        layer = nn.TransformerDecoderLayer(
            n_emb,
            n_head,
            4 * n_emb,
            p_drop_attn,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, n_layer)
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, sizes.action_dim)
        self.apply(_initialize)
        for embedding in (self.pos_emb, self.cond_pos_emb):
            nn.init.normal_(embedding, std=0.02)

    def embed_steps(self, step: Tensor) -> Tensor:
        """The step's token, encoded: ``(B,)`` to ``(B, n_emb)``."""
        return self.encoder(self.drop(self.time_emb(step) + self.cond_pos_emb[0, 0]))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """The frames' tokens, encoded: ``(B, To * observation_dim)`` to ``(B, To * n_emb)``."""
        frames = condition.unflatten(1, (self.sizes.obs_horizon, self.sizes.observation_dim))
        tokens = self.cond_obs_emb(frames) + self.cond_pos_emb[:, 1:]
        return self.encoder(self.drop(tokens)).flatten(1)

    def denoise(self, sample: Tensor, step_embedding: Tensor, condition: Tensor) -> Tensor:
        """Predict from prepared embeddings.

        Args:
            sample: Noisy chunk, ``(B, Tp, action_dim)``.
            step_embedding: Rows of ``embed_steps``, ``(B, n_emb)``.
            condition: Rows of ``embed_condition``, ``(B, To * n_emb)``.

        Returns:
            The prediction, ``(B, Tp, action_dim)``. On the CPU a row's result does not depend on the
            rows beside it, bit for bit.
        """
        if sample.shape[0] == 1 and sample.device.type == "cpu" and not torch.is_grad_enabled():
            # The few tokens of a single row's conditions go to another kernel, rounded otherwise.
            pair = (t.expand(2, *t.shape[1:]) for t in (sample, step_embedding, condition))
            return self.denoise(*pair)[:1]
        frames = condition.unflatten(1, (self.sizes.obs_horizon, self.n_emb))
        memory = torch.cat([step_embedding.unsqueeze(1), frames], dim=1)
        tokens = self.drop(self.input_emb(sample) + self.pos_emb)
        time = torch.arange(self.sizes.pred_horizon, device=sample.device).unsqueeze(1)
        # True where one may not look. Condition 0 is the step, 1… the frames, one action each.
        ahead = time.T > time
        unseen = torch.arange(memory.shape[1], device=sample.device) > time + 1
        x = self.decoder(tokens, memory, tgt_mask=ahead, memory_mask=unseen, tgt_is_causal=True)
        return self.head(self.ln_f(x))

    def forward(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise (or whatever the checkpoint was trained to predict).

        Args:
            sample: Noisy chunk, ``(B, Tp, action_dim)``.
            timestep: Diffusion step of each row as trained, ``(B,)``.
            condition: ``(B, To * observation_dim)``, time-major.

        Returns:
            The prediction, ``(B, Tp, action_dim)``.
        """
        return self.denoise(sample, self.embed_steps(timestep), self.embed_condition(condition))


def _initialize(module: nn.Module) -> None:
    """The original's initialisation: weights N(0, 0.02²), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(cast(Tensor, module.in_proj_weight), std=0.02)
        nn.init.zeros_(cast(Tensor, module.in_proj_bias))
