"""Cache of encoded slabs: on the device, then in the computer's memory, then dropped (model.md §13.3).

The key is a hash of what the encoder reads: the intensities of the window, and the weights. A slab of another scan,
place or model has another key, so that a stale one cannot be used (faults.md row 32).
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
    """Hash of an encoder: its configuration and the hashes of its weights.

    The weights themselves are hashed where the card names no hash of them.
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
    """Key of a window (M, D, H, W) as the encoder gets it, for a model of that `model_key`."""
    digest = hashlib.blake2b(model, digest_size=16)
    digest.update(f"{window.shape} {window.dtype}".encode())
    digest.update(np.ascontiguousarray(window).view(np.uint8).data)
    return digest.digest()


def halved(slab: Slab) -> Slab:
    """The slab in half precision. Every slab is used like this, so that no answer depends on the cache."""
    return Slab(embed=_half(slab.embed), fine=None if slab.fine is None else _half(slab.fine))


def _half(x: Tensor) -> Tensor:
    return x.detach().clamp(-HALF_MAX, HALF_MAX).half()


def cache_writer(cache: SlabCache, model: bytes) -> Callable[[Tensor, Slab], None]:
    """A function that caches the slab of a batch of patches (B, M, D, H, W), each patch by itself."""

    def keep(patches: Tensor, slab: Slab) -> None:
        for index, patch in enumerate(patches.cpu().numpy()):
            one = slice(index, index + 1)
            part = Slab(embed=slab.embed[one], fine=None if slab.fine is None else slab.fine[one])
            cache.put(slab_key(patch, model), halved(part))

    return keep


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """Statistics of a cache: slabs and bytes that it holds, and counts since it was made."""

    slabs: int
    device_bytes: int
    ram_bytes: int
    hits: int
    misses: int
    spilled: int
    dropped: int


class SlabCache:
    """Slabs by key; the least recently used goes first. Sessions may share a cache, threads may not.

    Args:
        device_bytes: Limit of what stays on the device that computed it.
        ram_bytes: Limit of what moves on to the computer's memory; 0 for none.
    """

    def __init__(self, device_bytes: int = GIB, ram_bytes: int = 2 * GIB) -> None:
        self.device_bytes, self.ram_bytes = device_bytes, ram_bytes
        self._on_device: OrderedDict[bytes, Slab] = OrderedDict()
        self._in_ram: OrderedDict[bytes, Slab] = OrderedDict()
        self._hits = self._misses = self._spilled = self._dropped = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._on_device or key in self._in_ram

    def __len__(self) -> int:
        return len(self._on_device) + len(self._in_ram)

    @property
    def capacity(self) -> int:
        """Most bytes that are kept, on the device and in the computer's memory."""
        return self.device_bytes + self.ram_bytes

    @property
    def state(self) -> CacheState:
        return CacheState(
            slabs=len(self),
            device_bytes=_size(self._on_device),
            ram_bytes=_size(self._in_ram),
            hits=self._hits,
            misses=self._misses,
            spilled=self._spilled,
            dropped=self._dropped,
        )

    def get(self, key: bytes, device: torch.device) -> Slab | None:
        """The slab in half precision on `device`, or None."""
        slab = self._on_device.pop(key, None)
        if slab is None:
            slab = self._in_ram.get(key)
            if slab is None:
                self._misses += 1
                return None
            # deleted after the copy: if the device's memory is full, the slab is still cached
            slab = slab.to(device)
            del self._in_ram[key]
        elif slab.embed.device != device:
            slab = slab.to(device)
        self._hits += 1
        self.put(key, slab)
        return slab

    def put(self, key: bytes, slab: Slab) -> None:
        """Add a slab; older ones move to the computer's memory or are dropped."""
        self._on_device.pop(key, None)
        self._in_ram.pop(key, None)
        self._on_device[key] = slab
        while self._on_device and _size(self._on_device) > self.device_bytes:
            self._move()
        self._shrink()

    def spill(self) -> None:
        """Move all slabs from the device to the computer's memory."""
        while self._on_device:
            self._move()
        self._shrink()

    def clear(self) -> None:
        """Drop all slabs."""
        self._dropped += len(self)
        self._on_device.clear()
        self._in_ram.clear()

    def _move(self) -> None:
        key, slab = self._on_device.popitem(last=False)
        if slab.nbytes > self.ram_bytes:
            self._dropped += 1
            return
        self._in_ram[key] = slab.to(CPU)
        self._spilled += 1

    def _shrink(self) -> None:
        while self._in_ram and _size(self._in_ram) > self.ram_bytes:
            self._in_ram.popitem(last=False)
            self._dropped += 1


def _size(slabs: Mapping[bytes, Slab]) -> int:
    return sum(slab.nbytes for slab in slabs.values())
