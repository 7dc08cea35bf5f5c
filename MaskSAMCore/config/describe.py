"""What a network is made of, in words that are generated from its configuration."""

from __future__ import annotations

from MaskSAMCore.config.network_schema import ModelConfig

ENCODERS = {
    "vit_b": "SAM ViT-B",
    "vit_l": "SAM ViT-L",
    "vit_h": "SAM ViT-H",
    "mobile": "MobileSAM",
    "tiny": "random weights, for tests",
}
ADAPTERS = {
    "none": "none",
    "plain": "plain",
    "depth_mlp": "with MLPs along depth",
    "depth_conv": "with depth convolutions",
    "spatial": "with spatial convolutions",
}
SOURCES = {
    "query": "the query generator",
    "class": "the class generator",
    "gt": "the reference labels",
    "unet3d": "the prompt U-Net",
}


def network_description(model: ModelConfig) -> str:
    """Encoder and its adapters, automatic mode, and what answers clicks: three sentences about a network."""
    if model.backbone.arch == "swin_unetr":
        return (
            f"Network: SwinUNETR of feature size {model.backbone.width}, trained whole. "
            "Automatic mode: the whole network. Clicks and boxes: not taken."
        )
    if model.backbone.arch == "click_unet":
        return (
            "Network: a residual 3-D U-Net over image and prompts, without SAM, trained whole. Automatic mode: none. "
            "Prompts: on any structure."
        )
    return (
        f"Encoder: {ENCODERS[model.backbone.arch]}, frozen; adapters in it: {_encoder_adapters(model)}. "
        f"Automatic mode: {_automatic(model)}. Clicks and boxes: {_interactive(model)}."
    )


def _encoder_adapters(model: ModelConfig) -> str:
    kind = ADAPTERS.get(model.enc_adapter.kind, model.enc_adapter.kind)
    branch = {"gate": "attention along the slices", "adapter": "attention along the slices"}
    return ", ".join([kind, *([branch[b]] if (b := model.enc_adapter.depth_branch) in branch else [])])


def _automatic(model: ModelConfig) -> str:
    source = model.source
    if model.prompts_only:
        return "none, it answers clicks and boxes only"
    name = SOURCES.get(source.kind, source.kind)
    if model.decoder.kind == "none":
        return f"the masks of {name}; SAM's decoder has no part in it"
    if model.decoder.kind == "mla":
        return f"{name}, and a decoder that aggregates all levels of the encoder"
    parts = {
        "masks": source.kind in ("query", "class") and source.mask and source.mask_prompt != "none",
        "boxes": source.box,
        "points": source.points != "none",
        "class tokens": source.kind == "query" and source.class_tokens,
    }
    given = [part for part, there in parts.items() if there] if source.kind in ("query", "class") else ["boxes"]
    listed = " and ".join([", ".join(given[:-1]), given[-1]]) if len(given) > 1 else "".join(given)
    return f"SAM's decoder, prompted with the {listed} of {name}"


def _interactive(model: ModelConfig) -> str:
    if not model.takes_prompts:
        return "not taken"
    conditions = {
        "hyper": "HyP-Adapter",
        "add": "prompt-conditioned adapters (sum)",
        "concat": "prompt-conditioned adapters (concatenation)",
    }
    mode = model.dec_tokens.condition.mode
    parts = [*([conditions[mode]] if mode in conditions else []), *(["click head"] if model.decoder.click_maps else [])]
    return "SAM's decoder" + (f" with {' and '.join(parts)}" if parts else "")
