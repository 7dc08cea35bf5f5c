"""`python -m MaskSAMCore.prepare`: preprocess a data set once; training from the cache needs numpy and torch only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from MaskSAMCore.commandline import cancel_on_signals, command_parser, run
from MaskSAMCore.progress import CancelToken, terminal_progress


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = command_parser(
        "prepare",
        "Verify a data set and preprocess it into a cache. An interrupted run is continued; cases that have not "
        "changed are kept.",
    )
    result.add_argument("dataset", type=Path, help="folder in nnU-Net's raw format (dataset.json, imagesTr, labelsTr)")
    result.add_argument("-o", "--output", type=Path, required=True, metavar="CACHE", help="folder of the cache")
    result.add_argument("--preset", default="core-mobile", help="configuration (default: core-mobile)")
    result.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as data.view=coronal"
    )
    result.add_argument("--workers", type=int, default=2, metavar="N", help="cases at a time (default: 2)")
    result.add_argument("--overwrite", action="store_true", help="make every case again")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(argv)
    return run(lambda: _work(options))


def _work(options: argparse.Namespace) -> int:
    from MaskSAMCore.config import presets
    from MaskSAMCore.config.serialize import override
    from MaskSAMCore.data.build import prepare

    config = override(presets.get(options.preset), options.set)
    with terminal_progress() as progress, cancel_on_signals(CancelToken()) as cancel:
        cache, report = prepare(
            options.dataset,
            options.output,
            config,
            overwrite=options.overwrite,
            workers=options.workers,
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
