"""The command `masksam segment`: segment scans with a trained model and write the results."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from MaskSAMCore.commandline import add_device_option, cancel_on_signals, command_parser, run

if TYPE_CHECKING:
    from MaskSAMCore.inference.predictor import Result
    from MaskSAMCore.labels import LabelTable
    from MaskSAMCore.outputs import Case
    from MaskSAMCore.volume import Roi, Volume

EPILOG = """examples:
  %(prog)s scan.nii.gz -m hippocampus-mr -o results      four files in the folder results
  %(prog)s scan.nii.gz -m MODEL -o scan.seg.nrrd         one file, by its suffix
  %(prog)s DICOM_FOLDER -m MODEL -o results --formats dcm,rtstruct
  %(prog)s head.nii.gz -m hippocampus-mr -o results --roi=28,-22,-14,36,54,44

SCAN is a NIfTI, NRRD or MetaImage file, or a DICOM folder. Several are several cases; a model of several channels
takes files called CASE_0000, CASE_0001, ... together, or one file per channel in the order of its channels.

OUT without a suffix is a folder. It receives CASE.nii.gz, CASE.seg.nrrd, CASE.csv (table of volumes) and CASE.png
(picture) for every case; a case that has all of its files is skipped. --formats replaces the first two:
nii (.nii.gz), seg.nrrd, nrrd, mha, dcm (DICOM SEG, CASE.dcm), rtstruct (CASE.rtstruct.dcm). The DICOM formats need
a DICOM folder as SCAN; rtstruct needs the extra: pip install ".[rtstruct]" in the clone

--save-probabilities writes CASE.probabilities.npz: `probabilities` (class, k, j, i) float16 on the grid of the scan,
with the background first, and `classes`, `labels` and `affine` (RAS mm) that belong to it."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("segment", "Segment scans with a trained model.", epilog=EPILOG)
    p.add_argument("scans", nargs="+", type=Path, metavar="SCAN")
    p.add_argument("-m", "--model", metavar="MODEL", help="name of an installed model, or its folder")
    p.add_argument(
        "-o", "--output", type=Path, metavar="OUT",
        help="folder, or file: .nii.gz .nii .nrrd .mha .seg.nrrd .dcm .rtstruct.dcm",
    )  # fmt: skip
    p.add_argument("--formats", metavar="NAME,NAME", help="files for a folder OUT (default: nii,seg.nrrd)")
    p.add_argument(
        "--statistics", action="store_true",
        help="add the scan's mean, SD, minimum, maximum and the centroid (mm, RAS) of every structure to the table",
    )  # fmt: skip
    p.add_argument("--save-probabilities", action="store_true", help="write the probabilities of all classes, too")
    p.add_argument(
        "--roi", type=_roi, action="append", default=[], metavar="X,Y,Z,SX,SY,SZ",
        help="only this box: centre and size in mm, RAS; may be given several times (write --roi=-28,...)",
    )  # fmt: skip
    p.add_argument(
        "--tta", action="store_true", help="average over mirrored copies: a little better, several times slower"
    )
    p.add_argument(
        "--step", type=_share, default=None, metavar="S", help="overlap of windows, above 0 to 1 (default: 0.5)"
    )
    p.add_argument(
        "--preview", action="store_true", help="fast and rough: windows side by side, no mirroring; with a picture"
    )
    p.add_argument(
        "--structures", action="append", default=[], metavar="NAME,NAME",
        help="write these structures only; may be given several times, as it must be for names with a comma",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    p.add_argument("--series", metavar="ID", help="which series of a DICOM folder: its key, or one of its files")
    p.add_argument("--list-series", action="store_true", help="list the series of DICOM folders and stop")
    p.add_argument("--frame", type=int, metavar="N", help="which frame of a 4-D file, from 0")
    p.add_argument("--channel", type=int, metavar="N", help="which channel of a colour file, from 0")
    p.add_argument("--resample", action="store_true", help="allow resampling of tilted or irregular scans")
    p.add_argument(
        "--allow-uncoded", action="store_true", help="write structures without a DICOM code as Tissue (.dcm)"
    )
    add_device_option(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    p = parser()
    options = p.parse_args(argv)
    if not options.list_series and (options.model is None or options.output is None):
        p.error("-m MODEL and -o OUT are needed")
    if options.preview and options.tta:
        p.error("--preview and --tta exclude each other")
    return run(lambda: _list(options) if options.list_series else _segment(options))


def _roi(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 6:
        raise argparse.ArgumentTypeError(f"six numbers x,y,z,sx,sy,sz are needed, found {text!r}")
    return values


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and at most 1 is needed, found {text!r}")
    return value


def _wanted(table: LabelTable, asked: list[str]) -> LabelTable:
    """The structures that were asked for, or all; a text that is no structure's name is a list of names."""
    known = {label.name.casefold() for label in table.labels}
    names = [
        name.strip()
        for text in asked
        for name in ([text] if text.strip().casefold() in known else text.split(","))
        if name.strip()
    ]
    return table.only(names) if asked else table


def _list(options: argparse.Namespace) -> int:
    from MaskSAMCore.io.dicom import list_series

    for folder in options.scans:
        print(folder)
        for series in list_series(folder):
            print(f"  {series.line()}")
    return 0


def _segment(options: argparse.Namespace) -> int:
    from MaskSAMCore import outputs
    from MaskSAMCore.volume import Roi
    from MaskSAMCore.zoo import installed, model_folder

    rois = [Roi(center=r[:3], size=r[3:]) for r in options.roi]
    card = model_folder.load_card(installed.find_model(options.model))
    card.require_automatic()
    wanted = _wanted(card.labels, options.structures)
    cases = outputs.place(
        outputs.group(options.scans, card.config.model.channels),
        options.output,
        formats=None if options.formats is None else outputs.parse_formats(options.formats),
        preview=options.preview,
        statistics=options.statistics,
        probabilities=options.save_probabilities,
    )
    todo = []
    for case in cases:
        outputs.check_dicom(case, wanted, allow_uncoded=options.allow_uncoded)
        if outputs.ready(case, overwrite=options.overwrite):
            print(f"{case.name}: complete already, skipped (--overwrite does it again)")
        else:
            todo.append(case)
    if todo:
        _work(options, todo, rois, wanted)
    return 0


def _work(options: argparse.Namespace, todo: list[Case], rois: list[Roi], wanted: LabelTable) -> None:
    from MaskSAMCore import device, outputs
    from MaskSAMCore.inference.predictor import Predictor
    from MaskSAMCore.io.images import read_volume
    from MaskSAMCore.progress import CancelToken, terminal_progress

    with cancel_on_signals(CancelToken()) as cancel, terminal_progress() as progress:
        predictor = Predictor(options.model, device=options.device, progress=progress)
        progress.close()
        print(f"Model:  {predictor.card.name} ({predictor.card.licence or 'no licence stated'})")
        print(f"Device: {device.describe(predictor.device)}", flush=True)
        for case in todo:
            cancel.check()
            volume = read_volume(
                case.scans[0] if len(case.scans) == 1 else list(case.scans),
                frame=options.frame,
                channel=options.channel,
                resample=options.resample,
                series=options.series,
            )
            outputs.rehearse(case, volume, wanted, series=options.series, allow_uncoded=options.allow_uncoded)
            result = predictor.segment(
                volume,
                roi=rois,
                tta=options.tta,
                step=options.step or (1.0 if options.preview else 0.5),
                probabilities=options.save_probabilities,
                progress=progress,
                cancel=cancel,
            )
            progress.close()
            cancel.check()
            if options.structures:
                result = replace(result, labels=outputs.only(result.labels, wanted))
            written = outputs.write(
                case,
                volume,
                result.labels,
                subtitle=predictor.card.name,
                channels=predictor.plan.channels,
                probabilities=result.probabilities,
                classes=predictor.card.labels,
                overwrite=options.overwrite,
                series=options.series,
                allow_uncoded=options.allow_uncoded,
            )
            _report(case, volume, result, written)


def _report(case: Case, volume: Volume, result: Result, written: list[Path]) -> None:
    from MaskSAMCore.volumes_table import volume_rows

    size = " x ".join(map(str, volume.grid.shape[::-1]))
    print(f"\n{case.name}: {size} voxels, {result.windows} windows in {result.seconds:.1f} s on {result.device}")
    rows = volume_rows(result.labels)
    width = max([len(name) for _, name, _, _ in rows] + [9])
    print(f"  {'structure':{width}} {'label':>5} {'voxels':>10} {'mL':>10}")
    for number, name, voxels, millilitres in rows:
        print(f"  {name:{width}} {number:5d} {voxels:10d} {millilitres:10.3f}")
    for text in result.warnings:
        print(f"  warning: {text}")
    for path in written:
        print(f"  wrote {path}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
