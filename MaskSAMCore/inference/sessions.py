"""Opens a scan with any model: one that knows structures, or one for structures of any kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.open_set import OpenSetSession
from MaskSAMCore.inference.session import Session
from MaskSAMCore.network.click_unet import ClickUNet
from MaskSAMCore.network.segmenter import Segmenter
from MaskSAMCore.progress import Progress, no_progress
from MaskSAMCore.volume import Volume

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

AnySession = Session | OpenSetSession


def open_session(
    network: Segmenter,
    card: ModelCard,
    volume: Volume,
    *,
    device: torch.device | str = "cpu",
    cache: SlabCache | None = None,
    progress: Progress = no_progress,
) -> AnySession:
    """Open a scan with a model; see `Session.open` and `OpenSetSession.open`."""
    if isinstance(network, ClickUNet):
        return OpenSetSession.open(network, card, volume, device=device, progress=progress)
    return Session.open(network, card, volume, device=device, cache=cache, progress=progress)
