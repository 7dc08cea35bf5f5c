"""The parameter audit: what is trained and what is frozen, counted on built networks (model.md §16)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from MaskSAMCore.config import presets
from MaskSAMCore.config.network_schema import BackboneConfig, ModelConfig, StemConfig
from MaskSAMCore.errors import ModelError, PackageError
from MaskSAMCore.network.build import FROZEN, build_model
from MaskSAMCore.network.segmenter import Segmenter

PARTS: dict[str, str] = {
    "encoder.adapters.": "encoder adapters",
    "encoder.depth_branches.": "encoder depth branches",
    "encoder.depth_pe": "encoder depth positions",
    "decoder.token_adapters.": "decoder token adapters",
    "decoder.image_adapters.": "decoder image adapters",
    "decoder.depth_pe": "decoder depth positions",
    "decoder.class_token.": "class token and head",
    "decoder.class_head.": "class token and head",
    "stem.branch.": "stem",
    "stem.lift.": "residual of the stem (ours)",
    "stem.gamma": "residual of the stem (ours)",
    "generator.": "generator",
    "upsampler.": "mask upsampler",
    "multiclass.": "multi-class head",
    "blend.": "mask residual (ours)",
    "fine.": "fine masks (ours)",
    "clicks.": "click maps (ours)",
    "prompts.offsets": "slice offsets (ours)",
    "net.": "student",
    "encoder.norms.": "encoder norms",
    "encoder.depth_conv.": "depth patch embedding",
    "encoder.depth_rows.": "relative depth positions",
    "encoder.necks.": "3-D necks",
    "prompt_unet.": "prompt U-Net",
    "mla.": "aggregation decoder",
    "embed.": "U-Net for clicks (ours)",
    "down.": "U-Net for clicks (ours)",
    "up.": "U-Net for clicks (ours)",
    "out.": "U-Net for clicks (ours)",
}
OURS = "(ours)"
BACKBONES = ("vit_b", "vit_l", "vit_h", "mobile")


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Parameters of one built network.

    Attributes:
        parts: Trainable parameters per part, in the order of `PARTS`.
        frozen: Frozen parameters of SAM's encoder, prompt encoder and mask decoder.
    """

    parts: dict[str, int]
    frozen: dict[str, int]

    @property
    def trainable(self) -> int:
        return sum(self.parts.values())

    @property
    def paper(self) -> int:
        """Trainable parameters that the papers' networks have too."""
        return sum(count for part, count in self.parts.items() if not part.endswith(OURS))

    @property
    def total(self) -> int:
        return self.trainable + sum(self.frozen.values())


def audit_model(model: Segmenter) -> Audit:
    """Count the parameters of a built network by part.

    Raises:
        ModelError: A parameter belongs to no part, or its freezing is not as configured.
    """
    parts = dict.fromkeys(PARTS.values(), 0)
    frozen = dict.fromkeys((prefix.rstrip(".") for prefix in FROZEN.values()), 0)
    unexpected = []
    for name, parameter in model.named_parameters():
        sam = next((prefix for prefix in FROZEN if name.startswith(prefix)), None)
        own = next((prefix for prefix in PARTS if name.startswith(prefix)), None)
        if (sam is None) == (own is None) or parameter.requires_grad == (sam is not None):
            unexpected.append(f"{name} (requires_grad={parameter.requires_grad})")
        elif sam is not None:
            frozen[FROZEN[sam].rstrip(".")] += parameter.numel()
        elif own is not None:
            parts[PARTS[own]] += parameter.numel()
    if unexpected:
        raise ModelError("the audit does not know these parameters", why=", ".join(unexpected[:8]))
    return Audit(parts={part: count for part, count in parts.items() if count}, frozen=frozen)


def audit_config(cfg: ModelConfig) -> Audit:
    """The audit of the network that `cfg` describes, built without memory for its weights."""
    with torch.device("meta"):
        model = build_model(cfg)
    return audit_model(model)


def audit_table(names: Sequence[str] | None = None) -> str:
    """All audits as text: the backbones of model.md §16.1, then every preset with its parts.

    Raises:
        ModelError: A built network has a parameter that no part accounts for.
    """
    lines = [f"{'SAM, frozen':<22}{'encoder':>14}{'prompt enc.':>14}{'decoder':>14}{'total':>14}"]
    for arch in BACKBONES:
        cfg = ModelConfig(backbone=BackboneConfig(arch=arch), stem=StemConfig(upsample=4))  # type: ignore[arg-type]
        counts = audit_config(cfg).frozen
        lines.append(f"{arch:<22}" + "".join(f"{count:>14,}" for count in (*counts.values(), sum(counts.values()))))
    for name in names or presets.names():
        lines += ["", f"{name}: {presets.describe(name).about}"]
        try:
            audit = audit_config(presets.get(name).model)
        except PackageError as error:
            lines.append(f"  not counted: {error}")
            continue
        lines += [f"  {part:<34}{count:>14,}" for part, count in audit.parts.items()]
        lines.append(f"  {'trainable, as in the paper':<34}{audit.paper:>14,}")
        if audit.paper != audit.trainable:
            lines.append(f"  {'trainable, with our additions':<34}{audit.trainable:>14,}")
        lines.append(f"  {'total':<34}{audit.total:>14,}")
    return "\n".join(lines)
