"""The transformer of Diffusion Policy (Chi et al., RSS 2023), parameter for parameter.

Names are those of the original ``TransformerForDiffusion`` with the step and the observations as
conditions, so that published weights load unchanged (its constant masks are computed here). The
keys and values that actions attend to depend on each condition alone: those of the step are
tabulated once per checkpoint, and those of the observation computed once per chunk.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asd_policy.networks.linear import Linear, linear
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
        if n_head < 1:
            raise ValueError(f"n_head: expected at least 1, got {n_head}")
        if n_emb % (2 * n_head):
            raise ValueError(
                f"n_emb: expected a multiple of 2 * n_head = {2 * n_head}, got {n_emb}"
            )
        self.sizes = sizes
        self.n_emb, self.n_head, self.n_layer = n_emb, n_head, n_layer
        self.p_drop_attn = p_drop_attn
        self.pos_emb = nn.Parameter(torch.zeros(1, sizes.pred_horizon, n_emb))
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, 1 + sizes.obs_horizon, n_emb))
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.drop = nn.Dropout(p_drop_emb)
        self.input_emb = Linear(sizes.action_dim, n_emb)
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
        self.head = Linear(n_emb, sizes.action_dim)
        self.apply(_initialize)
        for embedding in (self.pos_emb, self.cond_pos_emb):
            nn.init.normal_(embedding, std=0.02)

    def embed_steps(self, step: Tensor) -> Tensor:
        """Keys and values of the step's token in every layer: ``(B,)`` to ``(B, F)``."""
        tokens = self.encoder(self.drop(self.time_emb(step) + self.cond_pos_emb[0, 0]))
        return self._keys_and_values(tokens)

    def embed_condition(self, condition: Tensor) -> Tensor:
        """The same of the frames' tokens: ``(B, To * observation_dim)`` to ``(B, To * F)``."""
        frames = condition.unflatten(1, (self.sizes.obs_horizon, self.sizes.observation_dim))
        tokens = self.cond_obs_emb(frames) + self.cond_pos_emb[:, 1:]
        return self._keys_and_values(self.encoder(self.drop(tokens))).flatten(1)

    def _keys_and_values(self, tokens: Tensor) -> Tensor:
        """What actions attend to of conditions ``(..., n_emb)``: ``(..., layers * 2 * n_emb)``."""
        parts = []
        for attention in (layer.multihead_attn for layer in self._layers()):
            weight, bias = cast(Tensor, attention.in_proj_weight), attention.in_proj_bias
            parts.append(F.linear(tokens, weight[self.n_emb :], bias[self.n_emb :]))
        return torch.cat(parts, dim=-1)

    def _layers(self) -> list[nn.TransformerDecoderLayer]:
        return cast(list[nn.TransformerDecoderLayer], list(self.decoder.layers))

    def denoise(self, sample: Tensor, step_embedding: Tensor, condition: Tensor) -> Tensor:
        """Predict from prepared embeddings.

        Args:
            sample: Noisy chunk, ``(B, Tp, action_dim)``.
            step_embedding: Rows of ``embed_steps``, ``(B, F)``.
            condition: Rows of ``embed_condition``, ``(B, To * F)``.

        Returns:
            The prediction, ``(B, Tp, action_dim)``. On the CPU a row's result does not depend on
            the rows beside it, bit for bit.
        """
        if sample.shape[0] == 1 and sample.device.type == "cpu" and not torch.is_grad_enabled():
            # The few tokens of a single row go to another kernel, rounded otherwise.
            pair = (torch.cat([t, t]) for t in (sample, step_embedding, condition))
            return self.denoise(*pair)[:1]
        frames = condition.unflatten(1, (self.sizes.obs_horizon, -1))
        memory = torch.cat([step_embedding.unsqueeze(1), frames], dim=1)
        time = torch.arange(self.sizes.pred_horizon, device=sample.device).unsqueeze(1)
        # Condition 0 is the step; frame i is seen from the action of its time on.
        seen = torch.arange(memory.shape[1], device=sample.device) <= time + 1
        x = self.drop(self.input_emb(sample) + self.pos_emb)
        both = memory.chunk(self.n_layer, dim=2)
        for layer, keys_and_values in zip(self._layers(), both, strict=True):
            x = x + layer.dropout1(self._attend_to_actions(layer, layer.norm1(x)))
            x = x + layer.dropout2(
                self._attend_to_conditions(layer, layer.norm2(x), keys_and_values, seen)
            )
            hidden = layer.dropout(F.gelu(_apply(layer.linear1, layer.norm3(x))))
            x = x + layer.dropout3(_apply(layer.linear2, hidden))
        return self.head(self.ln_f(x))

    def _attend_to_actions(self, layer: nn.TransformerDecoderLayer, x: Tensor) -> Tensor:
        attention = layer.self_attn
        projected = linear(x, cast(Tensor, attention.in_proj_weight), attention.in_proj_bias)
        query, key, value = (self._heads(part) for part in projected.chunk(3, dim=2))
        y = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self._drop_attention
        )
        return _apply(attention.out_proj, y.transpose(1, 2).flatten(2))

    def _attend_to_conditions(
        self, layer: nn.TransformerDecoderLayer, x: Tensor, keys_and_values: Tensor, seen: Tensor
    ) -> Tensor:
        attention = layer.multihead_attn
        weight, bias = cast(Tensor, attention.in_proj_weight), attention.in_proj_bias
        query = self._heads(linear(x, weight[: self.n_emb], bias[: self.n_emb]))
        key, value = (self._heads(part) for part in keys_and_values.chunk(2, dim=2))
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=self._drop_attention
        )
        return _apply(attention.out_proj, y.transpose(1, 2).flatten(2))

    @property
    def _drop_attention(self) -> float:
        return self.p_drop_attn if self.training else 0.0

    def _heads(self, x: Tensor) -> Tensor:
        """``(B, L, n_emb)`` as ``(B, heads, L, n_emb / heads)``."""
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)

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


def _apply(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer of PyTorch's own modules by ``linear``."""
    return linear(x, layer.weight, layer.bias)


def _initialize(module: nn.Module) -> None:
    """The original's initialisation: weights N(0, 0.02²), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(cast(Tensor, module.in_proj_weight), std=0.02)
        nn.init.zeros_(cast(Tensor, module.in_proj_bias))
