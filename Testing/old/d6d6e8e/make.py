"""Makes the samples of this folder; runs in a checkout of commit d6d6e8e, see README.md."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from MaskSAMCore.config_json import from_dict, override, to_dict
from MaskSAMCore.modelfolder import ModelCard, save_model
from MaskSAMCore.recipe import read_recipe
from safetensors.torch import load_file

from MaskSAMCore import prepare, presets, segment, train
from MaskSAMCore.data.save import save_case
from MaskSAMCore.io.images import read_volume
from MaskSAMCore.labels import Label, LabelTable
from MaskSAMCore.network.build import build_model
from MaskSAMCore.terminology import lookup
from MaskSAMCore.training import checkpoint
from MaskSAMCore.training import run as runs
from MaskSAMCore.volume import Grid, LabelMap, Volume
from MaskSAMCore.worker.client import EngineClient
from Testing.phantom import phantom_case
from Testing.slicer import environment
from Testing.slicer import rig as rigs
from Testing.slicer.toy_engine import ToyEngine

CASES = 5
SHAPE = (8, 32, 32)
OBLIQUE = np.array([[-0.9, 0.1, 0, 20], [0.1, 0.9, 0, -7], [0, 0, 2.5, 3], [0, 0, 0, 1]])
RIGHT_HANDED = OBLIQUE @ np.diag([1, -1, 1, 1])
"""Slicer stores the slices of other volumes in reverse, and their voxels have other numbers when they are read."""
LABELS = LabelTable(labels=(lookup("liver").label(1), Label(id=2, name="Dark cube", color=(1, 2, 3))))
BUNDLED = ("cardiac-cine-mr", "headneck-ct", "hippocampus-mr")
STOPPED = 216
"""The step after which the interrupted run has its last checkpoint."""
SETTINGS = (
    "model.stem.kind=repeat",
    "model.stem.upsample=2",
    "model.patch=[4,32,32]",
    "model.loss.assignment=own",
    "model.loss.generator=1",
    "model.decoder.kind=none",
    "model.decoder.click_masks=true",
    "model.source.box=false",
    "model.source.fusion=mask",
    "model.source.class_tokens=false",
    "model.source.queries=3",
    "model.source.in_plane=3",
    "model.source.widths=[4,4,4]",
    "model.source.image_widths=[8,8,8]",
    "model.enc_adapter.kind=none",
    "model.depth.pe_encoder=false",
    "model.depth.pe_decoder=factorised",
    'model.dec_tokens.slots=["t2i"]',
    "model.dec_tokens.ratio=0.03125",
    "model.dec_image.ratio=0.03125",
    "train.precision=fp32",
    "train.frozen_copies=0",
    "train.iterations=12",
    "train.ema=0.9",
)
STAGES = (
    ("train.mode=auto", "train.lr=5e-3", "train.epochs=20", "train.frozen_epochs=20", "train.generator_epochs=20"),
    ("train.mode=prompt", "train.keep_generator=true", "train.epochs=2", "train.frozen_epochs=2"),
)


# -- small files -----------------------------------------------------------------------------------------------------


def patterned(model: torch.nn.Module, *, frozen: bool) -> torch.nn.Module:
    """Give the large tensors that are trained, or all of them, values that repeat, which compress better."""
    table = torch.randn(509, generator=torch.Generator().manual_seed(1))
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point() and tensor.numel() > 4096 and (frozen or name not in fixed):
            places = torch.arange(tensor.numel()) % len(table)
            tensor.copy_(rounded(table[places].view_as(tensor) * float(tensor.std())))
    return model


def rounded(tensor: torch.Tensor, bits: int = 5) -> torch.Tensor:
    """With so many bits of mantissa, which compress better."""
    if tensor.dtype != torch.float32 or tensor.numel() < 2:
        return tensor
    drop = 23 - bits
    whole = tensor.contiguous().view(torch.int32)
    return ((whole >> drop) << drop).view(torch.float32)


def pack(folder: Path, archive: Path) -> None:
    """A folder as .tar.xz, without owners and times."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if info.isdir() else 0o644
        return info

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        tar.add(folder, folder.name, filter=plain)


def write(path: Path, entries: dict[str, Any]) -> None:
    """JSON with an entry a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


# -- samples ---------------------------------------------------------------------------------------------------------


def make_cases(out: Path) -> Path:
    """Training cases as Slicer's module and the worker save them."""
    for number in range(CASES):
        image, classes = phantom_case(number, SHAPE)
        grid = Grid(shape=SHAPE, affine=OBLIQUE)
        volume = Volume(array=np.rint(image), grid=grid, source="scan", modality="MR")
        save_case(out / "cases", volume, LabelMap(array=classes, grid=grid, labels=LABELS), name=f"Scan {number}")
    return out / "cases"


def make_recipes(out: Path, resources: Path) -> Path:
    """A user's recipe that sets every key, the three that came with the program, and what they lead to."""
    folder, config = out / "recipes", to_dict(override(presets.get("tiny"), list(SETTINGS)))
    settings = [f"{key}={json.dumps(value)}" for key, value in leaves(config) if key != "preset"]
    stages = [{"about": f"stage {n}", "settings": list(each)} for n, each in enumerate(STAGES, 1)]
    text = {"about": "Every key is set.", "data": "phantoms", "preset": "tiny", "settings": settings, "stages": stages}
    text["card"] = {"description": "Finds balls.", "licence": "CC0"}
    folder.mkdir()
    (folder / "phantoms.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    for name in BUNDLED:
        shutil.copyfile(resources / "Recipes" / f"{name}.json", folder / f"{name}.json")
    expected = {}
    for path in sorted(folder.glob("*.json")):
        recipe = read_recipe(str(path))
        all_settings = [[*recipe.settings, *stage.settings] for stage in recipe.stages]
        expected[path.stem] = [to_dict(override(presets.get(recipe.preset), each)) for each in all_settings]
    write(out / "configurations.json", expected)
    return folder / "phantoms.json"


def leaves(config: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Every key that --set takes, with its value."""
    found = []
    for key, value in config.items():
        found += leaves(value, f"{above}{key}.") if isinstance(value, dict) else [(above + key, value)]
    return found


class Interrupted(BaseException):
    """The power went."""


@contextlib.contextmanager
def small_networks(*, frozen: bool) -> Iterator[None]:
    """Trainings start from a `patterned` network."""
    new_model = runs.new_model

    def patched(*options: Any) -> Any:
        model, base = new_model(*options)
        return patterned(model, frozen=frozen), base

    runs.new_model = patched
    yield
    runs.new_model = new_model


def make_run(out: Path, scratch: Path, cases: Path, recipe: Path) -> Path:
    """The cache, and a recipe's run that was interrupted in its first stage. Returns the cache."""
    run, cache = scratch / "run", scratch / "cache"
    assert prepare.main([str(cases), "-o", str(cache), "--preset", "tiny", *words(SETTINGS)]) == 0
    pack(cache, out / "cache.tar.xz")
    save = checkpoint.save

    def watched(folder: Path, state: checkpoint.Checkpoint) -> Path:
        if state.step < STOPPED:
            return save(folder, state)
        shutil.rmtree(folder)
        tensors = {name: rounded(tensor) for name, tensor in state.tensors.items()}
        save(folder, checkpoint.Checkpoint(tensors=tensors, meta=state.meta))
        raise Interrupted

    checkpoint.save = watched
    with small_networks(frozen=False), contextlib.suppress(Interrupted):
        train.main([str(cache), "-o", str(run), "--recipe", str(recipe), "--device", "cpu"])
    checkpoint.save = save
    for path in [*run.rglob("*.png"), *run.rglob("model")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    pack(run, out / "run.tar.xz")
    return cache


def words(settings: tuple[str, ...]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def make_model(out: Path, scratch: Path, cache: Path, recipe: Path) -> Path:
    """The model of a whole run of the recipe, with rounded weights."""
    with small_networks(frozen=True):
        assert train.main([str(cache), "-o", str(scratch / "whole"), "--recipe", str(recipe), "--device", "cpu"]) == 0
    trained = scratch / "whole" / "model"
    card = from_dict(ModelCard, json.loads((trained / "model.json").read_text(encoding="utf-8")))
    tensors = {name: rounded(each.float()) for name, each in load_file(str(trained / "weights.safetensors")).items()}
    folder = save_model(scratch / "model", card, tensors, (trained / "README.md").read_text(encoding="utf-8"))
    pack(folder, out / "model.tar.xz")
    return folder


def make_results(out: Path, scratch: Path, cases: Path, model: Path) -> None:
    """What the model finds in the first case by itself, and where it is clicked."""
    scan = cases / "imagesTr" / min(path.name for path in (cases / "imagesTr").iterdir())
    (out / "results").mkdir()
    target = out / "results" / "found.seg.nrrd"
    assert segment.main([str(scan), "-m", str(model), "-o", str(target), "--device", "cpu"]) == 0
    volume = read_volume(scan)
    k, j, i = np.argwhere(phantom_case(0, SHAPE)[1] == 1).mean(axis=0).round()
    prompts = [{"kind": "point", "position": [i, j, k], "positive": True, "scope": "slab"}]
    engine = EngineClient(device="cpu", threads=1)
    opened = {"volume": volume.array, "affine": volume.grid.affine, "model": str(model)}
    engine.submit("open", case=1, modality="MR", source="scan", **opened).result()
    update = engine.submit("prompt", case=1, structure=1, prompts=prompts).result()
    engine.close()
    mask = np.zeros(SHAPE, np.uint8)
    k0, k1, j0, j1, i0, i1 = update.box
    mask[k0:k1, j0:j1, i0:i1] = update.mask
    np.savez_compressed(out / "results" / "clicked.npz", position=[i, j, k], mask=mask)


def make_bundled(out: Path, resources: Path) -> None:
    """The cards of the bundled models, and the tensors of the networks that were built from them."""
    for name in BUNDLED:
        folder = out / "bundled" / name
        folder.mkdir(parents=True)
        shutil.copyfile(resources / "Models" / name / "model.json", folder / "model.json")
        card = from_dict(ModelCard, json.loads((folder / "model.json").read_text(encoding="utf-8")))
        state = build_model(card.config.model).state_dict()
        lines = "".join(f"{key} {tuple(value.shape)}\n" for key, value in sorted(state.items()))
        (folder / "tensors.txt.gz").write_bytes(gzip.compress(lines.encode(), 9, mtime=0))


class Engine(ToyEngine):
    """Takes the requests of a whole controller."""

    def _encode(self, **_: Any) -> dict[str, int]:
        return {"encoded": 0}


def make_scene(out: Path, scratch: Path) -> None:
    """A scene as a user left it: two structures found by a model, clicks and boxes in one, another one begun."""
    from SlicerMaskSAMLib.choices import Neighbours, Region, Scope, Speed

    from SlicerMaskSAMLib import bridge

    scene = environment.start()
    noise = np.random.default_rng(0).integers(0, 8, (12, 20, 24)).astype(np.int16)
    volume = environment.add_volume(noise, RIGHT_HANDED, "Scan")
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
    view.SetOrientationToAxial()
    view.SetSliceOffset(float(bridge.ijk_to_world(volume, [(12, 10, 5)])[0][2]))
    with rigs.Rig(scene) as rig:
        rig.choose(volume)
        rig.segment()
    engine = Engine()
    with rigs.Rig(scene, start=lambda on_event: engine) as rig:

        def click(*ijk: float, positive: bool = True) -> None:
            rig.controller.click(bridge.ijk_to_world(volume, [ijk])[0], positive, view)
            assert rig.idle()

        parameters, control = rig.parameters, rig.controller
        parameters.neighbours = Neighbours.OVERLAP
        control.new_structure("Lesion")
        click(6, 7, 5)
        click(12, 9, 6)
        click(9, 8, 5, positive=False)
        corners = bridge.ijk_to_world(volume, [(14.6, 10.6, 4), (19.4, 15.4, 4)])
        control.draw_box(*corners, view)
        assert rig.idle()
        control.set_scope(Scope.VOLUME)
        assert rig.idle()
        control.set_scope(Scope.SLICE)
        assert rig.idle()
        lesion = parameters.segmentID
        asked = {"Lesion": [plain(each) for each in engine.prompted()[-1]]}
        control.new_structure("Copy")
        control.start_from(lesion)
        assert rig.idle()
        click(3, 3, 9)
        asked["Copy"] = [plain(each) for each in engine.prompted()[-1]]
        control.choose_segment(lesion)
        control.want([rigs.CORNER], False)
        roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
        roi.SetSize(10, 10, 10)
        parameters.region, parameters.roi, parameters.speed = Region.ROI, roi, Speed.FAST
        parameters.device = "cpu"
        expected = {}
        for name, segment_id in rigs.segments(parameters.segmentation).items():
            control.choose_segment(segment_id)
            voxels = np.argwhere(rigs.voxels(parameters.segmentation, name, volume))
            label = bridge.segment_label(parameters.segmentation, segment_id)
            expected[name] = {
                "rows": [[row.kind, row.positive] for row in rig.status.prompts],
                "asked": asked.get(name, []),
                "voxels": len(voxels),
                "centre": voxels.mean(axis=0).round(3).tolist(),
                "color": list(label.color),
                "code": label.type.value if label.type else "",
            }
        control.choose_segment(lesion)
        assert rig.status.messages == (), rig.status.messages
        environment.save_scene(scratch / "scene.mrb")
    write(out / "scene" / "expected.json", expected)
    shutil.copyfile(scratch / "scene.mrb", out / "scene" / "scene.mrb")
    environment.stop()


def plain(prompt: dict[str, Any]) -> dict[str, Any]:
    """A prompt as the engine got it, without the voxels of a mask."""
    values = {
        key: np.asarray(value) if key in ("position", "corners", "mask_box") else value for key, value in prompt.items()
    }
    if "mask" in prompt:
        values["mask"] = int(prompt["mask"].sum())
    return {key: value.round(3).tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}


def main(out: Path, scratch: Path) -> None:
    """Write all samples into `out`; both folders are empty."""
    import MaskSAMCore

    resources = Path(MaskSAMCore.__file__).resolve().parent.parent / "Resources"
    cases = make_cases(out)
    recipe = make_recipes(out, resources)
    make_bundled(out, resources)
    make_scene(out, scratch)
    cache = make_run(out, scratch, cases, recipe)
    make_results(out, scratch, cases, make_model(out, scratch, cache, recipe))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
