"""Prompts of any source, put into the words of SAM's own prompt encoder (model.md §1, §2.4, §6.7, §7.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from MaskSAMCore.config.schema import MASK_STRIDE, TOKEN_STRIDE, ModelConfig
from MaskSAMCore.errors import PromptError
from MaskSAMCore.network.types import PromptBatch, PromptTokens

CANVAS_PIXELS = 1024
CANVAS_TOKENS = CANVAS_PIXELS // TOKEN_STRIDE
EMBED_DIM = 256


class PromptTokenizer(nn.Module):
    """SAM's frozen prompt encoder (`.sam`) behind `PromptBatch`.

    Coordinates are continuous fractions of the patch: the centre of voxel i of W lies at
    (i + 0.5) / W, and a box whose columns span a..b is (a / W, (b + 1) / W). With `pos_mode="crop"`
    the patch is the top-left part of SAM's canvas of 1024 pixels, with `"interpolate"` it fills it
    (model.md §3.1).

    Args:
        cfg: `backbone.pos_mode`, and D where the slice offsets are learned; any grid is accepted at call time.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        from segment_anything.modeling import PromptEncoder

        self.crop = cfg.backbone.pos_mode == "crop"
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

        Tokens stand in SAM's order: points, then the box's two corners; without a box one padding
        point follows the points, as SAM was trained. A prompt that is not `valid` becomes SAM's own
        "not a point" and "no mask" embeddings whatever it holds, and passes no gradient. Points
        labelled -1, and corners of boxes that are not known, fill up and are `ignored`.

        Args:
            p: The prompts; at least one field besides `valid`.
            grid: (g_h, g_w) tokens of the image embedding.

        Raises:
            PromptError: There is no prompt, points lack labels, or masks have another size than (4g_h, 4g_w).
        """
        batch = _leading_shape(p)
        count = batch[0] * batch[1] * batch[2]
        valid = None if p.valid is None else p.valid.reshape(count)
        weight = self.sam.no_mask_embed.weight
        none = torch.zeros(count, 0, dtype=torch.bool, device=weight.device)
        sparse, speaks, fills = [weight.new_zeros(count, 0, EMBED_DIM)], [none], [none]
        if p.points is not None:
            if p.labels is None:
                raise PromptError("points came without labels", remedy="Give 1, 0 or -1 for every point.")
            points, labels = p.points.flatten(0, 2), p.labels.flatten(0, 2)
            sparse.append(self._points(points, labels, valid, grid, pad=p.boxes is None))
            # The padding point behind points without a box is SAM's own, and attended to.
            own = (0, 1) if p.boxes is None else (0, 0)
            speaks.append(nn.functional.pad(labels >= 0, own))
            fills.append(nn.functional.pad(labels < 0, own))
        if p.boxes is not None:
            known = none.new_ones(count) if p.boxes_known is None else p.boxes_known.reshape(count)
            sparse.append(self._boxes(p.boxes.flatten(0, 2), _both(valid, p.boxes_known), grid))
            speaks.append(known[:, None].expand(-1, 2))
            # Without its box a prompt keeps the first corner, as the padding point that SAM expects there.
            fills.append(torch.stack([torch.zeros_like(known), ~known], dim=1))
        tokens = PromptTokens(
            sparse=torch.cat(sparse, dim=1),
            dense=self._masks(p.masks, _both(valid, p.masks_known), grid),
            cls=None if p.class_tokens is None else _keep(p.class_tokens.flatten(0, 2), valid),
            queries=batch[1],
        )
        spoken, filled = (torch.cat(each, dim=1) for each in (speaks, fills))
        if valid is not None:
            spoken, filled = spoken & valid[:, None], filled & valid[:, None]
        if self.offsets is not None and p.offsets is not None:
            offset = self.offsets[p.offsets.reshape(count).clamp(-self.reach, self.reach) + self.reach]
            tokens.sparse = tokens.sparse + offset[:, None] * spoken[..., None]
        tokens.condition, tokens.conditioned = _condition(tokens.sparse, spoken)
        # Asking a GPU costs time, and automatic prompts never fill up.
        doubtful = not p.complete and (p.points is not None or p.boxes_known is not None)
        if doubtful and bool(filled.any()):
            tokens.ignored = filled
        return tokens

    def dense_pe(self, grid: tuple[int, int]) -> Tensor:
        """(1, 256, g_h, g_w) positional encoding of the image tokens."""
        weight = self.sam.no_mask_embed.weight
        rows, columns = (torch.arange(size, device=weight.device, dtype=torch.float32) + 0.5 for size in grid)
        centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return self._positions(centres, (CANVAS_TOKENS, CANVAS_TOKENS) if self.crop else grid).movedim(-1, 0)[None]

    def _positions(self, coordinates: Tensor, extent: tuple[int, int]) -> Tensor:
        # In half precision a coordinate would be off by several pixels.
        with torch.autocast(coordinates.device.type, enabled=False):
            return self.sam.pe_layer.forward_with_coords(coordinates.float(), extent)

    def _pixels(self, grid: tuple[int, int], like: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(width, height) of the encoder's input in pixels, and the (height, width) it is divided by."""
        height, width = grid[0] * TOKEN_STRIDE, grid[1] * TOKEN_STRIDE
        extent = (CANVAS_PIXELS, CANVAS_PIXELS) if self.crop else (height, width)
        return torch.tensor([width, height], device=like.device, dtype=torch.float32), extent

    def _points(
        self, points: Tensor, labels: Tensor, valid: Tensor | None, grid: tuple[int, int], *, pad: bool
    ) -> Tensor:
        """points (G, P, 2), labels (G, P) to (G, P or P + 1, 256)."""
        if valid is not None:
            labels = torch.where(valid[:, None], labels, -1)
        if pad:
            points = nn.functional.pad(points, (0, 0, 0, 1))
            labels = nn.functional.pad(labels, (0, 1), value=-1)
        size, extent = self._pixels(grid, points)
        known = (labels >= 0)[..., None]
        code = self._positions(torch.where(known, points, 0.0) * size, extent)
        sam = self.sam
        kinds = torch.cat(
            [sam.not_a_point_embed.weight, sam.point_embeddings[0].weight, sam.point_embeddings[1].weight]
        )
        return code * known + kinds[labels.long() + 1]

    def _boxes(self, boxes: Tensor, valid: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """boxes (G, 4) to (G, 2, 256); the half-open box becomes the centres of its corner pixels."""
        size, extent = self._pixels(grid, boxes)
        corners = _keep(boxes, valid).unflatten(-1, (2, 2)) * size
        corners = corners + corners.new_tensor([[0.5], [-0.5]])
        kinds = torch.cat([self.sam.point_embeddings[2].weight, self.sam.point_embeddings[3].weight])
        tokens = self._positions(corners, extent) + kinds
        return tokens if valid is None else torch.where(valid[:, None, None], tokens, self.sam.not_a_point_embed.weight)

    def _masks(self, masks: Tensor | None, valid: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """masks (B, Q, D, 4g_h, 4g_w) to (G, 256, g_h, g_w); no masks give (1, 256, 1, 1)."""
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
    """(G,) bool of what is valid and known; None for all."""
    if known is None:
        return valid
    return known.reshape(-1) if valid is None else known.reshape(-1) & valid


def _condition(sparse: Tensor, speaks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum of the tokens that say something, in any order and number: (G, 512), (G,) bool."""
    conditioned = speaks.any(1)
    if not sparse.shape[1]:
        return sparse.new_zeros(len(sparse), 2 * EMBED_DIM), conditioned
    kept = speaks[..., None]
    mean = (sparse * kept).sum(1) / speaks.sum(1).clamp(min=1)[:, None]
    most = sparse.masked_fill(~kept, -torch.inf).amax(1)
    return torch.cat([mean, torch.where(conditioned[:, None], most, 0.0)], dim=-1), conditioned


def _keep(x: Tensor, valid: Tensor | None) -> Tensor:
    """x (G, ...) with zeros where not valid; NaN or infinity there neither passes nor flows back."""
    if valid is None:
        return x
    return torch.where(valid.reshape(-1, *[1] * (x.dim() - 1)), x, torch.zeros((), dtype=x.dtype, device=x.device))
