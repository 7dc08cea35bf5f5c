"""`python -m MaskSAMCore.prepare`: preprocess a data set once; training from the cache needs numpy and torch only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from MaskSAMCore.commandline import cancel_on_signals, command_parser, run
from MaskSAMCore.progress import CancelToken, terminal_progress

if TYPE_CHECKING:
    from MaskSAMCore.config.schema import Config

WORKERS = 2
ONLY_ANY = "only --preset any learns from a collection"
NO_PLAN = "the scans of a collection are kept as they are, one after the other"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = command_parser(
        "prepare",
        "Verify a data set and preprocess it into a cache. An interrupted run is continued; cases that have not "
        "changed are kept.",
    )
    result.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="DATASET",
        help="folder in nnU-Net's raw format (dataset.json, imagesTr, labelsTr); with --preset any several of them, "
        "and folders of volumes NAME/image.nii.gz, NAME/labels.nii.gz",
    )
    result.add_argument("-o", "--output", type=Path, required=True, metavar="CACHE", help="folder of the cache")
    result.add_argument("--preset", default="core-mobile", help="configuration (default: core-mobile)")
    result.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as data.view=coronal"
    )
    result.add_argument("--workers", type=int, metavar="N", help=f"cases at a time (default: {WORKERS})")
    result.add_argument("--overwrite", action="store_true", help="make every case again")
    result.add_argument(
        "--most", type=int, metavar="N", help="with --preset any: scans taken of each data set (default: 60)"
    )
    result.add_argument(
        "--pseudo-labels",
        action="store_true",
        help="with --preset any: find structures that nobody labelled, by MobileSAM, supervoxels and thresholds",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    p = parser()
    options = p.parse_args(argv)
    if options.most is not None and options.most < 1:
        p.error("--most must be at least 1")
    return run(lambda: _work(options))


def _work(options: argparse.Namespace) -> int:
    from MaskSAMCore.config import presets
    from MaskSAMCore.config.serialize import override

    config = override(presets.get(options.preset), options.set)
    if config.model.backbone.arch == "click_unet":
        _refuse(options, bool(options.set), "--set", NO_PLAN)
        _refuse(options, options.workers is not None, "--workers", NO_PLAN)
        return _collection(options)
    _refuse(options, len(options.sources) > 1, "several data sets", ONLY_ANY)
    _refuse(options, options.most is not None, "--most", ONLY_ANY)
    _refuse(options, options.pseudo_labels, "--pseudo-labels", ONLY_ANY)
    return _dataset(options, config)


def _refuse(options: argparse.Namespace, given: bool, what: str, why: str) -> None:
    from MaskSAMCore.errors import InputError

    if given:
        raise InputError(f"{what} does not go with this preset", where=f"--preset {options.preset}", why=why)


def _collection(options: argparse.Namespace) -> int:
    from MaskSAMCore.data.collection import MOST, build_collection
    from MaskSAMCore.data.pseudo_structures import add_pseudo_structures
    from MaskSAMCore.inference.zeroshot import ZeroShot
    from MaskSAMCore.zoo.base_weights import obtain_base

    with terminal_progress() as progress, cancel_on_signals(CancelToken()) as cancel:
        collection = build_collection(
            options.sources,
            options.output,
            most=options.most or MOST,
            overwrite=options.overwrite,
            progress=progress,
            cancel=cancel,
        )
        if options.pseudo_labels:
            sam = ZeroShot("mobile", obtain_base("mobile", progress=progress))
            add_pseudo_structures(collection, sam, overwrite=options.overwrite, progress=progress, cancel=cancel)
    volumes = collection.volumes.values()
    print(f"{len(volumes)} volume(s) in {collection.folder}")
    labelled = [each for each in volumes if each.structures]
    print(f"  {sum(len(each.structures) for each in labelled)} labelled structures in {len(labelled)} of them")
    print(f"  {sum(len(each.pseudo) for each in volumes)} structures that nobody labelled")
    return 0


def _dataset(options: argparse.Namespace, config: Config) -> int:
    from MaskSAMCore.data.build import prepare

    with terminal_progress() as progress, cancel_on_signals(CancelToken()) as cancel:
        cache, report = prepare(
            options.sources[0],
            options.output,
            config,
            overwrite=options.overwrite,
            workers=options.workers or WORKERS,
            progress=progress,
            cancel=cancel,
        )
    plan = cache.plan
    print(f"{cache.name}: {len(cache)} cases in {cache.folder}")
    print(f"  made {len(report.built)}, made again {len(report.rebuilt)}, kept {len(report.kept)}")
    for case, reason in report.rebuilt:
        print(f"  {case}: {reason}")
    for note, files in report.warnings:
        print(f"  {files} file(s): {note}")
    spacing = " x ".join(f"{s:g}" for s in plan.spacing)
    size = " x ".join(map(str, plan.median_shape))
    kept = ", each scan's own slices" if plan.keep_slices else ""
    print(f"  {plan.view} slices, {spacing} mm (depth x height x width){kept}, median size {size}")
    print(f"  {len(cache.splits)} fold(s), labels {', '.join(label.name for label in cache.labels.labels)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
