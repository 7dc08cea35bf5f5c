"""Embeds prompts with SAM's prompt encoder (model.md §1, §2.4, §6.7, §7.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config.network_schema import MASK_STRIDE, TOKEN_STRIDE, ModelConfig
from MaskSAMCore.errors import PromptError
from MaskSAMCore.network.types import PromptBatch, PromptTokens

CANVAS_PIXELS = 1024
CANVAS_TOKENS = CANVAS_PIXELS // TOKEN_STRIDE
EMBED_DIM = 256


class PromptTokenizer(nn.Module):
    """SAM's frozen prompt encoder (`.sam`) for a `PromptBatch`.

    Coordinates are fractions of the patch: the centre of voxel i of W lies at (i + 0.5) / W, and a box over the
    columns a to b spans (a / W, (b + 1) / W). The patch is the top-left part of SAM's canvas of 1024 pixels
    (model.md §3.1).

    Args:
        cfg: Whether slice offsets are learned, and D. The token grid is given to `forward`.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        from segment_anything.modeling import PromptEncoder

        self.sam = PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(CANVAS_TOKENS, CANVAS_TOKENS),
            input_image_size=(CANVAS_PIXELS, CANVAS_PIXELS),
            mask_in_chans=16,
        ).requires_grad_(False)
        self.reach = cfg.patch[0] - 1
        self.offsets = nn.Parameter(torch.zeros(2 * self.reach + 1, EMBED_DIM)) if cfg.decoder.slice_offsets else None

    def forward(self, p: PromptBatch, grid: tuple[int, int]) -> PromptTokens:
        """Embed the prompts of every slice.

        Tokens are in SAM's order: points, then the two corners of the box; without boxes one padding point follows
        the points, as SAM was trained. A prompt that is not `valid` gets SAM's "not a point" and "no mask" embeddings
        and no gradient. Points labelled -1 and corners of unknown boxes are padding, and `ignored`.

        Args:
            p: The prompts; at least one of points, boxes, masks and class tokens.
            grid: (g_h, g_w) tokens of the image embedding.

        Raises:
            PromptError: There is no prompt, points have no labels, or masks are not of size (4g_h, 4g_w).
        """
        batch = _leading_shape(p)
        count = batch[0] * batch[1] * batch[2]
        valid = None if p.valid is None else p.valid.reshape(count)
        weight = self.sam.no_mask_embed.weight
        none = torch.zeros(count, 0, dtype=torch.bool, device=weight.device)
        sparse, informative, padding = [weight.new_zeros(count, 0, EMBED_DIM)], [none], [none]
        if p.points is not None:
            if p.labels is None:
                raise PromptError("points were given without labels", remedy="Give 1, 0 or -1 for every point.")
            points, labels = p.points.flatten(0, 2), p.labels.flatten(0, 2)
            sparse.append(self._points(points, labels, valid, grid, pad=p.boxes is None))
            # The padding point that SAM adds when there is no box is attended to.
            own = (0, 1) if p.boxes is None else (0, 0)
            informative.append(nn.functional.pad(labels >= 0, own))
            padding.append(nn.functional.pad(labels < 0, own))
        if p.boxes is not None:
            known = none.new_ones(count) if p.boxes_known is None else p.boxes_known.reshape(count)
            sparse.append(self._boxes(p.boxes.flatten(0, 2), _both(valid, p.boxes_known), grid))
            informative.append(known[:, None].expand(-1, 2))
            # A prompt without a box keeps the first corner, as the padding point that SAM expects.
            padding.append(torch.stack([torch.zeros_like(known), ~known], dim=1))
        tokens = PromptTokens(
            sparse=torch.cat(sparse, dim=1),
            dense=self._masks(p.masks, _both(valid, p.masks_known), grid),
            cls=None if p.class_tokens is None else _keep(p.class_tokens.flatten(0, 2), valid),
            queries=batch[1],
        )
        known_tokens, padded = (torch.cat(each, dim=1) for each in (informative, padding))
        if valid is not None:
            known_tokens, padded = known_tokens & valid[:, None], padded & valid[:, None]
        if self.offsets is not None and p.offsets is not None:
            offset = self.offsets[p.offsets.reshape(count).clamp(-self.reach, self.reach) + self.reach]
            tokens.sparse = tokens.sparse + offset[:, None] * known_tokens[..., None]
        tokens.condition, tokens.conditioned = _condition(tokens.sparse, known_tokens)
        # `any` waits for the GPU, and automatic prompts have no padding.
        may_pad = not p.complete and (p.points is not None or p.boxes_known is not None)
        if may_pad and bool(padded.any()):
            tokens.ignored = padded
        return tokens

    def dense_pe(self, grid: tuple[int, int]) -> Tensor:
        """Positional encoding (1, 256, g_h, g_w) of the image tokens."""
        weight = self.sam.no_mask_embed.weight
        rows, columns = (torch.arange(size, device=weight.device, dtype=torch.float32) + 0.5 for size in grid)
        centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return self._positions(centres, CANVAS_TOKENS).movedim(-1, 0)[None]

    def _positions(self, coordinates: Tensor, canvas: int = CANVAS_PIXELS) -> Tensor:
        """Encode coordinates (..., 2), x before y, on a square canvas."""
        # In half precision a coordinate would be off by several pixels.
        with torch.autocast(coordinates.device.type, enabled=False):
            return self.sam.pe_layer.forward_with_coords(coordinates.float(), (canvas, canvas))

    def _pixels(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """(width, height) of the encoder's input in pixels."""
        height, width = grid[0] * TOKEN_STRIDE, grid[1] * TOKEN_STRIDE
        return torch.tensor([width, height], device=like.device, dtype=torch.float32)

    def _points(
        self, points: Tensor, labels: Tensor, valid: Tensor | None, grid: tuple[int, int], *, pad: bool
    ) -> Tensor:
        """Embed points (G, P, 2) with labels (G, P) as (G, P or P + 1, 256)."""
        if valid is not None:
            labels = torch.where(valid[:, None], labels, -1)
        if pad:
            points = nn.functional.pad(points, (0, 0, 0, 1))
            labels = nn.functional.pad(labels, (0, 1), value=-1)
        size = self._pixels(grid, points)
        known = (labels >= 0)[..., None]
        code = self._positions(torch.where(known, points, 0.0) * size)
        sam = self.sam
        kinds = torch.cat(
            [sam.not_a_point_embed.weight, sam.point_embeddings[0].weight, sam.point_embeddings[1].weight]
        )
        return code * known + kinds[labels.long() + 1]

    def _boxes(self, boxes: Tensor, valid: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Embed boxes (G, 4) as (G, 2, 256), through the centres of their corner pixels."""
        size = self._pixels(grid, boxes)
        corners = _keep(boxes, valid).unflatten(-1, (2, 2)) * size
        corners = corners + corners.new_tensor([[0.5], [-0.5]])
        kinds = torch.cat([self.sam.point_embeddings[2].weight, self.sam.point_embeddings[3].weight])
        tokens = self._positions(corners) + kinds
        return tokens if valid is None else torch.where(valid[:, None, None], tokens, self.sam.not_a_point_embed.weight)

    def _masks(self, masks: Tensor | None, valid: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """Embed masks (B, Q, D, 4g_h, 4g_w) as (G, 256, g_h, g_w); (1, 256, 1, 1) if there are none."""
        nothing = self.sam.no_mask_embed.weight.reshape(1, EMBED_DIM, 1, 1)
        if masks is None:
            return nothing
        expected = (MASK_STRIDE * grid[0], MASK_STRIDE * grid[1])
        if tuple(masks.shape[-2:]) != expected:
            raise PromptError(
                "mask prompt has the wrong size",
                where="masks",
                why=f"{tuple(masks.shape[-2:])} instead of {expected}",
                remedy="Resize it to four times the token grid.",
            )
        *layers, last = self.sam.mask_downscaling
        x = _keep(masks.flatten(0, 2), valid)[:, None]
        for layer in layers:
            x = layer(x)
        # The decoder reads tokens: with channels last in memory they need no copy there.
        dense = last(x.contiguous(memory_format=torch.channels_last))
        return dense if valid is None else torch.where(valid[:, None, None, None], dense, nothing.to(dense.dtype))


def _leading_shape(p: PromptBatch) -> tuple[int, int, int]:
    """(B, Q, D) of the first prompt that is present."""
    for value in (p.points, p.boxes, p.masks, p.class_tokens):
        if value is not None:
            return value.shape[0], value.shape[1], value.shape[2]
    raise PromptError("no prompt was given", remedy="Give a point, a box, a mask or a class token.")


def _both(valid: Tensor | None, known: Tensor | None) -> Tensor | None:
    """(G,) bool, which prompts are both valid and known; None means all."""
    if known is None:
        return valid
    return known.reshape(-1) if valid is None else known.reshape(-1) & valid


def _condition(sparse: Tensor, informative: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum (G, 512) of the tokens that are not padding, and (G,) bool, whether there are any."""
    conditioned = informative.any(1)
    if not sparse.shape[1]:
        return sparse.new_zeros(len(sparse), 2 * EMBED_DIM), conditioned
    kept = informative[..., None]
    mean = (sparse * kept).sum(1) / informative.sum(1).clamp(min=1)[:, None]
    most = sparse.masked_fill(~kept, -torch.inf).amax(1)
    return torch.cat([mean, torch.where(conditioned[:, None], most, 0.0)], dim=-1), conditioned


def _keep(x: Tensor, valid: Tensor | None) -> Tensor:
    """x (G, ...) with zeros where not valid; NaN and infinity there reach neither the result nor the gradient."""
    if valid is None:
        return x
    return torch.where(valid.reshape(-1, *[1] * (x.dim() - 1)), x, torch.zeros((), dtype=x.dtype, device=x.device))
