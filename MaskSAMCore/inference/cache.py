"""Encoded slabs that are kept: on the device first, then in the computer's memory, then not (model.md §13.3).

The key is made of what the encoder reads: the window's numbers and the weights. A slab of another scan, place or
model has another key, so a stale one cannot be used (faults.md row 32).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from MaskSAMCore.config.serialize import to_dict
from MaskSAMCore.network.types import Slab

if TYPE_CHECKING:
    from MaskSAMCore.zoo.model_folder import ModelCard

GIB = 1 << 30
HALF_MAX = 65504.0
CPU = torch.device("cpu")


def model_key(network: nn.Module, card: ModelCard) -> bytes:
    """What identifies the encoder: the weights' hashes and the configuration.

    A network that was not loaded from a model's folder, so that no hash vouches for it, is read itself.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(to_dict(card.config.model), sort_keys=True).encode())
    if card.weights_sha256:
        base = card.base.sha256 if card.base else ""
        digest.update(f"{card.weights_sha256} {base}".encode())
        return digest.digest()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()


def slab_key(window: np.ndarray, model: bytes) -> bytes:
    """Key of an encoded window (M, D, H, W), as the encoder gets it."""
    digest = hashlib.blake2b(model, digest_size=16)
    digest.update(f"{window.shape} {window.dtype}".encode())
    digest.update(np.ascontiguousarray(window).view(np.uint8).data)
    return digest.digest()


def halved(slab: Slab) -> Slab:
    """The slab in half precision, which is how it is kept and, so that no answer depends on that, how it is used."""
    return Slab(embed=_half(slab.embed), fine=None if slab.fine is None else _half(slab.fine))


def _half(x: Tensor) -> Tensor:
    return x.detach().clamp(-HALF_MAX, HALF_MAX).half()


def keeper(cache: SlabCache, model: bytes) -> Callable[[Tensor, Slab], None]:
    """Puts a batch of patches (B, M, D, H, W) and their slab into the cache, each patch by itself."""

    def keep(patches: Tensor, slab: Slab) -> None:
        for index, patch in enumerate(patches.cpu().numpy()):
            one = slice(index, index + 1)
            part = Slab(embed=slab.embed[one], fine=None if slab.fine is None else slab.fine[one])
            cache.put(slab_key(patch, model), halved(part))

    return keep


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """How the cache is doing: bytes and slabs it holds, and how often it was asked."""

    slabs: int
    device_bytes: int
    ram_bytes: int
    hits: int
    misses: int
    spilled: int
    dropped: int


class SlabCache:
    """Slabs by key, the least recently used given up first; may be shared by sessions, not by threads.

    Args:
        device_bytes: Most that is kept where it was computed.
        ram_bytes: Most that is kept in the computer's memory when that is full; 0 drops it at once.
    """

    def __init__(self, device_bytes: int = GIB, ram_bytes: int = 2 * GIB) -> None:
        self.device_bytes, self.ram_bytes = device_bytes, ram_bytes
        self._near: OrderedDict[bytes, Slab] = OrderedDict()
        self._far: OrderedDict[bytes, Slab] = OrderedDict()
        self._hits = self._misses = self._spilled = self._dropped = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._near or key in self._far

    def __len__(self) -> int:
        return len(self._near) + len(self._far)

    @property
    def capacity(self) -> int:
        """Bytes that it keeps at most."""
        return self.device_bytes + self.ram_bytes

    @property
    def state(self) -> CacheState:
        return CacheState(
            slabs=len(self),
            device_bytes=_size(self._near),
            ram_bytes=_size(self._far),
            hits=self._hits,
            misses=self._misses,
            spilled=self._spilled,
            dropped=self._dropped,
        )

    def get(self, key: bytes, device: torch.device) -> Slab | None:
        """The slab in half precision on `device`, or None."""
        slab = self._near.pop(key, None)
        if slab is None:
            slab = self._far.get(key)
            if slab is None:
                self._misses += 1
                return None
            # to the device first: if its memory is full the slab is still here
            slab = slab.to(device)
            del self._far[key]
        elif slab.embed.device != device:
            slab = slab.to(device)
        self._hits += 1
        self.put(key, slab)
        return slab

    def put(self, key: bytes, slab: Slab) -> None:
        """Keep a slab; older ones move on to the computer's memory or go."""
        self._near.pop(key, None)
        self._far.pop(key, None)
        self._near[key] = slab
        while self._near and _size(self._near) > self.device_bytes:
            self._move()
        self._shrink()

    def spill(self) -> None:
        """Give the device's memory back: everything moves to the computer's."""
        while self._near:
            self._move()
        self._shrink()

    def clear(self) -> None:
        """Forget every slab."""
        self._dropped += len(self)
        self._near.clear()
        self._far.clear()

    def _move(self) -> None:
        key, slab = self._near.popitem(last=False)
        if slab.nbytes > self.ram_bytes:
            self._dropped += 1
            return
        self._far[key] = slab.to(CPU)
        self._spilled += 1

    def _shrink(self) -> None:
        while self._far and _size(self._far) > self.ram_bytes:
            self._far.popitem(last=False)
            self._dropped += 1


def _size(slabs: Mapping[bytes, Slab]) -> int:
    return sum(slab.nbytes for slab in slabs.values())
