"""Configuration: frozen dataclasses; `config_json` reads and writes them, `config_check` says what goes together.

Every published network, each of its ablation rows and the product itself are values of `Config`
(model.md §15). Only this module and `presets` know which paper is configured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

AdapterKind = str
""" "none", or a name in `network.adapters.CORES`."""
SourceKind = str
"""A name in `network.sources.SOURCES`."""
Conditioning = Literal["none", "add", "concat", "hyper"]
DepthBranchKind = Literal["none", "gate", "adapter"]
TrainMode = Literal["auto", "prompt", "mixed", "distill"]
DepthPosition = Literal["before", "middle", "after"]
Largest = Literal["none", "foreground", "each", "both"]
TOKEN_STRIDE = 16
MASK_STRIDE = 4


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The frozen SAM encoder (model.md §3), or a network without SAM.

    Attributes:
        arch: `swin_unetr` is MONAI's SwinUNETR: the whole network, all of it trained (model.md §11).
        width: Feature size of a `swin_unetr`.
        attention: `sam` looks at slices; `window3d` at cubes of 8x8x8 tokens of the scan, shifted in every other block
            (model.md §10); `sam2d` is the same network with SAM's own windows, slice by slice, to compare with.
    """

    arch: Literal["vit_b", "vit_l", "vit_h", "mobile", "tiny", "swin_unetr"] = "vit_b"
    width: int = 24
    attention: Literal["sam", "window3d", "sam2d"] = "sam"
    pos_mode: Literal["crop", "interpolate"] = "crop"
    rel_pos_resize: Literal["slice", "interpolate"] = "slice"
    attention_kernel: Literal["fast", "reference"] = "fast"


@dataclass(frozen=True, kw_only=True)
class StemConfig:
    """From M modalities to SAM's three channels (model.md §5.1).

    `lean` convolves before it enlarges: at x4 the papers' stem costs as much as all the rest of a
    MobileSAM, a sixteenth of that is enough for it. `none` is for colour pictures, whose three channels
    are SAM's own.
    """

    kind: Literal["conv", "lean", "repeat", "none"] = "conv"
    upsample: Literal[1, 2, 4] = 4
    residual: bool = True


@dataclass(frozen=True, kw_only=True)
class DepthConfig:
    """Learned positions of the slices in a patch (model.md §5.2)."""

    pe_encoder: bool = True
    pe_decoder: Literal["full", "factorised", "none"] = "full"


@dataclass(frozen=True, kw_only=True)
class EncoderAdapterConfig:
    """Adapters of the encoder blocks (model.md §4.3); `pre`, before a block, is `window3d`'s only slot.

    `depth_branch` is Med-SA's SD-Trans (§4.4): each block's own attention runs along the slices too, through a `gate`
    that starts at zero, or, as in the public release, through a third `adapter`.
    """

    kind: AdapterKind = "depth_conv"
    slots: tuple[Literal["attn", "mlp", "pre"], ...] = ("attn", "mlp")
    ratio: float = 0.25
    depth_position: DepthPosition = "middle"
    act: Literal["gelu", "relu"] = "gelu"
    scale: float = 0.5
    depth_branch: DepthBranchKind = "none"


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """How the `t2i` token adapters take up the prompt: Med-SA's HyP-Adapter and its rivals (model.md §4.5).

    Attributes:
        mode: `none` leaves the plain adapters.
        width: p, to which the condition is reduced.
        layers: Hypernetwork layers of `hyper`.
        dropout: Share of the prompts whose condition is hidden in training.
    """

    mode: Conditioning = "none"
    width: int = 32
    layers: int = 3
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TokenAdapterConfig:
    """Adapters of the decoder's prompt tokens (model.md §4.3)."""

    kind: AdapterKind = "depth_mlp"
    slots: tuple[Literal["self", "t2i", "mlp", "final"], ...] = ("self", "t2i", "mlp", "final")
    ratio: float = 0.25
    depth_position: DepthPosition = "middle"
    act: Literal["gelu", "relu"] = "gelu"
    scale: float = 0.5
    condition: ConditionConfig = field(default_factory=ConditionConfig)


@dataclass(frozen=True, kw_only=True)
class ImageAdapterConfig:
    """Adapters of the decoder's image tokens (model.md §4.3)."""

    kind: AdapterKind = "depth_conv"
    slot: Literal["i2t", "i2t_post"] = "i2t"
    ratio: float = 0.25
    depth_position: DepthPosition = "middle"
    act: Literal["gelu", "relu"] = "gelu"


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where automatic prompts come from (model.md §6).

    `kind="query"` is the MaskSAM generator, `"class"` Self-Prompt-SAM's, `"gt"` takes the prompts from the ground
    truth, `"user"` is Med-SA's: no generator, all prompts are clicks and boxes; `"unet3d"` is AutoSAM Adapter's prompt
    U-Net on the encoder level `apg_level`; `"none"` belongs to students.

    Two more are not in the papers. `image_widths` gives the trunk the scan itself, through convolutions of those
    widths at its finest, second finest, ... size: a frozen encoder's finest level has been seen to blur borders one
    voxel wide. `in_plane` is the number of the trunk's finest sizes whose convolutions stay within the slices (1x3x3),
    as nnU-Net plans them where slices are much thicker than pixels.

    Of the class generator only: `points` prompts with the innermost pixel of every class (its Euclidean distance
    transform), and `deep_supervision` gives every stage of the trunk logits of its own.
    """

    kind: SourceKind = "query"
    trunk: Literal["pyramid", "stacked"] = "pyramid"
    widths: tuple[int, ...] = (256, 128, 128)
    queries: int = 8
    mask: bool = True
    box: bool = True
    fusion: Literal["average", "learned", "mask", "none"] = "average"
    box_grad: Literal["hard", "soft"] = "hard"
    mask_prompt: Literal["logits", "binary", "none"] = "logits"
    floor_boxes: bool = False
    class_tokens: bool = True
    image_widths: tuple[int, ...] = ()
    in_plane: int = 0
    points: Literal["none", "edt"] = "none"
    deep_supervision: bool = False
    apg_level: Literal["last", "first", "none"] = "last"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """SAM's mask decoder and what is added to it (model.md §7).

    With `kind="none"` automatic mode ends with the scores of a generator whose masks have classes (that of classes, or
    that of queries with `loss.assignment="own"`); the decoder, with whatever is added to it, answers clicks only, and
    automatic training leaves it as it is.

    `mask_residual` adds the generator's mask to the decoded one, so the decoder learns a
    correction; not in the paper: SAM's decoder sees the mask prompt at stride 16 only. `kind="mla"` is
    AutoSAM Adapter's aggregation of all levels, at the resolution `fusion_res`; `"none"` belongs to students.

    Four more are for prompts of a user, and not in the papers either. `fine_masks` lets each mask token
    read the trunk's features at the patch's own size, as it reads SAM's own at stride 4: a click then
    knows what automatic mode knows. `click_maps` draws clicks, box and former mask beside these features, and a small
    convolutional head corrects the mask there; `click_masks` shows it the generator's own masks of the structures that
    are meant, where these masks have classes (`network.recall`). `slice_offsets` tells a prompt that was copied to the
    other slices of the patch how far it is from its own.
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
    """Terms of the set loss (model.md §9); `kind="binary"` is BCE + Dice with given prompts.

    `kind="segmentation"` is cross entropy + Dice of class logits (§9.4, §9.6), weighted by `bce` and `dice`.

    Attributes:
        assignment: Which query answers for a class: the cheapest of each slice, or ("own") always query k for class k.
        generator: Weight of the segmentation loss (§9.4) of the query generator's masks; needs `assignment="own"`.
        generator_dice: How Dice enters that loss: 1 - Dice of every structure, or ("log") -log Dice of those that the
            batch holds, which makes more of a structure the less of it is found (not in the papers).
        background: The segmentation loss's Dice counts the background as a structure too.
    """

    kind: Literal["set", "binary", "segmentation"] = "set"
    assignment: Literal["cheapest", "own"] = "cheapest"
    classification: float = 0.2
    bce: float = 1.5
    dice: float = 1.5
    aux: float = 0.5
    box_l1: float = 0.5
    box_giou: float = 0.2
    no_object: float = 0.1
    generator: float = 0.0
    generator_dice: Literal["linear", "log"] = "linear"
    background: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole network (model.md §15.1).

    Attributes:
        channels: Modalities M of the scan.
        classes: K semantic classes, background included.
        patch: (D, H, W) voxels of one forward pass.
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
        return self.source.kind == "user"

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


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Probabilities and ranges of nnU-Net's augmentation (model.md §12.3). Angles in degrees."""

    rotation: float = 0.2
    rotation_degrees: float = 30.0
    scaling: float = 0.2
    scaling_range: tuple[float, float] = (0.7, 1.4)
    noise: float = 0.1
    blur: float = 0.2
    brightness: float = 0.15
    contrast: float = 0.15
    low_resolution: float = 0.25
    gamma_inverted: float = 0.1
    gamma: float = 0.3
    mirror: float = 0.5
    elastic: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Preprocessing and sampling (model.md §12).

    Attributes:
        view: Plane of the slices; `auto` puts the coarsest axis along depth.
        spacing: Target spacing (depth, height, width) in mm; None takes the data's median.
        slices: `keep` resamples in-plane alone and leaves every scan its own slices, whose distance may differ from
            scan to scan; `auto` does so where they are thicker than three pixels (`plan.ANISOTROPIC`).
        normalisation: `rgb` is SAM's own, for colour pictures; `auto` decides by the channels' names.
        longest: Pixels of a colour picture's longer side, to which each is resized as SAM does it (model.md §12.3).
        window: For CT: (low, high, subtract, divide) in HU: clip to low and high, then subtract and divide, instead of
            by the data set's own statistics (model.md §12.1).
        fit_patch: Fit the in-plane patch and `stem.upsample` to the data (model.md §12.2); the
            preset's patch then gives the depth only.
        left_right: Mirroring along left-right. `declared` mirrors only where the data set declares
            `left_right_pairs` (an empty list says that no label has a side); labels swap with it.
        left_right_pairs: As in `dataset.json`, for a data set that declares none there; in its place, if it does.
        mirroring: `sides` mirrors along left-right alone, where that is allowed; for scans that all come in one
            orientation, and trainings too short to learn it in every other.
        foreground: Share of patches that must hold a random structure.
        split_seed: Of the folds, where the data set brings none; `train.seed` does not change them.
    """

    view: Literal["auto", "axial", "coronal", "sagittal"] = "auto"
    spacing: tuple[float, float, float] | None = None
    slices: Literal["resample", "keep", "auto"] = "resample"
    normalisation: Literal["auto", "ct", "zscore", "rgb"] = "auto"
    longest: int = 1024
    window: tuple[float, float, float, float] | None = None
    fit_patch: bool = False
    left_right: Literal["declared", "never", "always"] = "declared"
    left_right_pairs: tuple[tuple[str, str], ...] | None = None
    mirroring: Literal["all", "sides"] = "all"
    foreground: float = 0.33
    split_seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of training (model.md §14).

    Attributes:
        mode: `auto` trains the model's own prompts, `prompt` simulated clicks and boxes, `mixed` both (§2.4);
            `distill` trains a network without prompts on labels and on a teacher's answers (§11).
        seg_share: In `distill`, λ: the labels' share of the loss; the teacher has the rest.
        teacher: In `distill`, name and hash of the teacher; filled in by the command.
        answers: In `distill`, when the teacher answers: `live` for every patch as the student sees it, `stored` once
            for every case before the training, and augmentation moves its answers as it moves the labels.
        warmup_epochs: Of `schedule="exponential"`: lr·e^{10(e/w−1)} in epoch e of them (§14.2).
        final_ratio: Of `schedule="exponential"`: the last learning rate as a share of the first.
        auto_share: In `mixed`, the share of the steps that begins the run in automatic mode (§14.3).
        auto_chance: In `mixed`, the chance of an automatic step after them.
        stop_epoch: Ends the run after so many epochs, though its schedule is longer; 0: it does not. A later run may
            start from what was reached.
        frozen_epochs: Epochs of the first phase, on features of the frozen encoder (§14.4).
        frozen_copies: Fixed augmented copies of every case in the cache of those features; 1 is the case itself; 0:
            no cache, every patch is augmented and encoded anew, which costs the encoder's forward pass.
        generator_epochs: Epochs that train the generator alone, whose masks have classes, before the decoder (§9.4).
        keep_generator: Steps with prompts leave encoder and generator as they are. Where automatic mode ends with the
            generator (`decoder.kind="none"`), clicks are thus learned without changing what it finds.
        ema: Decay of the averaged weights that are validated and released; 0 turns it off.
        validate_every: Epochs between two validations.
        validate_cases: Most cases of a validation during training; 0 takes all.
    """

    mode: TrainMode = "auto"
    auto_share: float = 0.2
    auto_chance: float = 0.5
    seg_share: float = 0.5
    teacher: str = ""
    answers: Literal["live", "stored"] = "live"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.99
    weight_decay: float = 3e-5
    eps: float = 1e-8
    clip: float = 12.0
    schedule: Literal["poly", "cosine", "halving", "exponential"] = "poly"
    warmup_steps: int = 0
    warmup_epochs: int = 0
    final_ratio: float = 0.01
    epochs: int = 500
    iterations: int = 250
    stop_epoch: int = 0
    batch: int = 2
    accumulate: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    checkpointing: bool = False
    frozen_epochs: int = 0
    frozen_copies: int = 1
    generator_epochs: int = 0
    keep_generator: bool = False
    ema: float = 0.0
    validate_every: int = 10
    validate_cases: int = 0
    folds: int = 5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run is determined by, besides its data and the base weights."""

    preset: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
