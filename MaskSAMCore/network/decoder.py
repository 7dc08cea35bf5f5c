"""SAM's frozen mask decoder with adapter slots, for all slices of a patch at once (model.md §4.3, §7).

Tensors are channels last; sequences are (B * Q * D) with depth as the fastest index. Image tokens stay
(B, 1, D, n, 256) as long as all prompts of a slice share them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.adapters import PARALLEL_SCALE, Adapter, ConditionedAdapter, core_of
from MaskSAMCore.network.attention import attend
from MaskSAMCore.network.types import Decoded, Features, PromptTokens

if TYPE_CHECKING:
    from segment_anything.modeling.transformer import Attention

EMBED_DIM = 256
LAYERS = 2
MASK_TOKENS = 4
CONDITION_DROPOUT = 0.1
"""Share of the prompts whose condition is hidden in training."""


class Positions(NamedTuple):
    """Positional encoding of the image tokens: `plane` (1 or D, n, 256), plus `slices` (D, 1, 256) if factorised."""

    plane: Tensor
    slices: Tensor | None = None

    def whole(self) -> Tensor:
        """The sum of both parts, (1 or D, n, 256)."""
        return self.plane if self.slices is None else self.plane + self.slices

    def through(self, layer: nn.Linear) -> Tensor:
        """Apply a linear layer to `whole` through its parts: W(a + b) = Wa + Wb."""
        y = layer(self.plane)
        return y if self.slices is None else y + F.linear(self.slices, layer.weight)


class SamDecoder(nn.Module):
    """Runs segment-anything's `MaskDecoder` (`.sam`, frozen) with the adapter slots of model.md §4.3.

    Tokens are in the order [iou, mask0..mask3, sparse..., class] (§7.1). With untrained adapters, zero depth positions
    and `class_head=False` the result is that of SAM's decoder.

    Two kernels give the same numbers up to rounding (`backbone.attention_kernel`): `reference` calls SAM's attention
    and upscaling modules as they are; `fast` projects the image tokens once for both directions of a layer, does not
    repeat shared image tokens, uses `scaled_dot_product_attention`, and computes the transposed convolutions as matrix
    products.

    Args:
        cfg: `patch[0]` is D; `grid` is the token grid of full depth positions.

    Attributes:
        checkpointing: Whether each chunk of queries is recomputed in the backward pass.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        from segment_anything.modeling import MaskDecoder, TwoWayTransformer

        transformer = TwoWayTransformer(depth=LAYERS, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8)
        self.sam = MaskDecoder(transformer_dim=EMBED_DIM, transformer=transformer).requires_grad_(False)
        self.depth = cfg.patch[0]
        self.reference = cfg.backbone.attention_kernel == "reference"
        self.image_slot = cfg.dec_image.slot
        self.checkpointing = False
        self.token_adapters = nn.ModuleDict(_token_adapters(cfg))
        self.image_adapters = nn.ModuleDict(_image_adapters(cfg))
        self.depth_pe = _depth_positions(cfg)
        self.conditioned = any(isinstance(each, ConditionedAdapter) for each in self.token_adapters.values())
        kinds = (cfg.dec_tokens.kind, cfg.dec_image.kind)
        self.tied = self.depth_pe is not None or any(core_of(kind).tied for kind in kinds if kind != "none")
        self.class_token = nn.Embedding(1, EMBED_DIM) if cfg.decoder.class_head else None
        self.class_head = nn.Linear(EMBED_DIM, cfg.classes + 1) if cfg.decoder.class_head else None

    def forward(
        self,
        f: Features,
        t: PromptTokens,
        dense_pe: Tensor,
        *,
        multimask: bool = False,
        chunk: int | None = None,
    ) -> Decoded:
        """Decode every prompt of every slice.

        Args:
            f: Only `embed` (B, 256, D, g_h, g_w) is used.
            t: Tokens of B * Q * D prompts. Auxiliary class tokens are added to the global one.
            dense_pe: (1, 256, g_h, g_w) from `PromptTokenizer.dense_pe`.
            multimask: Whether to return SAM's three candidates instead of its single mask.
            chunk: Number of prompts decoded at once, with all their slices; None for all.

        Raises:
            ModelError: The weights are for another depth or token grid.
        """
        batch, depth, grid = f.embed.shape[0], f.depth, f.grid
        pe = self._positions(dense_pe, depth)
        shape = (batch, t.queries, depth)
        image = f.embed.transpose(1, 2).flatten(3).transpose(-1, -2).unsqueeze(1)
        tokens = self._tokens(t).unflatten(0, shape)
        condition, known = self._condition(t, shape)
        ignored = None if t.ignored is None else self._ignored(t.ignored).unflatten(0, shape)
        dense = None
        if t.dense.shape[0] == 1 and t.dense.shape[2:] == (1, 1):
            image = image + t.dense.reshape(EMBED_DIM)
        else:
            dense = t.dense.flatten(2).transpose(1, 2).unflatten(0, shape)
        parts = []
        for start in range(0, t.queries, chunk or t.queries):
            some = slice(start, start + (chunk or t.queries))
            own = [None if each is None else each[:, some] for each in (dense, condition, known, ignored)]
            inputs = (tokens[:, some], image, *own, pe, grid, multimask)
            if self.checkpointing and torch.is_grad_enabled():
                parts.append(checkpoint(self._decode, *inputs, use_reentrant=False))
            else:
                parts.append(self._decode(*inputs))
        if len(parts) == 1:
            mask, quality, out, cls = parts[0]
        else:
            masks, qualities, outs, classes = zip(*parts, strict=True)
            mask, quality, out = (torch.cat(each, dim=1) for each in (masks, qualities, outs))
            given = [each for each in classes if each is not None]
            cls = torch.cat(given, dim=1) if given else None
        return Decoded(mask=mask, quality=quality, cls=cls, tokens=out)

    def _positions(self, dense_pe: Tensor, depth: int) -> Positions:
        """SAM's encoding of the token grid plus the learned encoding of the slices."""
        if self.tied and depth != self.depth:
            raise ModelError(
                "the patch has another depth than the model",
                where="decoder",
                why=f"{depth} slices instead of {self.depth}",
                remedy="Pad or crop the patch to the model's depth.",
            )
        plane = dense_pe.flatten(2).transpose(1, 2)
        if self.depth_pe is None:
            return Positions(plane)
        if self.depth_pe.dim() == 2:
            return Positions(plane, self.depth_pe[:, None])
        if self.depth_pe.shape[2:] != dense_pe.shape[2:]:
            raise ModelError(
                "the image has another token grid than the model's full depth positions",
                where="decoder.depth_pe",
                why=f"{tuple(dense_pe.shape[2:])} instead of {tuple(self.depth_pe.shape[2:])}",
                remedy="Use the model's patch size, or depth.pe_decoder=factorised.",
            )
        return Positions(plane + self.depth_pe.flatten(2).transpose(1, 2))

    def _tokens(self, t: PromptTokens) -> Tensor:
        """All tokens (G, T, 256) in the order of model.md §7.1."""
        count = t.sparse.shape[0]
        output = torch.cat([self.sam.iou_token.weight, self.sam.mask_tokens.weight])
        parts = [output.expand(count, -1, -1), t.sparse]
        if self.class_token is not None:
            token = self.class_token.weight.expand(count, -1)
            parts.append((token if t.cls is None else token + t.cls)[:, None])
        return torch.cat(parts, dim=1)

    def _condition(self, t: PromptTokens, shape: tuple[int, int, int]) -> tuple[Tensor | None, Tensor | None]:
        """Condition of the adapters, (B, Q, D, 512), and which prompts have one, (B, Q, D) bool."""
        if not self.conditioned:
            return None, None
        if t.condition is None or t.conditioned is None:
            raise ModelError("this decoder needs the condition of the prompts", where="decoder", why="it is missing")
        known = t.conditioned.unflatten(0, shape)
        if self.training:
            # Dropped for all slices of a prompt together, because the adapters mix them.
            known = known & (torch.rand(*shape[:2], 1, device=known.device) >= CONDITION_DROPOUT)
        return t.condition.unflatten(0, shape), known

    def _ignored(self, sparse: Tensor) -> Tensor:
        """Pad the mask (G, t) of the sparse tokens to (G, T) of all tokens."""
        return F.pad(sparse, (1 + MASK_TOKENS, 0 if self.class_token is None else 1))

    def _decode(
        self,
        points: Tensor,
        image: Tensor,
        dense: Tensor | None,
        condition: Tensor | None,
        known: Tensor | None,
        ignored: Tensor | None,
        pe: Positions,
        grid: tuple[int, int],
        multimask: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Masks, quality, class logits and tokens of q prompts.

        points (B, q, D, T, 256), image (B, 1, D, n, 256), dense (B, q, D, n, 256) or None.
        """
        if self.reference:
            # The memory layout decides the order of summation; SAM's is channels first here.
            image = image.transpose(-1, -2).expand(-1, points.shape[1], -1, -1, -1).contiguous().transpose(-1, -2)
        else:
            image = image.contiguous()
        keys = image if dense is None else image + dense
        x = points
        for index in range(LAYERS):
            x, keys = self._layer(index, x, points, keys, pe, grid, (condition, known), ignored)
        wanted = slice(1, MASK_TOKENS) if multimask else slice(0, 1)
        made = range(MASK_TOKENS) if self.reference else range(MASK_TOKENS)[wanted]
        x = self._final(x, points, keys, pe, 1 + made.stop)
        hyper = torch.stack([self.sam.output_hypernetworks_mlps[i](x[..., 1 + i, :]) for i in made], dim=-2)
        masks = (
            self._masks_as_sam(keys, hyper, grid)[:, :, :, wanted] if self.reference else self._masks(keys, hyper, grid)
        )
        quality = self.sam.iou_prediction_head(x[..., 0, :])[..., wanted]
        cls = None if self.class_head is None else self.class_head(x[..., -1, :])
        return masks, quality, x[..., 1 + wanted.start : 1 + wanted.stop, :], cls

    def _layer(
        self,
        index: int,
        x: Tensor,
        points: Tensor,
        keys: Tensor,
        pe: Positions,
        grid: tuple[int, int],
        condition: tuple[Tensor | None, Tensor | None],
        ignored: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One two-way block.

        x and points (B, q, D, T, 256), keys (B, 1 or q, D, n, 256), ignored (B, q, D, T).
        """
        layer = self.sam.transformer.layers[index]
        first = layer.skip_first_layer_pe
        placed = x if first else x + points
        if ignored is None:
            a = _full_attention(layer.self_attn, placed, placed, x)
        else:
            a = _self_attention(layer.self_attn, placed, x, ignored)
        a = self._adapt(f"{index}_self", a)
        x = layer.norm1(a if first else x + a)

        to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
        if self.reference:
            key = query = keys + pe.whole()
            a = _full_attention(to_image, x + points, key, keys)
        else:
            key, value, query = _project(keys, pe, to_image.k_proj, to_image.v_proj, to_tokens.q_proj)
            a = _token_to_image(to_image, x + points, key, value)
        x = layer.norm2(x + self._adapt(f"{index}_t2i", a, *condition))

        m = layer.mlp(x)
        if f"{index}_mlp" in self.token_adapters:
            m = m + PARALLEL_SCALE * self._correction(f"{index}_mlp", x)
        x = layer.norm3(x + m)

        if self.reference and ignored is None:
            a = _full_attention(to_tokens, query, x + points, x)
        else:
            query = to_tokens.q_proj(query) if self.reference else query
            a = _image_to_token(to_tokens, query, x + points, x, ignored)
        if self.image_slot == "i2t":
            a = self._adapt_image(index, a, grid)
        keys = keys + a
        if self.image_slot == "i2t_post":
            keys = self._adapt_image(index, keys, grid)
        return x, layer.norm4(keys)

    def _final(self, x: Tensor, points: Tensor, keys: Tensor, pe: Positions, head: int) -> Tensor:
        """The last token-to-image attention, for the first `head` tokens and the class token."""
        if self.class_head is None:
            x, points = x[..., :head, :], points[..., :head, :]
        else:
            x, points = (torch.cat([t[..., :head, :], t[..., -1:, :]], dim=-2) for t in (x, points))
        transformer = self.sam.transformer
        attention = transformer.final_attn_token_to_image
        if self.reference:
            a = _full_attention(attention, x + points, keys + pe.whole(), keys)
        else:
            a = _token_to_image(attention, x + points, *_project(keys, pe, attention.k_proj, attention.v_proj))
        return transformer.norm_final_attn(x + self._adapt("final", a))

    def _adapt(self, name: str, a: Tensor, condition: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        return a + self._correction(name, a, condition, known) if name in self.token_adapters else a

    def _correction(self, name: str, x: Tensor, condition: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        if condition is None or known is None:
            return self.token_adapters[name](x.flatten(0, 1)).view_as(x)
        return self.token_adapters[name](x.flatten(0, 1), condition.flatten(0, 1), known.flatten(0, 1)).view_as(x)

    def _adapt_image(self, index: int, a: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add the image adapter's correction to a (B, q, D, n, 256), reshaped to (B * q, D, g_h, g_w, 256)."""
        if str(index) not in self.image_adapters:
            return a
        return a + self.image_adapters[str(index)](a.flatten(0, 1).unflatten(2, grid)).reshape(a.shape)

    def _masks(self, keys: Tensor, hyper: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mask logits (B, q, D, m, 4g_h, 4g_w) of keys (B, q, D, n, 256) and hyper (B, q, D, m, 32).

        Both transposed convolutions have stride = kernel = 2, so each is one matrix product per token. Pixels are
        rearranged after the channels have been summed.
        """
        layers = self.sam.output_upscaling
        norm = layers[1]
        y = _upscale(layers[0], keys)
        y = layers[2](F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias, norm.eps))
        y = layers[4](_upscale(layers[3], y)).flatten(3, -2)
        masks = (y @ hyper.to(y.dtype).transpose(-1, -2)).unflatten(3, (*grid, 2, 2, 2, 2))
        # (B, q, D, h, w, row, column, fine row, fine column, m)
        return masks.permute(0, 1, 2, 9, 3, 5, 7, 4, 6, 8).flatten(7, 9).flatten(4, 6)

    def _masks_as_sam(self, keys: Tensor, hyper: Tensor, grid: tuple[int, int]) -> Tensor:
        """`_masks` with SAM's own modules."""
        y = self.sam.output_upscaling(keys.flatten(0, 2).transpose(1, 2).unflatten(2, grid))
        masks = hyper.flatten(0, 2) @ y.flatten(2)
        return masks.unflatten(2, y.shape[2:]).unflatten(0, keys.shape[:3])


def _full_attention(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Call SAM's attention module with inputs (B, 1 or Q, D, tokens, 256)."""
    shape = torch.broadcast_shapes(q.shape[:3], k.shape[:3])
    q, k, v = (t.expand(*shape, -1, -1).flatten(0, 2) for t in (q, k, v))
    return attention(q=q, k=k, v=v).unflatten(0, shape)


def _project(keys: Tensor, pe: Positions, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Project image tokens for several attentions at once: k of keys + pe, v of keys, q of keys + pe.

    `layers` are the k, v and optionally q projections. The positions are projected separately, once for all prompts:
    W(keys + pe) = W keys + W pe.
    """
    split = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight for layer in layers])
    placed = pe.through(layers[0])
    plain = layers[1].bias.expand(*placed.shape[:-1], -1)
    offset = torch.cat([placed, plain, *(pe.through(layer) for layer in layers[2:])], dim=-1)
    y = F.linear(keys, weight)
    return (y + offset.to(y.dtype)).split(split, dim=-1)


def _token_to_image(attention: Attention, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Tokens x (B, q, D, T, 256) attend to projected image tokens (B, 1 or q, D, n, 128)."""
    query = attention.q_proj(x)
    shape = query.shape
    if key.shape[1] == 1:
        # All prompts of a slice attend to the same tokens: they form one longer query.
        query = query.transpose(1, 2).flatten(2, 3)
        y = _attend(query.flatten(0, 1), key.flatten(0, 2), value.flatten(0, 2), attention.num_heads)
        y = y.view(shape[0], shape[2], shape[1], *shape[3:]).transpose(1, 2)
    else:
        y = _attend(query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2), attention.num_heads).view(shape)
    return attention.out_proj(y)


def _image_to_token(
    attention: Attention, query: Tensor, placed: Tensor, x: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """Projected image tokens (B, 1 or q, D, n, 128) attend to tokens (B, q, D, T, 256) that are not ignored."""
    key, value = attention.k_proj(placed), attention.v_proj(x)
    query = query.expand(*key.shape[:3], -1, -1)
    y = _attend(query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2), attention.num_heads, ignored)
    return attention.out_proj(y).unflatten(0, key.shape[:3])


def _self_attention(attention: Attention, placed: Tensor, x: Tensor, ignored: Tensor) -> Tensor:
    """Tokens (B, q, D, T, 256) attend to those among them that are not ignored, (B, q, D, T) bool."""
    query, key, value = attention.q_proj(placed), attention.k_proj(placed), attention.v_proj(x)
    y = _attend(query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2), attention.num_heads, ignored)
    return attention.out_proj(y).unflatten(0, x.shape[:3])


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, ignored: Tensor | None = None) -> Tensor:
    """Multi-head attention of q (G, L, E) to k and v (G, S, E); `ignored` (..., S) bool has G rows."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    allowed = None if ignored is None else ~ignored.flatten(0, -2)[:, None, None]
    return attend(q, k, v, mask=allowed).transpose(1, 2).flatten(2)


def _upscale(convolution: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply a 2x2 transposed convolution of stride 2 to (..., C): (..., 4, C'), rows before columns."""
    weight = convolution.weight.permute(2, 3, 1, 0)
    bias = None if convolution.bias is None else convolution.bias.repeat(4)
    y = F.linear(x, weight.flatten(0, 2), bias)
    return y.unflatten(-1, (4, -1))


def _token_adapters(cfg: ModelConfig) -> dict[str, nn.Module]:
    tokens = cfg.dec_tokens
    if tokens.kind == "none":
        return {}
    names = [f"{index}_{slot}" for index in range(LAYERS) for slot in tokens.slots if slot != "final"]
    names += ["final"] if "final" in tokens.slots else []
    return {name: _token_adapter(cfg, name) for name in names}


def _token_adapter(cfg: ModelConfig, name: str) -> nn.Module:
    tokens, depth = cfg.dec_tokens, cfg.patch[0]
    if name.endswith("_t2i") and tokens.condition.mode != "none":
        return ConditionedAdapter(
            EMBED_DIM,
            kind=tokens.kind,
            depth=depth,
            condition=tokens.condition.mode,
            ratio=tokens.ratio,
            act=tokens.act,
        )
    return Adapter(
        EMBED_DIM, kind=tokens.kind, depth=depth, ratio=tokens.ratio, position=tokens.depth_position, act=tokens.act
    )


def _image_adapters(cfg: ModelConfig) -> dict[str, nn.Module]:
    image = cfg.dec_image
    if image.kind == "none":
        return {}
    return {
        str(index): Adapter(
            EMBED_DIM,
            kind=image.kind,
            depth=cfg.patch[0],
            ratio=image.ratio,
            position=image.depth_position,
            act=image.act,
        )
        for index in range(LAYERS)
    }


def _depth_positions(cfg: ModelConfig) -> nn.Parameter | None:
    if cfg.depth.pe_decoder == "none":
        return None
    shape = (cfg.patch[0], EMBED_DIM)
    return nn.Parameter(torch.zeros(*shape, *(cfg.grid if cfg.depth.pe_decoder == "full" else ())))
