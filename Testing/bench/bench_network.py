"""Times of parts of the network, as ratios of two variants that are measured in turn in one run.

    python Testing/bench/bench_network.py [--size 160x224] [--slices 16] [--repeats 5]

The weights are MobileSAM's if this computer has them, else random; the times are the same.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import ModelConfig
from MaskSAMCore.device import trains_in_bf16
from MaskSAMCore.errors import ModelError
from MaskSAMCore.losses.set_loss import SetLoss, build_loss
from MaskSAMCore.network import attention
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.convolution import Conv3d
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.network.types import Features
from MaskSAMCore.zoo.base_weights import find_base, load_base


def main() -> None:
    """Print one line per comparison: both medians and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="160x224", help="encoder input in pixels (default: 160x224)")
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    height, width = (int(n) for n in options.size.split("x"))
    preset = presets.get("core-mobile").model
    cfg = replace(
        preset,
        classes=3,
        patch=(options.slices, height // 4, width // 4),
        stem=replace(preset.stem, kind="repeat"),
    )
    fast, reference = network(cfg, "fast"), network(cfg, "reference")
    print(
        f"{torch.get_num_threads()} thread(s), {options.slices} slices of {height}x{width} pixels, {cfg.patch} voxels"
    )
    image = torch.randn(1, 1, *cfg.patch)
    labels = (torch.rand(1, *cfg.patch) > 0.8).long()
    with torch.inference_mode():
        compare("encoder, fast / reference", lambda: fast.encode(image), lambda: reference.encode(image), options)
        compare("encoder, adapted / frozen", lambda: fast.encode(image), lambda: fast.encode_frozen(image), options)
        compare(
            "whole patch, fast / reference",
            lambda: fast.segment_patch(image),
            lambda: reference.segment_patch(image),
            options,
        )
    with torch.no_grad():
        features = fast.encode_frozen(image)
    compare_training(fast, image, labels, features, options)


def compare_training(
    model: MaskSAM, image: torch.Tensor, labels: torch.Tensor, features: Features, options: argparse.Namespace
) -> None:
    """What makes a training step cheaper; patch (1, 1, D, H, W), labels (1, D, H, W)."""
    criterion = build_loss(model.cfg)

    def whole(known: Features | None = None) -> None:
        criterion(model(image, known), labels, None)["loss"].backward()

    def half(most_keys: int = attention.PLAIN_KEYS) -> None:
        known, attention.PLAIN_KEYS = attention.PLAIN_KEYS, most_keys
        with torch.autocast("cpu", torch.bfloat16):
            whole()
        attention.PLAIN_KEYS = known

    alone = partial(generator_step, criterion, features, image, labels)
    compare("training step, cached features / whole network", lambda: whole(features), whole, options)
    compare("training step, cached features: generator / all", lambda: alone(model), lambda: whole(features), options)
    other = with_instance_norms(model)
    compare("generator step, group norm / instance norm", lambda: alone(model), lambda: alone(other), options)
    plain = with_plain_convolutions(model)
    compare("generator step, axes in the fast order / as they are", lambda: alone(model), lambda: alone(plain), options)
    thick = network(replace(model.cfg, source=replace(model.cfg.source, in_plane=2)), "fast")
    compare("generator step, two sizes in plane / none", lambda: alone(thick), lambda: alone(model), options)
    if trains_in_bf16(torch.device("cpu")):
        compare("training step, bfloat16 / float32", half, whole, options)
        compare("training step in bfloat16, attention plain / fused", half, lambda: half(0), options)


def generator_step(
    criterion: SetLoss, features: Features, image: torch.Tensor, labels: torch.Tensor, model: MaskSAM
) -> None:
    """Forward and backward pass of the generator alone."""
    criterion.generator(model.generator_logits(features, image), labels, None)["loss"].backward()


def with_instance_norms(model: MaskSAM) -> MaskSAM:
    """A copy whose trunk has the paper's modules for its norms; the numbers are the same."""
    other = copy.deepcopy(model)
    for parent in list(other.generator.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.GroupNorm):
                new = nn.InstanceNorm3d(norm.num_channels, affine=True)
                new.load_state_dict(norm.state_dict())
                setattr(parent, name, new)
    return other


def with_plain_convolutions(model: MaskSAM) -> MaskSAM:
    """A copy whose convolutions leave the order of the axes to PyTorch; the numbers are the same."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, Conv3d):
            module.forward = partial(nn.Conv3d.forward, module)  # type: ignore[method-assign]
    return other


def network(cfg: ModelConfig, kernel: str) -> MaskSAM:
    """The network with one of its two kernels."""
    model = build_model(replace(cfg, backbone=replace(cfg.backbone, attention_kernel=kernel)))
    try:
        load_base(model, find_base("mobile"))
    except ModelError:
        print("MobileSAM's weights are not on this computer: random weights")
    return model


def compare(name: str, first: Callable[[], object], second: Callable[[], object], options: argparse.Namespace) -> None:
    """Run both in turn; the first pair warms up and is not counted."""
    pairs = [(timed(first), timed(second)) for _ in range(options.repeats + 1)][1:]
    a, b = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratio = statistics.median(x / y for x, y in pairs)
    print(f"{name:54} {a:7.3f} s / {b:7.3f} s = {ratio:5.2f}")


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
