"""faults.md row 32: an embedding of another image, place or model is never used."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.volume import Volume
from Testing.toy_model import bright_scan
from Testing.toy_session import Flood, click, open_session

IN = click(8, 15, 5, scope="volume")


def test_another_scan_of_the_same_size_and_place():
    cache = SlabCache()
    volume, block = bright_scan()
    open_session(volume, cache=cache).prompt(1, [IN])
    other, moved = bright_scan(at=(slice(4, 9), slice(10, 20), slice(6, 12)))
    session = open_session(other, cache=cache)
    update = session.prompt(1, [IN])
    assert update.encoded > 0
    assert np.array_equal(session.mask(1) > 0, moved)
    assert not np.array_equal(block, moved)


def test_one_changed_voxel_is_another_image():
    cache = SlabCache()
    volume, _ = bright_scan()
    open_session(volume, cache=cache).prompt(1, [IN])
    changed = Volume(array=volume.array.copy(), grid=volume.grid)
    changed.array[5, 15, 8] += 0.5
    assert open_session(changed, cache=cache).prompt(1, [IN]).encoded > 0
    assert open_session(volume, cache=cache).prompt(1, [IN]).encoded == 0


def test_other_weights_of_the_same_architecture():
    cache = SlabCache()
    volume, _ = bright_scan()
    open_session(volume, Flood(), cache=cache).prompt(1, [IN])
    assert open_session(volume, Flood(level=0.31), cache=cache).prompt(1, [IN]).encoded > 0
    assert open_session(volume, Flood(), cache=cache).prompt(1, [IN]).encoded == 0


def test_the_scan_that_was_given_may_change_afterwards():
    """What the session answers from is its own copy, and that cannot be written."""
    volume, block = bright_scan()
    session = open_session(volume)
    volume.array[:] = 0
    session.prompt(1, [IN])
    assert np.array_equal(session.mask(1) > 0, block)
    with pytest.raises(ValueError, match="read-only"):
        session._slabs.image[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        session._slabs.padded[:] = 0


def test_two_places_in_a_scan_never_share_an_embedding():
    volume, _ = bright_scan()
    session = open_session(volume)
    windows = session._slabs.around((0, 0, 0))
    keys = {session._slabs._key(window) for window in windows}
    assert len(keys) == len(windows)


def test_with_the_real_network_too():
    from dataclasses import replace

    from MaskSAMCore.inference.session import Session
    from MaskSAMCore.network.build import build_model
    from Testing.toy_model import make_card

    card = make_card()
    torch.manual_seed(0)
    first, second = (build_model(card.config.model).eval() for _ in range(2))
    volume, _ = bright_scan()
    cache = SlabCache()
    Session.open(first, card, volume, cache=cache).prompt(1, [click(8, 15, 5)])
    assert Session.open(second, card, volume, cache=cache).prompt(1, [click(8, 15, 5)]).encoded == 1
    assert Session.open(first, card, volume, cache=cache).prompt(1, [click(8, 15, 5)]).encoded == 0
    hashed = replace(card, weights_sha256="1" * 64)
    assert Session.open(first, hashed, volume, cache=cache).prompt(1, [click(8, 15, 5)]).encoded == 1
