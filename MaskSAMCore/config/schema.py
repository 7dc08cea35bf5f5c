"""Schema of the configuration: frozen dataclasses, JSON values, documented field by field.

Every published network, each of its ablation rows and the product itself are values of `Config` (model.md §15).
`config.serialize` reads and writes them, `config.check` refuses values that do not go together, and `train
--list-settings` prints the `Attributes` sections below: one entry for each field, its first sentence by itself.
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
        arch: SAM's encoder, or another network. `mobile` is MobileSAM, `tiny` a test network with random weights,
            `swin_unetr` MONAI's SwinUNETR, all of which is trained (model.md §11).
        width: Feature size of a `swin_unetr`.
        attention: Where the encoder's tokens look. `sam`: within the slice; `window3d`: in cubes of 8x8x8 tokens of
            the scan, shifted in every other block (model.md §10); `sam2d`: the network of `window3d` with SAM's own
            windows, slice by slice, for comparison.
        pos_mode: How SAM's position embedding is fitted to an input below 1024 pixels.
        rel_pos_resize: How SAM's relative positions are fitted to a smaller window.
        attention_kernel: Implementation of attention. `reference` is the slow one that the fast one is tested against.
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
        scale: Factor of an adapter that lies parallel to the MLP.
        depth_branch: Attention along the slices in each block: Med-SA's SD-Trans (§4.4). `gate`: through a gate that
            starts at zero; `adapter`: through a third adapter, as in the public release.
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
        mode: How a prompt changes the adapters. `hyper` is the HyP-Adapter, `none` leaves plain adapters.
        width: Size p to which the condition is reduced.
        layers: Number of hypernetwork layers of `hyper`.
        dropout: Share of the prompts whose condition is hidden in training.
    """

    mode: Conditioning = "none"
    width: int = 32
    layers: int = 3
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TokenAdapterConfig:
    """Adapters of the decoder's prompt tokens (model.md §4.3).

    Attributes:
        kind: Type of adapter. One of `none`, `plain`, `depth_mlp`, `depth_conv`.
        slots: Places of the adapters in a decoder layer.
        ratio: Width of an adapter's bottleneck as a share of its channels.
        depth_position: Where the depth layer stands in the adapter.
        act: Activation function of the adapters.
        scale: Factor of an adapter that lies parallel to the MLP.
        condition: How the adapters take up the prompt.
    """

    kind: AdapterKind = "depth_mlp"
    slots: tuple[Literal["self", "t2i", "mlp", "final"], ...] = ("self", "t2i", "mlp", "final")
    ratio: float = 0.25
    depth_position: DepthPosition = "middle"
    act: Literal["gelu", "relu"] = "gelu"
    scale: float = 0.5
    condition: ConditionConfig = field(default_factory=ConditionConfig)


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
            `none`: no prompts (students).
        trunk: Features that the generator reads. `pyramid`: of all levels of the encoder; `stacked`: the last one.
        widths: Channels of the generator's trunk, from the coarsest size to the finest.
        queries: Number of queries N of the query generator.
        mask: The query generator makes mask prompts.
        box: The query generator learns box prompts.
        fusion: How the learned box and the mask's bounding box become one prompt. `none` gives no box.
        box_grad: Gradient through the mask's bounding box. `hard`: none; `soft`: by a smooth bounding box.
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
        classification: Weight of the queries' class.
        bce: Weight of the masks' binary cross entropy.
        dice: Weight of the masks' Dice loss.
        aux: Weight of BCE and Dice of the generator's masks.
        box_l1: Weight of the learned boxes' L1 distance.
        box_giou: Weight of the learned boxes' generalised IoU.
        no_object: Weight of queries without a structure in the class term.
        generator: Weight of the segmentation loss (§9.4) of the query generator's masks. Needs `assignment="own"`.
        generator_dice: How Dice enters that loss. `linear`: 1 - Dice of every structure; `log`: -log Dice of those
            that the batch holds, which weighs a structure more the less of it is found (not in the papers).
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
    """Probabilities and ranges of nnU-Net's augmentation (model.md §12.3).

    Attributes:
        rotation: Probability of a rotation.
        rotation_degrees: Largest angle of a rotation, in degrees.
        scaling: Probability of a change of size.
        scaling_range: Smallest and largest factor of a change of size.
        noise: Probability of Gaussian noise.
        blur: Probability of a Gaussian blur.
        brightness: Probability of a change of brightness.
        contrast: Probability of a change of contrast.
        low_resolution: Probability of a loss of resolution.
        gamma_inverted: Probability of a gamma curve on inverted intensities.
        gamma: Probability of a gamma curve.
        mirror: Probability of a reflection along each axis that may be mirrored.
        elastic: Probability of an elastic deformation.
    """

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
        view: Plane of the slices. `auto` puts the coarsest axis along depth.
        spacing: Target spacing (depth, height, width) in mm. null takes the data set's median.
        slices: Whether scans are resampled across their slices. `keep` resamples in-plane alone and leaves each scan
            its own slices, whose distance may differ from scan to scan; `auto` does so where slices are thicker than
            three pixels (`plan.ANISOTROPIC`).
        normalisation: How intensities are normalised. `rgb` is SAM's own, for colour pictures; `auto` decides by the
            channels' names.
        longest: Pixels of a colour picture's longer side, to which it is resized as by SAM (model.md §12.3).
        window: Window of CT in HU: (low, high, subtract, divide). Intensities are clipped to low and high, then shifted
            and divided, instead of by the data set's own statistics (model.md §12.1).
        fit_patch: Fit the patch, `model.stem.upsample` and the generator's widths to the data set (model.md §12.2).
            Settings that are fitted cannot be set as well.
        left_right: Mirroring along left-right. `declared` mirrors only where the data set declares `left_right_pairs`
            (an empty list says that no label has a side); paired labels swap.
        left_right_pairs: Pairs of label names that are left and right of each other. Replaces those in `dataset.json`.
        mirroring: Axes that are mirrored. `sides` mirrors along left-right alone, where that is allowed: for scans that
            all come in one orientation, and for short trainings.
        foreground: Share of the patches that must hold a random structure.
        split_seed: Seed of the folds, where the data set brings none. `train.seed` does not change them.
        augment: Augmentation of the patches.
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
        mode: What is trained. `auto`: automatic mode; `prompt`: simulated clicks and boxes; `mixed`: both (§2.4);
            `distill`: a network without prompts, on labels and on a teacher's output (§11).
        auto_share: In `mixed`, the share of the steps that begins the run in automatic mode (§14.3).
        auto_chance: In `mixed`, the probability of an automatic step after them.
        seg_share: In `distill`, the labels' share λ of the loss. The teacher has the rest.
        teacher: In `distill`, name and hash of the teacher. Filled in by the command (--teacher).
        answers: In `distill`, when the teacher is run. `live`: on every patch as the student sees it; `stored`: once
            on every case before the training, and augmentation moves its output as it moves the labels.
        optimizer: The optimiser.
        lr: Largest learning rate.
        momentum: Momentum of `sgd`.
        weight_decay: Weight decay.
        eps: Denominator's addend in `adam` and `adamw`.
        clip: Largest norm of the gradient.
        schedule: How the learning rate falls (§14.2).
        warmup_steps: Steps in which the learning rate rises.
        warmup_epochs: Epochs w of the rise lr·e^{10(e/w-1)} in `schedule="exponential"` (§14.2).
        final_ratio: Last learning rate of `schedule="exponential"`, as a share of the first.
        epochs: Length of the schedule in epochs.
        iterations: Optimiser steps of an epoch.
        stop_epoch: End the run after this epoch, before its schedule ends. 0: never. A later run may start from its
            model.
        batch: Patches of a forward pass.
        accumulate: Forward passes of an optimiser step.
        precision: Number format of the training. `auto`: bf16 or fp16 on a GPU, fp32 on a CPU.
        checkpointing: Save memory by computing activations twice.
        frozen_epochs: Epochs of the first phase, in which the encoder and its adapters stay as they are (§14.4).
        frozen_copies: Augmented copies of every case in the cache of the frozen encoder's features. 1 is the case
            itself; 0 means no cache: every patch is augmented and encoded anew.
        generator_epochs: Epochs at the beginning that train the generator alone. Needs masks that have classes (§9.4).
        keep_generator: Steps with prompts leave encoder and generator as they are. Automatic mode that ends with the
            generator (`decoder.kind="none"`) is then not changed by them. In `mixed`, with `generator_epochs`, all
            later steps are such steps, and with `schedule="cosine"` the learning rate starts anew with them.
        ema: Decay of the averaged weights that are validated and saved. 0 turns it off.
        validate_every: Epochs between two validations.
        validate_cases: Largest number of cases of a validation during training. 0 takes all.
        folds: Number of folds, where the data set brings no split.
        seed: Seed of everything random but the folds.
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
    """Everything that a run is determined by, besides its data and the base weights.

    Attributes:
        preset: Name of the preset that the configuration started from. Filled in by the command.
        model: The network.
        data: Preprocessing and sampling.
        train: The training.
    """

    preset: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration.

    Attributes:
        config: The configuration itself.
        about: What it switches, in one line.
        score: Published figure in percent, where there is one.
        benchmark: What the score is of.
    """

    config: Config
    about: str
    score: float | None = None
    benchmark: str = "ACDC Dice"
