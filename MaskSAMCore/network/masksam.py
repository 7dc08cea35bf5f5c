"""MaskSAM: a frozen SAM with 3-D adapters, fed by a generator of its own prompts (model.md §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from MaskSAMCore.config.schema import ModelConfig
from MaskSAMCore.errors import ModelError
from MaskSAMCore.network.backbone import build_encoder
from MaskSAMCore.network.click_head import ClickHead
from MaskSAMCore.network.decoder import SamDecoder
from MaskSAMCore.network.heads import (
    FineMasks,
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
    """The whole network; build it with `network.build.build_model`, which also freezes SAM.

    Attributes:
        decodes: Whether automatic mode goes on to SAM's decoder, or ends with the class logits of the prompts' source;
            see `set_decoder`.
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
        self.fine = FineMasks(width) if cfg.decoder.fine_masks and width else None
        self.clicks = None
        if cfg.decoder.click_maps and width:
            self.clicks = ClickHead(width, in_plane=cfg.source.in_plane > 0, recalls=cfg.decoder.click_masks)

    @property
    def reads_trunk(self) -> bool:
        """Whether prompts read the trunk's features, beside SAM's."""
        return self.fine is not None or self.clicks is not None

    def set_adapters(self, enabled: bool) -> None:
        """Switch the encoder's adapters and depth positions; off, the encoder is SAM itself."""
        self.encoder.set_adapters(enabled)

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks of encoder and decoder in the backward pass."""
        self.encoder.checkpointing = self.decoder.checkpointing = enabled

    def encode(self, image: Tensor) -> Features:
        """image (B, M, D, H, W), normalised as in preprocessing, to features."""
        return self.encoder(self.stem(image))

    def encode_frozen(self, image: Tensor) -> Features:
        """The features of SAM itself, without adapters: the constant of model.md §14.4."""
        return self.encoder.frozen_features(self.stem.frozen(image))

    def set_decoder(self, on: bool) -> None:
        """Leave the decoder out of automatic mode (`on=False`), as long as it is not trained yet (model.md §9.4).

        Prompts of a user are decoded all the same.
        """
        self.decodes = on and self.cfg.decoder.kind == "sam"

    def _no_generator(self) -> ModelError:
        return ModelError(
            "this model has no prompt generator",
            where=f"model.source.kind={self.cfg.source.kind}",
            remedy="It takes clicks and boxes only: give it prompts, or use a model that makes its own.",
        )

    def own_masks(self, features: Features, image: Tensor) -> tuple[Tensor, ...]:
        """The generator's logits without the decoder: what its first steps are trained on.

        Returns:
            (B, N or K, D, h_i, w_i) of every supervised stage, the last at the patch's own size.

        Raises:
            ModelError: The model has no generator, or one without masks.
        """
        found = () if self.generator is None else self.generator.logits(self.generator.stages(features, image))
        if not found:
            raise self._no_generator()
        return found

    def tokenize(self, prompts: PromptBatch, grid: tuple[int, int]) -> PromptTokens:
        """Prompts of any source in SAM's embedding space."""
        return self.prompts(prompts, grid)

    def decode(
        self, features: Features, tokens: PromptTokens, *, multimask: bool = False, chunk: int | None = None
    ) -> Decoded:
        """Masks of every prompt in every slice; see `SamDecoder`."""
        dense_pe = self.prompts.dense_pe(features.grid)
        return self.decoder(features, tokens, dense_pe, multimask=multimask, chunk=chunk)

    def slab(self, image: Tensor, features: Features | None = None) -> Slab:
        """What prompts read of a patch; the only part of a click's answer that takes the encoder (model.md §2.5).

        Args:
            image: (B, M, D, H, W), normalised as in preprocessing.
            features: Features of the encoder if they are known already; else it is run.
        """
        features = self.encode(image) if features is None else features
        if self.generator is None or not self.reads_trunk:
            return Slab(embed=features.embed)
        return Slab(embed=features.embed, fine=self.generator.stages(features, image)[-1])

    def prompted(self, slab: Slab, prompts: PromptBatch, *, multimask: bool = False) -> Prompted:
        """Masks of a user's prompts in every slice of an encoded patch; see `types.PromptBatch`."""
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
            features: Features of the encoder if they are known already; else it is run.
            labels: (B, D, H, W) classes, for a source that makes its prompts of them.

        Returns:
            Masks at the patch's size, class logits and the generator's own outputs.
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
        """Prompts decoded at once: all in training, unless memory counts more than time."""
        return None if self.training and not self.decoder.checkpointing else CHUNK

    def _to_patch(self, masks: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        if self.upsampler is not None:
            return self.upsampler(masks)
        return resize_masks(masks, (size[0], size[1]))

    def scores(self, outputs: QueryOutputs) -> Tensor:
        """Class scores (B, K, D, H, W) in [0, 1] of a forward pass (model.md §8)."""
        if self.cfg.head == "argmax":
            return argmax_head(outputs.masks, outputs.valid)
        if self.cfg.head in ("softmax", "multiclass") or not self.decodes:
            return outputs.masks.float().softmax(1)
        if outputs.cls is None:
            raise ModelError("the semantic head needs class logits", where="model.decoder.class_head")
        return semantic(outputs.cls, outputs.masks)

    def segment_slab(self, image: Tensor) -> tuple[Tensor, Slab]:
        """As `segment_patch`, and what prompts will read of the same patch."""
        if self.generator is None:
            raise self._no_generator()
        features = self.encode(image)
        stages = self.generator.stages(features, image)
        outputs = self._automatic(self.generator, features, stages, image)
        return self.scores(outputs), Slab(embed=features.embed, fine=stages[-1] if self.reads_trunk else None)
