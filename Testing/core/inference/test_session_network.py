"""The interactive session with real networks: the smallest, untrained, and the bundled model on a real scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from MaskSAMCore.inference.cache import SlabCache
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.io.images import read_labels, read_volume
from MaskSAMCore.network.build import build_model
from MaskSAMCore.network.masksam import MaskSAM
from MaskSAMCore.volume import Volume
from MaskSAMCore.zoo import installed
from MaskSAMCore.zoo.model_folder import ModelCard
from Testing.toy_model import bright_scan, make_card
from Testing.toy_session import box, click

MODEL = "hippocampus-mr"
BLOCK = (slice(2, 6), slice(7, 13), slice(4, 11))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fine"])
def tiny(request: pytest.FixtureRequest) -> tuple[MaskSAM, ModelCard, Volume]:
    """The smallest network, also with everything that was added for clicks, and a scan of a few windows."""
    card = make_card()
    model = card.config.model
    decoder = replace(model.decoder, fine_masks=request.param, slice_offsets=request.param)
    card = replace(card, config=replace(card.config, model=replace(model, decoder=decoder)))
    torch.manual_seed(0)
    return build_model(card.config.model).eval(), card, bright_scan((8, 20, 16), at=BLOCK)[0]


@pytest.fixture(scope="module")
def bundled(shared: Path, mobile_sam: Path) -> tuple[MaskSAM, ModelCard, Volume, np.ndarray]:
    network, card = installed.load_model(MODEL, "cpu")
    folder, name = shared / "data" / "hippocampus", card.provenance["validation_cases"][0]
    volume = read_volume(folder / "imagesTr" / f"{name}_0000.nii.gz")
    return network, card, volume, read_labels(folder / "labelsTr" / f"{name}.nii.gz").array


def prompts_of(structure: np.ndarray) -> list[Prompt]:
    """A click in the middle of a structure, one beside it, and a box, in two slices."""
    k, j, i = (int(v) for v in np.argwhere(structure)[structure.sum() // 2])
    rows, columns = np.nonzero(structure[k])
    frame = box((columns.min(), rows.min(), k), (columns.max(), rows.max(), k))
    beside = click(i, int(rows.min()) - 2, k, positive=False)
    return [click(i, j, k), beside, frame, click(i, j, k + 1, scope="volume")]


def follow(network: MaskSAM, card: ModelCard, volume: Volume, prompts: list[Prompt]) -> None:
    """One list, step by step and at once, with a cache and without: the same voxels, and no needless encoding."""
    session, seen = Session.open(network, card, volume), []
    for count in range(1, len(prompts) + 1):
        update = session.prompt(1, prompts[:count])
        assert update.encoded == (count == 1) or count == len(prompts)
        assert all(0 <= q <= 1 for q in update.quality.values())
        seen.append(session.mask(1))
    bare = Session.open(network, card, volume, cache=SlabCache(0, 0))
    bare.prompt(5, prompts)
    assert np.array_equal(bare.mask(5), seen[-1])
    for count in (2, 1, 3):
        session.prompt(1, prompts[:count])
        assert np.array_equal(session.mask(1), seen[count - 1])
    before = session.encodes
    session.prompt(2, prompts)
    assert session.encodes == before
    assert np.array_equal(session.mask(2), seen[-1])


@pytest.mark.slow
def test_the_smallest_network_goes_the_whole_way(tiny):
    network, card, volume = tiny
    follow(network, card, volume, prompts_of(volume.array > 100))


@pytest.mark.slow
def test_every_kind_of_prompt_reaches_the_smallest_network(tiny):
    network, card, volume = tiny
    session = Session.open(network, card, volume)
    assert len(session.prompt(1, [click(7, 10, 4)], multimask=True).candidates) == 3
    for number, prompt in enumerate(
        (
            box((4, 9, 2), (10, 9, 5)),
            box((6, 7, 2), (6, 12, 5)),
            box((4, 7, 2), (10, 12, 5)),
            box((1, 1, 4), (14, 18, 4)),
            click(7, 10, 4, scope="slice"),
            click(7, 10, 4, candidate=2),
        )
    ):
        assert session.prompt(number + 2, [prompt]).axis == 0
    mask = Prompt(kind="mask", mask=np.ones((3, 5, 5), np.uint8), mask_box=(3, 8, 5))
    assert session.prompt(20, [mask, click(7, 10, 4)]).encoded == 0
    assert isinstance(session.automatic(3), list)


@pytest.mark.slow
def test_the_smallest_network_answers_tiny_scans(tiny):
    network, card, _ = tiny
    for shape in ((1, 1, 2), (1, 9, 7), (3, 40, 5)):
        volume, _ = bright_scan(shape, at=tuple(slice(0, n) for n in (1, 1, 1)))
        session = Session.open(network, card, volume)
        update = session.prompt(1, [click(0, 0, 0, scope="volume")])
        assert session.mask(1).shape == shape
        assert update.voxels == session.mask(1).sum()


@pytest.mark.slow
def test_the_real_network_on_a_real_scan(bundled):
    network, card, volume, labels = bundled
    follow(network, card, volume, prompts_of(labels == 1))


@pytest.mark.slow
def test_automatic_prompts_of_the_real_network_lie_on_the_structures(bundled):
    network, card, volume, labels = bundled
    session = Session.open(network, card, volume)
    for label in (1, 2):
        found = session.automatic(label)
        assert len(found) > 5
        places = [tuple(int(v + 0.5) for v in point.position[::-1]) for _, point in found]
        assert np.mean([labels[place] == label for place in places]) > 0.6
        assert np.mean([labels[place] > 0 for place in places]) > 0.8
    assert session.prompt(9, list(found[3])).voxels > 0
