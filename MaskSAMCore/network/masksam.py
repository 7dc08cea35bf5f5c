"""MaskSAM: a frozen SAM with 3-D adapters and a generator of automatic prompts (model.md §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.backbone import build_encoder
from MaskSAMCore.network.click_head import ClickHead
from MaskSAMCore.network.decoder import SamDecoder
from MaskSAMCore.network.heads import (
    FineMaskHead,
    MaskBlend,
    MaskUpsampler,
    MultiClassHead,
    argmax_head,
    resize_masks,
    semantic,
)
from MaskSAMCore.network.prompt_source import PromptSource
from MaskSAMCore.network.prompts import PromptTokenizer
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.network.sources import build_source
from MaskSAMCore.network.stem import ModalityStem
from MaskSAMCore.network.types import Decoded, Features, PromptBatch, Prompted, PromptTokens, QueryOutputs, Slab

CHUNK = 8


class MaskSAM(Segmenter):
    """The whole network; built by `network.build.build_model`, which also freezes SAM.

    Attributes:
        decodes: Whether automatic mode runs SAM's decoder, or ends with the generator's class logits; see
            `set_decoder`.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg)
        self.stem = ModalityStem(cfg)
        self.encoder = build_encoder(cfg)
        self.prompts = PromptTokenizer(cfg)
        self.decoder = SamDecoder(cfg)
        self.generator = build_source(cfg, self.encoder.levels)
        self.decodes = cfg.decoder.kind == "sam"
        self.upsampler = MaskUpsampler(cfg.source.queries) if cfg.decoder.upsampler else None
        self.multiclass = MultiClassHead(cfg.classes) if cfg.head == "multiclass" else None
        self.blend = MaskBlend() if cfg.decoder.mask_residual else None
        trunk = None if self.generator is None else self.generator.trunk
        width = 0 if trunk is None else trunk.channels[-1]
        self.fine = FineMaskHead(width) if cfg.decoder.fine_masks and width else None
        self.clicks = None
        if cfg.decoder.click_maps and width:
            self.clicks = ClickHead(width, in_plane=cfg.source.in_plane > 0, recalls=cfg.decoder.click_masks)

    @property
    def reads_trunk(self) -> bool:
        """Whether decoding a prompt uses the trunk's features, beside SAM's embedding."""
        return self.fine is not None or self.clicks is not None

    def set_adapters(self, enabled: bool) -> None:
        """Switch the encoder's adapters and depth positions on or off; without them the encoder is SAM's own."""
        self.encoder.set_adapters(enabled)

    def set_checkpointing(self, enabled: bool) -> None:
        """Switch gradient checkpointing of encoder and decoder on or off."""
        self.encoder.checkpointing = self.decoder.checkpointing = enabled

    def encode(self, image: Tensor) -> Features:
        """Features of an image (B, M, D, H, W), normalised as in preprocessing."""
        return self.encoder(self.stem(image))

    def encode_frozen(self, image: Tensor) -> Features:
        """Features of an image (B, M, D, H, W) from SAM's own encoder, without adapters (model.md §14.4)."""
        return self.encoder.frozen_features(self.stem.frozen(image))

    def set_decoder(self, on: bool) -> None:
        """Switch the mask decoder of automatic mode on or off (model.md §9.4); a user's prompts are always decoded."""
        self.decodes = on and self.cfg.decoder.kind == "sam"

    def _no_generator(self) -> ModelError:
        return ModelError(
            "this model has no prompt generator",
            where=f"model.source.kind={self.cfg.source.kind}",
            remedy="It takes clicks and boxes only: give it prompts, or use a model for automatic segmentation.",
        )

    def generator_logits(self, features: Features, image: Tensor) -> tuple[Tensor, ...]:
        """Logits of the prompt generator, without the decoder; its first training steps use only these.

        Returns:
            (B, N or K, D, h_i, w_i) of every supervised stage, the last at the size of the patch.

        Raises:
            ModelError: The model has no generator, or its generator makes no masks.
        """
        found = () if self.generator is None else self.generator.logits(self.generator.stages(features, image))
        if not found:
            raise self._no_generator()
        return found

    def tokenize(self, prompts: PromptBatch, grid: tuple[int, int]) -> PromptTokens:
        """Embed prompts as SAM's prompt encoder does; `grid` is (g_h, g_w)."""
        return self.prompts(prompts, grid)

    def decode(
        self, features: Features, tokens: PromptTokens, *, multimask: bool = False, chunk: int | None = None
    ) -> Decoded:
        """Masks of every prompt in every slice; see `SamDecoder.forward`."""
        dense_pe = self.prompts.dense_pe(features.grid)
        return self.decoder(features, tokens, dense_pe, multimask=multimask, chunk=chunk)

    def slab(self, image: Tensor, features: Features | None = None) -> Slab:
        """Encode a patch once for all its prompts (model.md §2.5).

        Args:
            image: (B, M, D, H, W), normalised as in preprocessing.
            features: Output of the encoder for `image`, if it was computed before.
        """
        features = self.encode(image) if features is None else features
        if self.generator is None or not self.reads_trunk:
            return Slab(embed=features.embed)
        return Slab(embed=features.embed, fine=self.generator.stages(features, image)[-1])

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        """Masks of a user's prompts in every slice of an encoded patch; `multimask` returns three candidates each."""
        features = Features(levels=(), embed=slab.embed)
        tokens = self.tokenize(prompts, slab.grid)
        decoded = self.decode(features, tokens, multimask=multimask, chunk=self._chunk())
        masks = decoded.mask
        size = self.cfg.patch[1:] if slab.fine is None else tuple(slab.fine.shape[-2:])
        if tuple(masks.shape[-2:]) != size:
            flat = resize_masks(masks.flatten(1, 3)[:, :, None], (size[0], size[1]))
            masks = flat[:, :, 0].unflatten(1, masks.shape[1:4])
        if self.fine is not None and slab.fine is not None:
            masks = masks + self.fine(decoded.tokens, slab.fine)
        if self.clicks is not None and slab.fine is not None:
            own = self.generator.logits([slab.fine])[-1] if self.cfg.decoder.click_masks and self.generator else None
            masks = self.clicks(masks, slab.fine, prompts, own)
        return Prompted(masks=masks, quality=decoded.quality, cls=decoded.cls)

    def forward(self, image: Tensor, features: Features | None = None, labels: Tensor | None = None) -> QueryOutputs:
        """One training pass in automatic mode.

        Args:
            image: (B, M, D, H, W).
            features: Output of the encoder for `image`, if it was computed before.
            labels: (B, D, H, W) classes, for a prompt source that needs them.

        Returns:
            Masks at the size of the patch, class logits, and the generator's outputs.

        Raises:
            ModelError: The model has no generator.
        """
        if self.generator is None:
            raise self._no_generator()
        features = self.encode(image) if features is None else features
        return self._automatic(self.generator, features, self.generator.stages(features, image), image, labels)

    def _automatic(
        self,
        generator: PromptSource,
        features: Features,
        stages: list[Tensor],
        image: Tensor,
        labels: Tensor | None = None,
    ) -> QueryOutputs:
        if not self.decodes:
            logits = generator.logits(stages)
            return QueryOutputs(masks=logits[-1], cls=None, stages=logits)
        own = generator(features, stages, labels)
        decoded = self.decode(features, self.tokenize(own.prompts, features.grid), chunk=self._chunk())
        masks = self._to_patch(decoded.mask[:, :, :, 0], image.shape[-2:])
        if self.blend is not None and own.masks is not None:
            masks = self.blend(own.masks, masks)
        if self.multiclass is not None:
            masks = self.multiclass(masks)
        return QueryOutputs(
            masks=masks,
            cls=decoded.cls,
            aux_masks=own.masks,
            aux_boxes=own.boxes,
            fused_boxes=own.fused_boxes,
            valid=own.prompts.valid,
            stages=own.stages,
        )

    def _chunk(self) -> int | None:
        """Number of prompts decoded at once; None for all, in training without checkpointing."""
        return None if self.training and not self.decoder.checkpointing else CHUNK

    def _to_patch(self, masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        if self.upsampler is not None:
            return self.upsampler(masks)
        return resize_masks(masks, (size[0], size[1]))

    def scores(self, outputs: QueryOutputs) -> Tensor:
        """Class scores (B, K, D, H, W) in [0, 1] from the output of `forward` (model.md §8)."""
        if self.cfg.head == "argmax":
            return argmax_head(outputs.masks, outputs.valid)
        if self.cfg.head in ("softmax", "multiclass") or not self.decodes:
            return outputs.masks.float().softmax(1)
        if outputs.cls is None:
            raise ModelError("the semantic head needs class logits", where="model.decoder.class_head")
        return semantic(outputs.cls, outputs.masks)

    def segment_slab(self, image: Tensor) -> tuple[Tensor, Slab]:
        """`segment_patch` and `slab` of the same patch, with one run of the encoder."""
        if self.generator is None:
            raise self._no_generator()
        features = self.encode(image)
        stages = self.generator.stages(features, image)
        outputs = self._automatic(self.generator, features, stages, image)
        return self.scores(outputs), Slab(embed=features.embed, fine=stages[-1] if self.reads_trunk else None)
