"""faults.md row 13: no pixel data, an unknown transfer syntax and malformed elements name the file and the reason."""

from __future__ import annotations

import pytest

from MaskSAMCore.errors import InputError
from MaskSAMCore.io.dicom import list_series, read_series
from Testing.dicom_phantom import dicom_series, edit, ramp

BAD = "s003.dcm"


def test_no_pixel_data(tmp_path):
    dicom_series(tmp_path, ramp(), PixelData=None)
    assert list_series(tmp_path)[0].problem == "no pixel data"
    with pytest.raises(InputError, match="no pixel data"):
        read_series(tmp_path)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.999", "1.2.3.4"])
def test_unknown_transfer_syntax(tmp_path, syntax):
    dicom_series(tmp_path, ramp())
    path = tmp_path / BAD
    data = path.read_bytes()
    old = b"1.2.840.10008.1.2.1\0"
    at = data.index(b"UI" + (20).to_bytes(2, "little") + old)
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    changed = data[:at] + b"UI" + len(new).to_bytes(2, "little") + new + data[at + 4 + len(old) :]
    head = bytearray(changed)
    group = head.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    size = int.from_bytes(head[group : group + 4], "little") + len(new) - len(old)
    head[group : group + 4] = size.to_bytes(4, "little")
    path.write_bytes(bytes(head))
    with pytest.raises(InputError, match=BAD):
        read_series(tmp_path)


def test_compressed_rubbish(tmp_path):
    dicom_series(tmp_path, ramp())
    path = tmp_path / BAD
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    with pytest.raises(InputError, match=BAD):
        read_series(tmp_path)


def test_cut_inside_the_header(tmp_path):
    dicom_series(tmp_path, ramp())
    path = tmp_path / BAD
    for length in (140, 300, 700):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(InputError):
            read_series(tmp_path)


@pytest.mark.parametrize(
    ("tag", "value"),
    [("ImagePositionPatient", b"0\\x\\2 "), ("PixelSpacing", b"abc\\1 ")],
)
def test_malformed_numbers(tmp_path, tag, value):
    import pydicom

    dicom_series(tmp_path, ramp())
    path = tmp_path / BAD
    data = pydicom.dcmread(path)
    old = "\\".join(str(v.original_string) for v in data[tag].value).encode()
    raw = path.read_bytes()
    length = len(old) + len(old) % 2
    at = raw.index(old)
    path.write_bytes(raw[:at] + value.ljust(length) + raw[at + length :])
    with pytest.raises(InputError, match=BAD):
        read_series(tmp_path)


def test_impossible_rescale(tmp_path):
    dicom_series(tmp_path, ramp())
    edit(tmp_path / BAD, RescaleSlope="0", RescaleIntercept="0")
    with pytest.raises(InputError, match=rf"{BAD}.*slope 0"):
        read_series(tmp_path)


def test_what_is_no_dicom_is_passed_over(tmp_path):
    dicom_series(tmp_path, ramp())
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    assert read_series(tmp_path).array.shape == (5, 6, 7)
