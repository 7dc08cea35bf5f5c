"""model.md §13.3: what the cache of encoded slabs keeps, moves, drops, and what it tells apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from MaskSAMCore.inference.cache import SlabCache, halved, model_key, slab_key
from MaskSAMCore.network.types import Slab
from Testing.toy_model import make_card
from Testing.toy_session import Flood

CPU = torch.device("cpu")


def slab(value: float = 0.0, size: int = 10) -> Slab:
    """One of `size` * 2 bytes."""
    return Slab(embed=torch.full((1, size, 1, 1, 1), value, dtype=torch.float16))


def key(number: int) -> bytes:
    return bytes([number])


def value(cache: SlabCache, number: int) -> float | None:
    found = cache.get(key(number), CPU)
    return None if found is None else float(found.embed.flatten()[0])


def test_what_was_put_is_found_and_counted():
    cache = SlabCache()
    assert value(cache, 1) is None
    assert key(1) not in cache
    assert len(cache) == 0
    cache.put(key(1), slab(5))
    assert value(cache, 1) == 5
    assert key(1) in cache
    state = cache.state
    assert (state.hits, state.misses, state.slabs, state.device_bytes, state.ram_bytes) == (1, 1, 1, 20, 0)


def test_the_least_recently_used_moves_on_and_then_goes():
    cache = SlabCache(device_bytes=40, ram_bytes=20)
    for number in (1, 2, 3):
        cache.put(key(number), slab(number))
    assert cache.state.device_bytes == 40
    assert cache.state.ram_bytes == 20
    assert cache.state.spilled == 1
    assert value(cache, 1) == 1, "back on the device, and 2 moved instead"
    cache.put(key(4), slab(4))
    assert [value(cache, n) for n in (2, 3, 1, 4)] == [None, 3, 1, 4]
    assert cache.state.dropped == 1


def test_budgets_hold_whatever_comes():
    cache, rng = SlabCache(device_bytes=300, ram_bytes=200), np.random.default_rng(0)
    for _ in range(500):
        number = int(rng.integers(40))
        if rng.random() < 0.5:
            cache.put(key(number), slab(number, size=5 + number * 3))
        else:
            assert value(cache, number) in (None, number)
        assert cache.state.device_bytes <= 300
        assert cache.state.ram_bytes <= 200
    assert cache.state.slabs == len(cache) > 0


@pytest.mark.parametrize("budgets", [(0, 0), (10, 10)])
def test_a_slab_beyond_the_budgets_is_not_kept(budgets: tuple[int, int]):
    cache = SlabCache(*budgets)
    cache.put(key(1), slab())
    assert len(cache) == 0
    assert cache.state.device_bytes == cache.state.ram_bytes == 0
    assert cache.state.dropped == 1


def test_spilling_empties_the_device_and_clearing_everything():
    cache = SlabCache(device_bytes=100, ram_bytes=40)
    for number in (1, 2, 3):
        cache.put(key(number), slab(number))
    cache.spill()
    assert cache.state.device_bytes == 0
    assert cache.state.ram_bytes == 40
    assert [value(cache, n) for n in (1, 2, 3)] == [None, 2, 3]
    cache.clear()
    assert len(cache) == 0
    assert cache.state.dropped == 3


def test_slabs_are_halved_without_becoming_infinite():
    half = halved(Slab(embed=torch.tensor([[1e6, -1e6, 0.1]]), fine=torch.ones(1, 2)))
    assert half.embed.dtype == half.fine.dtype == torch.float16
    assert half.embed.isfinite().all()
    assert half.nbytes == 10


def test_keys_tell_windows_apart():
    window = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
    one = slab_key(window, b"model")
    assert one == slab_key(window.copy(), b"model")
    changed = window.copy()
    changed[0, 1, 2, 3] = np.nextafter(changed[0, 1, 2, 3], np.float32(9))
    others = [slab_key(changed, b"model"), slab_key(window, b"other"), slab_key(window.reshape(1, 4, 2, 4), b"model")]
    assert len({one, *others}) == 4
    assert slab_key(window[:, ::-1], b"model") != one


def test_keys_tell_models_apart():
    card, network = make_card(), Flood()
    one = model_key(network, card)
    assert one == model_key(Flood(), make_card(name="another name"))
    assert model_key(Flood(level=0.2), card) != one, "no hash in the card: the network itself is read"
    hashed = replace(card, weights_sha256="1" * 64)
    assert model_key(network, hashed) != model_key(network, replace(card, weights_sha256="2" * 64))
    other = replace(card.config.model, patch=(2, 16, 16))
    assert model_key(network, replace(card, config=replace(card.config, model=other))) != one


@pytest.mark.gpu
def test_on_a_gpu_slabs_spill_to_the_computers_memory_and_come_back():
    device, cache = torch.device("cuda"), SlabCache(device_bytes=100, ram_bytes=100)
    cache.put(key(1), slab(3).to(device))
    cache.spill()
    assert cache.state.ram_bytes == 20
    assert cache._in_ram[key(1)].embed.device.type == "cpu"
    assert cache.get(key(1), device).embed.device.type == "cuda"
    assert cache.state.device_bytes == 20
