"""The worker with the real engine: what comes through the pipes is what session and predictor give."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.config import presets
from MaskSAMCore.config.schema import Config
from MaskSAMCore.errors import InputError, MaskSAMError, ModelError
from MaskSAMCore.inference.predictor import Predictor
from MaskSAMCore.inference.prompts import Prompt
from MaskSAMCore.inference.session import Session
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker.client import EngineClient
from MaskSAMCore.worker.engine import Engine
from MaskSAMCore.zoo.installed import load_model
from Testing import flood_worker
from Testing.flood_worker import COMMAND
from Testing.toy_model import bright_scan, make_card, save_tiny
from Testing.workers import LONG_S, alive, apply, eventually, left, place, point, script

AFFINE = np.array([[-1.0, 0, 0, 40], [0, 1, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1]])
IN, BESIDE = (8, 15, 5), (12, 30, 5)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return place(monkeypatch, tmp_path)


def flood(**options: object) -> EngineClient:
    return EngineClient(command=COMMAND, device="cpu", threads=1, **options)


@pytest.mark.slow
def test_everything_a_session_answers_arrives(temporary: Path) -> None:
    volume, block = bright_scan(affine=AFFINE)
    network, card = flood_worker.Network(), flood_worker.load_card(Path("toy"))
    session = Session.open(network, card, volume)
    clicks = [Prompt(kind="point", position=IN), Prompt(kind="point", position=BESIDE, positive=False)]
    with flood() as engine:
        case = engine.open(volume.array, AFFINE, "toy", modality="MR")
        assert (case.shape, case.axis, case.model) == ((12, 40, 40), session.axis, "toy")
        assert [label["name"] for label in case.labels] == ["bright"]
        prompts = [point(*IN), point(*BESIDE, positive=False)]
        for count in (1, 2, 1):
            expected, found = session.prompt(1, clicks[:count]), engine.prompt(case, 1, prompts[:count])
            for name in ("structure", "box", "extent", "voxels", "axis", "quality", "worst", "encoded", "messages"):
                assert getattr(found, name) == getattr(expected, name), name
            assert np.array_equal(found.mask, expected.mask)
            assert found.mask.dtype == np.uint8
            assert found.suggestion == expected.suggestion
        three, meant = (
            session.prompt(2, clicks[:1], multimask=True),
            engine.prompt(case, 2, prompts[:1], multimask=True),
        )
        assert len(meant.candidates) == 3
        for a, b in zip(three.candidates, meant.candidates, strict=True):
            assert a.box == b.box
            assert a.quality == b.quality
            assert np.array_equal(a.mask, b.mask)
        assert engine.prompt(case, 1, prompts[:1]).encoded == 0
        mask = np.zeros(case.shape, np.uint8)
        apply(mask, engine.prompt(case, 3, prompts[:1]))
        apply(mask, engine.propagate(case, 3))
        assert np.array_equal(mask, block)
        apply(mask, engine.drop(case, 3))
        assert not mask.any()
        engine.release(case)
    assert left(temporary) == []


@pytest.mark.slow
def test_boxes_masks_and_millimetres(temporary: Path) -> None:
    volume, block = bright_scan(affine=AFFINE)
    with flood() as engine:
        case = engine.open(volume.array, AFFINE, "toy")
        at = volume.grid.to_ras(IN)
        assert engine.prompt(case, 1, [point(*at, space="ras")]).box == engine.prompt(case, 2, [point(*IN)]).box
        corners = [[4, 11, 5], [15, 22, 5]]
        found = engine.prompt(case, 3, [{"kind": "box", "corners": corners, "scope": "slice"}])
        assert found.box == (5, 6, 12, 22, 5, 15)
        assert found.mask.all()
        ras = volume.grid.to_ras(np.array(corners))[::-1]
        again = engine.prompt(case, 4, [{"kind": "box", "corners": ras, "scope": "slice", "space": "ras"}])
        assert again.box == found.box
        start = {"kind": "mask", "mask": block[3:6, 12:18, 5:9], "mask_box": (3, 12, 5)}
        given = engine.prompt(case, 5, [start])
        assert given.box == (3, 6, 12, 18, 5, 9)
        assert given.mask.all()
        assert len(left(temporary)) == 2
        assert engine.prompt(case, 5, [start, point(*IN)]).box is not None


@pytest.mark.slow
def test_automatic_segmentation_and_prompts(temporary: Path) -> None:
    volume, block = bright_scan(affine=AFFINE)
    predictor = Predictor.of(flood_worker.Network(), flood_worker.load_card(Path("toy")))
    roi = {"center": volume.grid.to_ras((9, 16, 5)).tolist(), "size": [12, 12, 3]}
    with flood() as engine:
        case = engine.open(volume.array, AFFINE, "toy")
        found = engine.segment(case, tta=True)
        expected = predictor.segment(volume, tta=True)
        (bright,) = found.blocks
        assert (bright.label, bright.name, found.windows) == (3, "bright", expected.windows)
        whole = np.zeros(case.shape, np.uint8)
        apply(whole, bright)
        assert np.array_equal(whole, expected.labels.array == 3)
        assert np.array_equal(whole, block)
        assert engine.segment(case, roi=[roi]).blocks[0].mask.sum() == 300
        ((box, click),) = engine.automatic(case, 3, [5])
        assert engine.prompt(case, 1, [box]).voxels == 100
        assert engine.prompt(case, 2, [click]).voxels == 100
        with pytest.raises(InputError):
            engine.automatic(case, 99)


@pytest.mark.slow
def test_encoding_ahead_makes_the_first_click_free(temporary: Path) -> None:
    volume, _ = bright_scan(affine=AFFINE)
    with flood() as engine:
        case = engine.open(volume.array, AFFINE, "toy")
        assert engine.encode(case, IN, slabs=30).result()["encoded"] > 1
        assert engine.prompt(case, 1, [point(*IN)]).encoded == 0
        again = engine.open(volume.array, AFFINE, "toy")
        assert engine.prompt(again, 1, [point(*IN)]).encoded == 0, "the same scan is the same slabs"


@pytest.mark.slow
def test_segmenting_makes_the_first_click_free(temporary: Path) -> None:
    volume, _ = bright_scan(affine=AFFINE)
    with flood() as engine:
        case = engine.open(volume.array, AFFINE, "toy")
        engine.segment(case)
        assert engine.prompt(case, 1, [point(*IN)]).encoded == 0


def test_a_model_is_kept_until_its_folder_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(path: Path, device: object) -> tuple:
        loaded.append(path.name)
        return flood_worker.load_model(path, device)

    monkeypatch.setattr("MaskSAMCore.zoo.installed.find_model", flood_worker.find_model)
    monkeypatch.setattr("MaskSAMCore.zoo.model_folder.load_card", flood_worker.load_card)
    monkeypatch.setattr("MaskSAMCore.zoo.installed.load_model", load)
    engine = Engine(device="cpu")
    first = engine._load("a")
    assert engine._load("a") is first
    assert engine._load("b") is not first
    assert loaded == ["a", "b"]
    card = flood_worker.load_card(Path("b"))
    monkeypatch.setattr(
        "MaskSAMCore.zoo.model_folder.load_card", lambda path: card.__class__(**vars(card) | {"weights_sha256": "c"})
    )
    engine._load("b")
    assert loaded == ["a", "b", "b"]


@pytest.mark.slow
def test_a_real_model_folder_through_the_real_command(temporary: Path) -> None:
    """The smallest network, untrained: its answer is noise, and the same noise on both sides of the pipe."""
    folder = save_tiny(temporary / "toy")
    volume, _ = bright_scan((4, 16, 16), AFFINE, at=(slice(1, 3), slice(4, 9), slice(4, 9)))
    session = Session.open(*load_model(folder), volume)
    expected = session.prompt(1, [Prompt(kind="point", position=(6, 6, 2))])
    with EngineClient(device="cpu", threads=1) as engine:
        assert "CPU" in engine.hello["device"]
        assert {"hippocampus-mr"} <= {model["name"] for model in engine.hello["models"]}
        with pytest.raises(ModelError, match="no such model"):
            engine.open(volume.array, AFFINE, "no-such-model")
        case = engine.open(volume.array, AFFINE, folder)
        found = engine.prompt(case, 1, [point(6, 6, 2)])
        assert found.box == expected.box
        assert np.array_equal(found.mask, expected.mask)
        assert found.encoded == 1
        assert found.quality == pytest.approx(expected.quality, abs=1e-5)
        click = engine.prompt(case, 1, [point(6, 6, 2), point(1, 1, 2, positive=False)])
        assert click.encoded == 0
    assert left(temporary) == []


@pytest.mark.slow
def test_a_student_segments_and_refuses_clicks(temporary: Path) -> None:
    """A network without prompts: the worker stays, nothing is encoded ahead, and a click is refused in words."""
    model = replace(presets.get("swin-tiny").model, classes=2, patch=(4, 16, 16))
    folder = save_tiny(temporary / "student", make_card(config=Config(model=model)))
    volume, _ = bright_scan((4, 16, 16), AFFINE, at=(slice(1, 3), slice(4, 9), slice(4, 9)))
    with EngineClient(device="cpu", threads=1) as engine:
        case = engine.open(volume.array, AFFINE, folder)
        assert engine.encode(case).result(LONG_S) == {"encoded": 0}
        with pytest.raises(ModelError, match="takes no clicks"):
            engine.prompt(case, 1, [point(6, 6, 2)])
        found = engine.segment(case)
        assert found.windows == 1
        assert len(found.blocks) == 1
    assert left(temporary) == []


@pytest.mark.slow
def test_cancel_and_a_click_in_the_middle_of_real_encoding(temporary: Path) -> None:
    volume, _ = bright_scan()
    with EngineClient(device="cpu", threads=1) as engine:
        case = engine.open(volume.array, AFFINE, save_tiny(temporary / "toy"))
        job = engine.encode(case)
        assert eventually(lambda: job.progress)
        job.cancel()
        with pytest.raises(Cancelled):
            job.result(LONG_S)
        again = engine.encode(case, (1, 1, 1))
        assert eventually(lambda: again.progress)
        assert engine.prompt(case, 1, [point(*IN)]).mask.dtype == np.uint8
        assert not again.done()
    with pytest.raises(MaskSAMError, match="closed"):
        again.result(LONG_S)
    assert left(temporary) == []


DEATH = """
import os, signal, sys, time
from MaskSAMCore.progress import Cancelled
from MaskSAMCore.worker.client import EngineClient
from Testing.toy_model import bright_scan
volume, _ = bright_scan()
engine = EngineClient(device="cpu", threads=1)
job = engine.encode(engine.open(volume.array, volume.grid.affine, sys.argv[1]))
while not job.progress:
    time.sleep(0.01)
print(engine.hello["pid"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="NOT TESTED HERE: POSIX signals and /proc")
def test_the_client_dies_in_the_middle_of_real_encoding(temporary: Path) -> None:
    client = script(DEATH, str(save_tiny(temporary / "toy")))
    worker = int(client.stdout.readline())
    client.wait()
    assert eventually(lambda: not alive(worker))
    assert eventually(lambda: left(temporary) == [])
