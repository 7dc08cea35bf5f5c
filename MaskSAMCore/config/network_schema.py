"""Configuration of a network: one frozen dataclass for each of its parts (model.md §15.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

AdapterKind = str
""" "none", or a name in `network.adapters.CORES`."""
SourceKind = str
"""A name in `network.sources.SOURCES`."""
Conditioning = Literal["none", "add", "concat", "hyper"]
DepthBranchKind = Literal["none", "gate", "adapter"]
DepthPosition = Literal["before", "middle", "after"]
Former = Mapping[str, object]
"""Keys that are constants now, with their values. Older files hold them; `config.serialize` accepts no other value."""
PROMPT_MAPS = ("former", "ink", "negative_ink", "region", "negative_region")
"""Channels of the click model behind the image: the former answer's probability, points and scribbles inside and
outside of the structure, and boxes and lassos around it and around what does not belong to it."""
GROWN_MAPS = ("like", "reached", "negative_like", "negative_reached")
"""Channels behind those: what region growing from the prompts finds; see `preprocessing.region_growing`."""
PATCH_FACTS = ("anisotropy", "coarseness", "answered")
"""Numbers that the click model is told of a patch; see `preprocessing.zoom_windows.facts`."""
TOKEN_STRIDE = 16
MASK_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The frozen SAM encoder (model.md §3), or a network without SAM.

    Attributes:
        arch: SAM's encoder, or another network. `mobile` is MobileSAM, `tiny` a test network with random weights,
            `swin_unetr` MONAI's SwinUNETR, all of which is trained (model.md §11), `click_unet` a 3-D U-Net for clicks
            on any structure, without SAM.
        width: Feature size of a `swin_unetr`.
        attention: Where the encoder's tokens look. `sam`: within the slice; `window3d`: in cubes of 8x8x8 tokens of
            the scan, shifted in every other block (model.md §10); `sam2d`: the network of `window3d` with SAM's own
            windows, slice by slice, for comparison.
        attention_kernel: Implementation of attention. `reference` is the slow one that the fast one is tested against.
    """

    arch: Literal["vit_b", "vit_l", "vit_h", "mobile", "tiny", "swin_unetr", "click_unet"] = "vit_b"
    width: int = 24
    attention: Literal["sam", "window3d", "sam2d"] = "sam"
    attention_kernel: Literal["fast", "reference"] = "fast"
    FORMER: ClassVar[Former] = {"pos_mode": "crop", "rel_pos_resize": "slice"}


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    """From M modalities to SAM's three channels (model.md §5.1).

    Attributes:
        kind: How the channels are mixed. `conv`: the papers' convolutions behind the enlargement; `lean`: before it, at
            a sixteenth of the cost; `repeat`: the mean of the modalities, three times; `none`: colour pictures, whose
            channels are SAM's own.
        upsample: Factor by which slices are enlarged for SAM.
        residual: Add the stem's output to the plain mean of the modalities, starting from zero.
    """

    kind: Literal["conv", "lean", "repeat", "none"] = "conv"
    upsample: Literal[1, 2, 4] = 4
    residual: bool = True


@dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """Learned positions of the slices in a patch (model.md §5.2).

    Attributes:
        pe_encoder: Add a position for each slice to the encoder's tokens.
        pe_decoder: Positions added to the decoder's image tokens. `full`: one for each slice and pixel; `factorised`:
            one for each slice plus one for each pixel.
    """

    pe_encoder: bool = True
    pe_decoder: Literal["full", "factorised", "none"] = "full"


@dataclass(frozen=True, kw_only=True)
class EncoderAdapterConfig:
    """Adapters in the encoder's blocks (model.md §4.3).

    Attributes:
        kind: Type of adapter. One of `none`, `plain`, `depth_mlp`, `depth_conv`, `spatial`.
        slots: Places of the adapters in a block. `pre`, before the block, is the only slot of `window3d`.
        ratio: Width of an adapter's bottleneck as a share of its channels.
        depth_position: Where the depth layer stands in the adapter.
        act: Activation function of the adapters.
        depth_branch: Attention along the slices in each block: Med-SA's SD-Trans (§4.4). `gate`: through a gate that
            starts at zero; `adapter`: through a third adapter, as in the public release.
    """

    kind: AdapterKind = "depth_conv"
    slots: tuple[Literal["attn", "mlp", "pre"], ...] = ("attn", "mlp")
    ratio: float = 0.25
    depth_position: DepthPosition = "middle"
    act: Literal["gelu", "relu"] = "gelu"
    depth_branch: DepthBranchKind = "none"
    FORMER: ClassVar[Former] = {"scale": 0.5}


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """How the `t2i` token adapters take up the prompt: Med-SA's HyP-Adapter and its rivals (model.md §4.5).

    Attributes:
        mode: How a prompt changes the adapters. `hyper` is the HyP-Adapter, `none` leaves plain adapters.
    """

    mode: Conditioning = "none"
    FORMER: ClassVar[Former] = {"width": 32, "layers": 3, "dropout": 0.1}


@dataclass(frozen=True, kw_only=True)
class TokenAdapterConfig:
    """Adapters of the decoder's prompt tokens (model.md §4.3).

    Attributes:
        kind: Type of adapter. One of `none`, `plain`, `depth_mlp`, `depth_conv`.
        slots: Places of the adapters in a decoder layer.
        ratio: Width of an adapter's bottleneck as a share of its channels.
        depth_position: Where the depth layer stands in the adapter.
        act: Activation function of the adapters.
        condition: How the adapters take up the prompt.
    """

    kind: AdapterKind = "depth_mlp"
    slots: tuple[Literal["self", "t2i", "mlp", "final"], ...] = ("self", "t2i", "mlp", "final")
    ratio: float = 0.25
    depth_position: DepthPosition = "middle"
    act: Literal["gelu", "relu"] = "gelu"
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    FORMER: ClassVar[Former] = {"scale": 0.5}


@dataclass(frozen=True, kw_only=True)
class ImageAdapterConfig:
    """Adapters of the decoder's image tokens (model.md §4.3).

    Attributes:
        kind: Type of adapter. One of `none`, `plain`, `depth_mlp`, `depth_conv`.
        slot: Place of the adapter. `i2t`: parallel to the image-to-token attention; `i2t_post`: behind it.
        ratio: Width of an adapter's bottleneck as a share of its channels.
        depth_position: Where the depth layer stands in the adapter.
        act: Activation function of the adapters.
    """

    kind: AdapterKind = "depth_conv"
    slot: Literal["i2t", "i2t_post"] = "i2t"
    ratio: float = 0.25
    depth_position: DepthPosition = "middle"
    act: Literal["gelu", "relu"] = "gelu"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where automatic prompts come from (model.md §6).

    Attributes:
        kind: Source of the prompts. `query`: MaskSAM's generator; `class`: Self-Prompt-SAM's; `gt`: the ground truth;
            `user`: clicks and boxes alone, without a generator (Med-SA); `unet3d`: AutoSAM Adapter's prompt U-Net;
            `maps`: a user's prompts, drawn beside the image (`click_unet`); `none`: no prompts (students).
        trunk: Features that the generator reads. `pyramid`: of all levels of the encoder; `stacked`: the last one.
        widths: Channels of the generator's trunk, from the coarsest size to the finest.
        queries: Number of queries N of the query generator.
        mask: The query generator makes mask prompts.
        box: The query generator learns box prompts.
        fusion: How the learned box and the mask's bounding box become one prompt. `none` gives no box.
        mask_prompt: Form in which the generator's mask is given to the decoder.
        floor_boxes: Round box corners down to whole pixels.
        class_tokens: Give the decoder a learned token for each query's class.
        image_widths: Channels by which the trunk reads the scan itself at its finest, second finest, ... size. Not in
            the papers: a frozen encoder's finest level blurs borders one voxel wide.
        in_plane: Number of the trunk's finest sizes whose convolutions stay within the slices (1x3x3). As nnU-Net plans
            them where slices are much thicker than pixels; not in the papers.
        points: Point prompts of the class generator. `edt`: the innermost pixel of every class, by its Euclidean
            distance transform.
        deep_supervision: Every stage of the class generator's trunk has logits of its own.
        apg_level: Encoder level that AutoSAM Adapter's prompt U-Net reads. `none` leaves the U-Net out.
    """

    kind: SourceKind = "query"
    trunk: Literal["pyramid", "stacked"] = "pyramid"
    widths: tuple[int, ...] = (256, 128, 128)
    queries: int = 8
    mask: bool = True
    box: bool = True
    fusion: Literal["average", "learned", "mask", "none"] = "average"
    mask_prompt: Literal["logits", "binary", "none"] = "logits"
    floor_boxes: bool = False
    class_tokens: bool = True
    image_widths: tuple[int, ...] = ()
    in_plane: int = 0
    points: Literal["none", "edt"] = "none"
    deep_supervision: bool = False
    apg_level: Literal["last", "first", "none"] = "last"
    FORMER: ClassVar[Former] = {"box_grad": "hard"}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """SAM's mask decoder and what is added to it (model.md §7).

    The last five fields are for prompts of a user, and not in the papers.

    Attributes:
        kind: Decoder of automatic mode. `sam`: SAM's; `none`: automatic mode ends with the masks of a generator that
            has one for each class, and the decoder answers clicks and boxes alone; `mla`: AutoSAM Adapter's
            aggregation of all levels.
        fusion_res: Resolution at which `mla` aggregates the levels.
        class_head: Predict the class of each query from its token.
        upsampler: Enlarge the decoder's masks with learned convolutions.
        mask_residual: Add the generator's mask to the decoded one, so that the decoder learns a correction. SAM's
            decoder sees the mask prompt at stride 16 only.
        fine_masks: Each mask token reads the trunk's features at the patch's own size too. A click then knows what
            automatic mode knows.
        click_maps: A small convolutional head corrects the mask at clicks, boxes and the mask before.
        click_masks: Show that head the generator's masks of the structures that are meant. Needs masks that have
            classes.
        slice_offsets: Tell a prompt that was copied to other slices how far it is from its own.
    """

    kind: Literal["sam", "mla", "none"] = "sam"
    fusion_res: Literal["half", "full"] = "half"
    class_head: bool = True
    upsampler: bool = False
    mask_residual: bool = False
    fine_masks: bool = False
    click_maps: bool = False
    click_masks: bool = False
    slice_offsets: bool = False


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Terms of the loss in automatic mode (model.md §9).

    Attributes:
        kind: Type of the loss. `set`: queries are matched with structures; `binary`: BCE + Dice with given prompts;
            `segmentation`: cross entropy + Dice of class logits (§9.4, §9.6), weighted by `bce` and `dice`.
        assignment: Which query answers for a class. `cheapest`: the best match in each slice; `own`: query k for class
            k.
        bce: Weight of the masks' binary cross entropy.
        dice: Weight of the masks' Dice loss.
        generator: Weight of the segmentation loss (§9.4) of the query generator's masks. Needs `assignment="own"`.
        generator_dice: How Dice enters that loss. `linear`: 1 - Dice of every structure; `log`: -log Dice of those
            that the batch holds, which weighs a structure more the less of it is found (not in the papers).
        background: The segmentation loss's Dice counts the background as a structure too.
    """

    kind: Literal["set", "binary", "segmentation"] = "set"
    assignment: Literal["cheapest", "own"] = "cheapest"
    bce: float = 1.5
    dice: float = 1.5
    generator: float = 0.0
    generator_dice: Literal["linear", "log"] = "linear"
    background: bool = False
    FORMER: ClassVar[Former] = {"classification": 0.2, "aux": 0.5, "box_l1": 0.5, "box_giou": 0.2, "no_object": 0.1}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole network (model.md §15.1).

    Attributes:
        channels: Modalities M of the scan. Filled in from the data set.
        classes: Number of classes K, background included. Filled in from the data set.
        patch: Voxels (D, H, W) of one forward pass. With `data.fit_patch` fitted to the data set.
        backbone: The encoder.
        stem: From the scan's channels to the encoder's.
        depth: Positions of the slices.
        enc_adapter: Adapters in the encoder.
        dec_tokens: Adapters of the decoder's prompt tokens.
        dec_image: Adapters of the decoder's image tokens.
        source: Where automatic prompts come from.
        decoder: The mask decoder.
        head: How the masks become a label map (§8). `query`: weighted by each query's class; `argmax`: of given
            prompts; `softmax`: of class logits; `multiclass`: Self-Prompt-SAM's MC-Adapter; `binary`: one mask for
            each prompt.
        loss: The loss of automatic mode.
    """

    channels: int = 1
    classes: int = 4
    patch: tuple[int, int, int] = (4, 256, 256)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    stem: StemConfig = field(default_factory=StemConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    enc_adapter: EncoderAdapterConfig = field(default_factory=EncoderAdapterConfig)
    dec_tokens: TokenAdapterConfig = field(default_factory=TokenAdapterConfig)
    dec_image: ImageAdapterConfig = field(default_factory=ImageAdapterConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    head: Literal["query", "argmax", "softmax", "multiclass", "binary"] = "query"
    loss: LossConfig = field(default_factory=LossConfig)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the encoder is fed with."""
        up = self.stem.upsample
        return self.patch[1] * up, self.patch[2] * up

    @property
    def grid(self) -> tuple[int, int]:
        """(g_h, g_w) tokens of the image embedding."""
        height, width = self.input_size
        return height // TOKEN_STRIDE, width // TOKEN_STRIDE

    @property
    def mask_size(self) -> tuple[int, int]:
        """(height, width) of the masks that SAM's decoder returns."""
        height, width = self.input_size
        return height // MASK_STRIDE, width // MASK_STRIDE

    @property
    def prompts_only(self) -> bool:
        """Whether the model takes clicks and boxes only and segments nothing by itself."""
        return self.source.kind in ("user", "maps")

    @property
    def takes_prompts(self) -> bool:
        """Whether clicks and boxes can be answered; else the network segments whole scans only."""
        return self.source.kind not in ("unet3d", "none")

    @property
    def names_masks(self) -> bool:
        """Whether the generator has masks, and mask k is of class k."""
        return self.source.kind == "class" or self.owns_masks

    @property
    def owns_masks(self) -> bool:
        """The same of the generator of queries."""
        own = self.loss.kind == "set" and self.loss.assignment == "own"
        return own and self.source.kind == "query" and self.source.mask
