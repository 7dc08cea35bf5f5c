"""faults.md row 45: a disk that fills up in the middle of a save leaves the old file intact and no temporary.

A limit on the size of files (RLIMIT_FSIZE) stops a real write in a real process at any byte, as a full disk does;
where the user may mount one, a real file system of 256 KiB is filled as well.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from MaskSAMCore.errors import ResourceError
from MaskSAMCore.io.atomic import atomic_path
from MaskSAMCore.io.images import write_labels
from MaskSAMCore.volume import Grid, LabelMap

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="NOT TESTED HERE: needs POSIX limits")

WRITE = """
import resource, signal, sys
import numpy as np
from MaskSAMCore.errors import ResourceError
from MaskSAMCore.io.images import write_labels, write_volume
from MaskSAMCore.volume import Grid, LabelMap, Volume
path, limit, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
array = np.random.default_rng(0).integers(0, 60000, (32, 64, 64)).astype(np.uint16)
grid = Grid(shape=array.shape, affine=np.eye(4))
import SimpleITK, scipy.ndimage, scipy.spatial.transform
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if kind == "image":
        write_volume(Volume(array=array.astype(np.float32), grid=grid), path, overwrite=True)
    else:
        write_labels(LabelMap(array=array, grid=grid), path, overwrite=True)
except ResourceError as error:
    print(error)
    sys.exit(7)
"""


def write(path: Path, limit: int, kind: str) -> subprocess.CompletedProcess:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.run(
        [sys.executable, "-c", WRITE, str(path), str(limit), kind],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.nii", "labels"), ("a.nii.gz", "image"), ("a.nrrd", "image"), ("a.seg.nrrd", "labels"), ("a.mha", "labels")],
)
def test_the_old_file_survives(tmp_path, name, kind):
    path = tmp_path / name
    path.write_bytes(b"old")
    done = write(path, 100_000, kind)
    assert done.returncode == 7, done.stdout + done.stderr
    assert name in done.stdout
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert write(path, 0, kind).returncode == 0
    assert path.stat().st_size > 100_000


@pytest.mark.parametrize("limit", [1, 300, 353, 4096])
def test_at_any_byte(tmp_path, limit):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"old")
    assert write(path, limit, "labels").returncode == 7
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_temporaries_lie_beside_the_target(tmp_path):
    with atomic_path(tmp_path / "a.nii") as part:
        assert part.parent == tmp_path
        part.write_bytes(b"x")


def test_dev_full(tmp_path):
    """A device that is always full, behind the temporary's name."""
    if not Path("/dev/full").exists():
        pytest.skip("NOT TESTED HERE: no /dev/full")
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with atomic_path(target, overwrite=True) as part:
            part.symlink_to("/dev/full")
            with open(part, "wb", buffering=0) as file:
                file.write(b"x" * 100)

    with pytest.raises(ResourceError, match="not enough space"):
        write()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True, check=False
        )
    except OSError:
        pytest.skip("NOT TESTED HERE: no mount command")
    if mounted.returncode:
        pytest.skip("NOT TESTED HERE: this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.seg.nrrd", "a.mha"])
def test_a_real_full_disk(small_disk, name):
    path = small_disk / name
    path.write_bytes(b"old")
    array = np.random.default_rng(0).integers(0, 60000, (40, 64, 64)).astype(np.uint16)
    labels = LabelMap(array=array, grid=Grid(shape=array.shape, affine=np.eye(4)))
    with pytest.raises(ResourceError, match=name.replace(".", r"\.")):
        write_labels(labels, path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert [p.name for p in small_disk.iterdir()] == [name]
