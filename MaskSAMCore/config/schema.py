"""Schema of the configuration: frozen dataclasses, JSON values, documented field by field.

Every published network, each of its ablation rows and the product itself are values of `Config` (model.md §15).
`config.serialize` reads and writes them, `config.check` refuses values that do not go together, and `train
--list-settings` prints the `Attributes` sections below: one entry for each field, its first sentence by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from MaskSAMCore.config.network_schema import Former, ModelConfig

TrainMode = Literal["auto", "prompt", "mixed", "distill"]
Largest = Literal["none", "foreground", "each", "both"]
"""Which connected components of a result are kept; see `preprocessing.postprocess`."""


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
        seg_share: In `distill`, the labels' share λ of the loss. The teacher has the rest.
        teacher: In `distill`, name and hash of the teacher. Filled in by the command (--teacher).
        answers: In `distill`, when the teacher is run. `live`: on every patch as the student sees it; `stored`: once
            on every case before the training, and augmentation moves its output as it moves the labels.
        optimizer: The optimiser.
        lr: Largest learning rate.
        weight_decay: Weight decay.
        eps: Denominator's addend in `adam` and `adamw`.
        clip: Largest norm of the gradient.
        schedule: How the learning rate falls (§14.2).
        warmup_steps: Steps in which the learning rate rises.
        warmup_epochs: Epochs w of the rise lr·e^{10(e/w-1)} in `schedule="exponential"` (§14.2).
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
    seg_share: float = 0.5
    teacher: str = ""
    answers: Literal["live", "stored"] = "live"
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 1e-3
    weight_decay: float = 3e-5
    eps: float = 1e-8
    clip: float = 12.0
    schedule: Literal["poly", "cosine", "halving", "exponential"] = "poly"
    warmup_steps: int = 0
    warmup_epochs: int = 0
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
    FORMER: ClassVar[Former] = {"auto_share": 0.2, "auto_chance": 0.5, "momentum": 0.99, "final_ratio": 0.01}


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
