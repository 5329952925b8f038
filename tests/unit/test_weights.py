from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from models.catalog import Architecture, CatalogueEntry, FineTuned, LocalFile, OfficialAddress
from models.errors import BadCheckpoint, DiskFull, NoSource, WeightsError, WrongHash
from models.weights.checkpoints import sha256_of
from models.weights.fetch import cached_path, fetch
from tests.file_server import FileServer, serving

CONTENT = bytes(range(256)) * 9000  # more than two chunks
PATH = "/weights/tiny.pt"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as files:
        files.files[PATH] = CONTENT
        yield files


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entry_of(*sources: str | Path) -> CatalogueEntry:
    return CatalogueEntry(
        name="tiny",
        architecture=Architecture.MOBILE_SAM,
        licence="Apache-2.0",
        filename="tiny.pt",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        sources=tuple(LocalFile(source) if isinstance(source, Path) else OfficialAddress(source) for source in sources),
    )


def part_of(entry: CatalogueEntry, cache: Path) -> Path:
    part = cached_path(entry, cache).with_name("tiny.pt.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    return part


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir() and path.suffix != ".lock")


def test_a_checkpoint_is_downloaded_once_and_then_taken_from_the_cache(server: FileServer, cache: Path) -> None:
    entry = entry_of(server.url(PATH))
    first = fetch(entry, cache_dir=cache, weights_dir=None)
    second = fetch(entry, cache_dir=cache, weights_dir=None)
    assert first == second == cached_path(entry, cache)
    assert sha256_of(first) == entry.sha256
    assert files_in(cache) == ["tiny.pt"]
    assert len(server.seen) == 1


@pytest.mark.parametrize("own", [False, True], ids=["in the weights folder", "a user's own"])
def test_a_wrong_file_in_place_is_named_and_kept(server: FileServer, cache: Path, *, own: bool) -> None:
    placed = cache.parent / "tiny.pt"
    placed.write_bytes(CONTENT[::-1])
    entry = entry_of(placed) if own else entry_of(server.url(PATH))
    with pytest.raises(WrongHash, match="replace or remove it") as caught:
        fetch(entry, cache_dir=cache, weights_dir=None if own else placed.parent)
    assert str(placed) in caught.value.detail
    assert placed.exists()
    assert not server.seen


def test_files_of_the_user_and_of_the_weights_folder_are_used_in_place(server: FileServer, cache: Path) -> None:
    own, placed = cache.parent / "own" / "tiny.pt", cache.parent / "tiny.pt"
    own.parent.mkdir()
    own.write_bytes(CONTENT)
    placed.write_bytes(CONTENT)
    assert fetch(entry_of(server.url(PATH)), cache_dir=cache, weights_dir=placed.parent) == placed
    placed.write_bytes(b"another")
    assert fetch(entry_of(own), cache_dir=cache, weights_dir=placed.parent) == own
    assert not server.seen
    assert not cache.exists()


def test_a_users_own_file_must_exist(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSource, match="does not exist"):
        fetch(entry_of(tmp_path / "tiny.pt"), cache_dir=cache, weights_dir=None)


def test_a_source_that_fails_is_logged_and_the_next_one_tried(
    server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.files["/wrong"] = CONTENT[::-1]
    entry = entry_of("http://127.0.0.1:1/tiny.pt", server.url("/lost"), server.url("/wrong"), server.url(PATH))
    assert fetch(entry, cache_dir=cache, weights_dir=None).read_bytes() == CONTENT
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    for warning, reason in zip(warnings, ("cannot be reached", "responded 404", "wrong hash"), strict=True):
        assert reason in warning


@pytest.mark.parametrize("weights_dir", [None, Path("/no/such/folder")])
def test_without_any_source_the_error_lists_every_reason_and_the_next_step(
    server: FileServer, cache: Path, weights_dir: Path | None
) -> None:
    entry = entry_of("http://127.0.0.1:1/tiny.pt?token=secret", server.url("/lost"), "nonsense")
    with pytest.raises(NoSource, match="POMONA_WEIGHTS_DIR") as caught:
        fetch(entry, cache_dir=cache, weights_dir=weights_dir)
    for word in ["127.0.0.1:1/tiny.pt", "cannot be reached", "responded 404", "nonsense"]:
        assert word in caught.value.detail
    assert "secret" not in caught.value.detail
    assert str(weights_dir or "tiny.pt into a folder") in caught.value.detail


def test_a_wrong_hash_ends_in_one_clear_error_and_leaves_no_file(server: FileServer, cache: Path) -> None:
    server.files[PATH] = CONTENT[::-1]
    with pytest.raises(WrongHash, match=r"tiny\.pt: the file has a wrong hash"):
        fetch(entry_of(server.url(PATH)), cache_dir=cache, weights_dir=None)
    assert files_in(cache) == []


def test_a_page_instead_of_the_file_is_recognised_by_its_length(server: FileServer, cache: Path) -> None:
    server.files[PATH] = b"<html>please log in</html>"
    with pytest.raises(NoSource, match=f"must have {len(CONTENT)} bytes, the server offers 26"):
        fetch(entry_of(server.url(PATH)), cache_dir=cache, weights_dir=None)
    assert files_in(cache) == []


def test_a_body_that_is_too_long_is_rejected(server: FileServer, cache: Path) -> None:
    server.tells_length = False
    server.files[PATH] = CONTENT * 3
    with pytest.raises(NoSource, match="the server sent more"):
        fetch(entry_of(server.url(PATH)), cache_dir=cache, weights_dir=None)
    assert files_in(cache) == []


def test_a_damaged_file_in_the_cache_is_fetched_again_with_a_warning(
    server: FileServer, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = entry_of(server.url(PATH))
    part_of(entry, cache)
    cached_path(entry, cache).write_bytes(CONTENT[:-1] + b"x")
    assert fetch(entry, cache_dir=cache, weights_dir=None).read_bytes() == CONTENT
    assert "wrong hash; fetching it again" in caplog.text


def test_a_certificate_file_that_is_not_there_is_a_reason_and_no_crash(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
    with pytest.raises(NoSource, match="/no/such/file"):
        fetch(entry_of("https://127.0.0.1:1/tiny.pt"), cache_dir=cache, weights_dir=None)


def test_pips_certificates_are_trusted_where_requests_has_none_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("PIP_CERT", "/pips/own/file")
    with pytest.raises(NoSource, match="/pips/own/file"):
        fetch(entry_of("https://127.0.0.1:1/tiny.pt"), cache_dir=cache, weights_dir=None)


def test_a_broken_connection_goes_on_where_it_stopped(server: FileServer, cache: Path) -> None:
    server.breaks_after = [1_500_000, 200_000]
    path = fetch(entry_of(server.url(PATH)), cache_dir=cache, weights_dir=None)
    assert path.read_bytes() == CONTENT
    ranges = [request.range for request in server.seen]
    assert ranges == [None, "bytes=1500000-", "bytes=1700000-"]


def test_a_complete_part_needs_no_request(server: FileServer, cache: Path) -> None:
    entry = entry_of(server.url(PATH))
    part_of(entry, cache).write_bytes(CONTENT)
    assert fetch(entry, cache_dir=cache, weights_dir=None).read_bytes() == CONTENT
    assert not server.seen


@pytest.mark.parametrize("left", [b"x" * 1000, CONTENT + b"x"], ids=["of something else", "too long"])
def test_a_useless_part_is_thrown_away(server: FileServer, cache: Path, left: bytes) -> None:
    entry = entry_of(server.url(PATH))
    part_of(entry, cache).write_bytes(left)
    assert fetch(entry, cache_dir=cache, weights_dir=None).read_bytes() == CONTENT
    assert server.seen[-1].range is None


@pytest.mark.parametrize("fault", ["takes_ranges", "refuses_ranges"])
def test_a_server_that_cannot_resume_sends_the_file_from_its_start(server: FileServer, cache: Path, fault: str) -> None:
    setattr(server, fault, fault == "refuses_ranges")
    entry = entry_of(server.url(PATH))
    part_of(entry, cache).write_bytes(CONTENT[:1000])
    assert fetch(entry, cache_dir=cache, weights_dir=None).read_bytes() == CONTENT
    assert server.seen[0].range == "bytes=1000-"


def test_a_connection_without_progress_is_not_retried(server: FileServer, cache: Path) -> None:
    server.breaks_after = [0] * 100
    with pytest.raises(NoSource, match="the connection broke"):
        fetch(entry_of(server.url(PATH)), cache_dir=cache, weights_dir=None)
    assert len(server.seen) == 1


def test_a_full_disk_is_named_with_the_room_needed_and_leaves_nothing_behind(server: FileServer, cache: Path) -> None:
    entry = entry_of(server.url(PATH), server.url(PATH))
    part_of(entry, cache).symlink_to("/dev/full")  # every write fails as on a full disk
    with pytest.raises(DiskFull, match=f"{len(CONTENT):,} bytes are needed") as caught:
        fetch(entry, cache_dir=cache, weights_dir=None)
    assert str(cache) in caught.value.detail
    assert "POMONA_WEIGHTS_DIR" in caught.value.detail
    assert files_in(cache) == []
    assert len(server.seen) == 1


def test_a_cache_that_cannot_be_written_is_named(server: FileServer, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"cache.*POMONA_WEIGHTS_DIR"):
        fetch(entry_of(server.url(PATH)), cache_dir=cache, weights_dir=None)


def test_concurrent_fetches_download_once(server: FileServer, cache: Path) -> None:
    server.pause_s = 0.2
    entry = entry_of(server.url(PATH))
    paths: list[Path] = []
    workers = [
        threading.Thread(target=lambda: paths.append(fetch(entry, cache_dir=cache, weights_dir=None))) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert paths == [cached_path(entry, cache)] * 2
    assert len(server.seen) == 1


def test_fetching_needs_no_torch() -> None:
    code = "import sys, models.weights, models.catalog, models.weights.checkpoints; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def fine_tuned(base: CatalogueEntry, tensors: Path, checkpoint: bytes) -> CatalogueEntry:
    return replace(
        base,
        name="tuned",
        filename="tuned.safetensors",
        size=len(checkpoint),
        sha256=hashlib.sha256(checkpoint).hexdigest(),
        sources=(FineTuned(base, tensors),),
    )


def tiny_checkpoint(path: Path, tensors: dict[str, torch.Tensor]) -> CatalogueEntry:
    path.write_bytes(save(tensors))
    return replace(entry_of(path), filename=path.name, size=path.stat().st_size, sha256=sha256_of(path))


def test_a_fine_tuned_checkpoint_is_that_of_its_base_with_other_tensors(cache: Path, tmp_path: Path) -> None:
    original = {"encoder.a": torch.arange(3.0), "decoder.b": torch.zeros(2)}
    base = tiny_checkpoint(tmp_path / "base.safetensors", original)
    tensors = tmp_path / "tuned.safetensors"
    tensors.write_bytes(save({"decoder.b": torch.ones(2, dtype=torch.float16)}))
    expected = save({"encoder.a": torch.arange(3.0), "decoder.b": torch.ones(2)})
    entry = fine_tuned(base, tensors, expected)
    assert fetch(entry, cache_dir=cache, weights_dir=None).read_bytes() == expected
    assert files_in(cache) == ["tuned.safetensors"]


def test_a_fine_tuned_checkpoint_of_other_tensors_than_its_entry_tells_is_refused(cache: Path, tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base.safetensors", {"decoder.b": torch.zeros(2)})
    tensors = tmp_path / "tuned.safetensors"
    entry = fine_tuned(base, tensors, save({"decoder.b": torch.ones(2)}))
    tensors.write_bytes(save({"decoder.b": torch.zeros(2)}))
    with pytest.raises(WrongHash, match="not the file that the entry was made of"):
        fetch(entry, cache_dir=cache, weights_dir=None)
    for wrong in ({"decoder.c": torch.zeros(2)}, {"decoder.b": torch.zeros(3)}):
        tensors.write_bytes(save(wrong))
        with pytest.raises(BadCheckpoint, match="must be a tensor of"):
            fetch(entry, cache_dir=cache, weights_dir=None)
    assert files_in(cache) == []


def test_a_fine_tuned_checkpoint_whose_base_cannot_be_fetched_names_the_base(cache: Path, tmp_path: Path) -> None:
    base = entry_of("http://127.0.0.1:1/tiny.pt")
    with pytest.raises(NoSource, match=r"tiny: every source of tiny\.pt failed"):
        fetch(fine_tuned(base, tmp_path / "tuned.safetensors", b""), cache_dir=cache, weights_dir=None)
