"""Captures: what is kept, what is dropped, what the folder has after crashes, restarts and full disks."""

from __future__ import annotations

import datetime
import errno
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from models.images import Stop
from models.letterbox import HasResized
from models.types import Pixels
from service.api import schema
from service.capture.captures import QUEUE_BYTES, CaptureOptions, Captures, open_captures
from service.capture.fingerprint import THUMBNAIL, Fingerprint
from service.capture.folder import CaptureFolder, CaptureFolderError, WriteFile, write_file
from service.capture.records import Offer, Reason
from service.observability.observer import CaptureResult, Observer
from service.pipelines.source import EncodedImage, RawImage
from tests.fakes import PATIENCE_S, FakeClock, encode_image

MIB = 1 << 20
START = datetime.datetime(2026, 11, 27, 6, tzinfo=datetime.UTC)


def scene(seed: int, file_format: str = "PNG", **options: Any) -> bytes:
    """Return an image that looks like no other one."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return encode_image(
        np.asarray(PIL.Image.fromarray(cells).resize((64, 48), PIL.Image.Resampling.BILINEAR)), file_format, **options
    )


def offer(seed: int, *reasons: Reason, data: bytes | None = None) -> Offer:
    image = scene(seed) if data is None else data
    return Offer(EncodedImage(image), reasons or ("low_confidence",), f"request-{seed}", problem="deadline_exceeded")


@dataclass
class Tally(Observer):
    """Counts what became of offers."""

    results: list[CaptureResult] = field(default_factory=list)
    nbytes: int | None = None

    def capture_ended(self, result: CaptureResult, reasons: Sequence[str]) -> None:
        assert reasons
        self.results.append(result)

    def captures_opened(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def capture_bytes(self, nbytes: int) -> None:
        self.nbytes = nbytes


@dataclass
class Bench:
    """Captures in a folder, on clocks that the test moves: every capture a second after the one before."""

    root: Path
    max_bytes: int = MIB
    per_hour: int = 100
    write: WriteFile = write_file
    clock: FakeClock = field(default_factory=FakeClock)
    tally: Tally = field(default_factory=Tally)
    seconds: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    def __post_init__(self) -> None:
        self.folder = CaptureFolder(self.root, self.max_bytes, self.write)
        self.folder.prepare()
        self.captures = Captures(
            self.folder,
            per_hour=self.per_hour,
            max_pixels=MIB,
            observer=self.tally,
            clock=self.clock,
            now=lambda: START + datetime.timedelta(seconds=next(self.seconds)),
        )

    def give(self, *offers: Offer) -> None:
        """Offer one after another, and wait for each."""
        for one in offers:
            self.captures.offer(one)
            assert self.captures.idle(PATIENCE_S)

    def kept(self) -> list[str]:
        """Return the requests whose frames are kept, the oldest first."""
        return [kept.read().request_id for kept in self.folder.captures()]

    def on_disk(self) -> int:
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file() and path.name != ".lock")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "captures")
    yield made
    made.captures.close(PATIENCE_S)


def test_a_frame_is_kept_as_it_came_with_its_record(bench: Bench) -> None:
    frame = schema.Frame(frame_id="cam2-004711", trigger_id="lane3", captured_at_ns=7)
    image = scene(1, "JPEG")
    bench.give(Offer(EncodedImage(image), ("late", "sample"), "r-1", frame, problem="deadline_exceeded", remark="why"))
    (kept,) = bench.folder.captures()
    capture = kept.read()
    assert (kept.path / "image.jpg").read_bytes() == image
    assert (capture.file, capture.reasons, capture.request_id) == ("image.jpg", ("late", "sample"), "r-1")
    assert (capture.frame, capture.problem, capture.remark, capture.answer) == (
        frame,
        "deadline_exceeded",
        "why",
        None,
    )
    assert (capture.image.width, capture.image.height) == (64, 48)
    assert capture.captured_at == START.isoformat()
    assert bench.tally.results == ["kept"]
    assert bench.tally.nbytes == bench.on_disk() == kept.nbytes


def test_only_the_service_may_read_captures(bench: Bench) -> None:
    bench.give(offer(1))
    modes = {path.stat().st_mode & 0o077 for path in (bench.root, *bench.root.rglob("*"))}
    assert modes == {0}


def test_raw_pixels_are_kept_as_png(bench: Bench) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (20, 30, 3), np.uint8)
    bench.give(Offer(RawImage(pixels), ("sample",), "raw"))
    (kept,) = bench.folder.captures()
    assert np.array_equal(np.asarray(PIL.Image.open(kept.path / "image.png")), pixels)


def test_a_frame_that_looks_like_a_kept_one_is_dropped_also_after_a_restart(bench: Bench) -> None:
    bench.give(offer(1), offer(1, data=scene(1, "JPEG", quality=60)), offer(2))
    assert bench.tally.results == ["kept", "duplicate", "kept"]
    again = Bench(bench.root)
    again.give(offer(1), offer(3))
    again.captures.close(PATIENCE_S)
    assert again.tally.results == ["duplicate", "kept"]


def test_noise_and_compression_keep_a_fingerprint_and_other_scenes_have_others() -> None:
    def fingerprint(data: bytes) -> Fingerprint:
        (pixels,) = EncodedImage(data).resized([THUMBNAIL], MIB, lambda: False)
        return Fingerprint.of(pixels)

    first = fingerprint(scene(1))
    assert first.is_like_any([fingerprint(scene(1, "JPEG", quality=50))])
    assert not first.is_like_any(fingerprint(scene(seed)) for seed in range(2, 60))
    assert not first.is_like_any([])
    assert Fingerprint.of_text(str(first)) == first


def test_the_oldest_make_room_and_the_bytes_are_never_exceeded(tmp_path: Path) -> None:
    size = len(scene(0)) + 600
    bench = Bench(tmp_path, max_bytes=3 * size)
    for seed in range(8):
        bench.give(offer(seed))
        assert bench.on_disk() <= bench.max_bytes
        assert bench.tally.nbytes == bench.on_disk()
    kept = bench.kept()
    assert 2 <= len(kept) < 8
    assert kept == [f"request-{seed}" for seed in range(8 - len(kept), 8)]


def test_captures_of_before_count_into_the_bound_after_a_restart(tmp_path: Path) -> None:
    before = Bench(tmp_path)
    before.give(*map(offer, range(5)))
    before.captures.close(PATIENCE_S)
    after = Bench(tmp_path, max_bytes=before.on_disk(), seconds=iter(range(100, 200)))
    assert after.tally.nbytes == before.on_disk()
    after.give(offer(9))
    assert after.kept()[-1] == "request-9"
    assert "request-0" not in after.kept()
    assert after.on_disk() <= after.max_bytes


def test_a_frame_larger_than_the_folder_is_dropped_and_removes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_bytes=len(scene(0)) + 2000)
    noise = encode_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    bench.give(offer(0), offer(1, data=noise))
    assert bench.tally.results == ["kept", "too_large"]
    assert bench.kept() == ["request-0"]


def test_no_more_are_kept_in_an_hour_than_allowed_and_one_reason_takes_half(tmp_path: Path) -> None:
    bench = Bench(tmp_path, per_hour=4)
    bench.give(*(offer(seed, "late") for seed in range(4)))
    assert bench.tally.results == ["kept", "kept", "limited", "limited"]
    bench.give(*(offer(seed, "late", "disagreement") for seed in range(10, 14)))
    assert bench.tally.results[4:] == ["kept", "kept", "limited", "limited"]
    bench.clock.leap(3599)
    bench.give(offer(20))
    bench.clock.leap(1)
    bench.give(offer(21))
    assert bench.tally.results[8:] == ["limited", "kept"]


def test_a_scene_that_does_not_change_is_looked_at_ten_times_for_each_that_may_be_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, per_hour=3)
    bench.give(*(offer(1) for _ in range(35)))
    assert bench.tally.results == ["kept", *["duplicate"] * 29, *["limited"] * 5]


def test_bytes_that_are_no_image_are_counted_and_leave_nothing(bench: Bench) -> None:
    bench.give(offer(1, data=b"not an image at all"), offer(2))
    assert bench.tally.results == ["unreadable", "kept"]
    assert bench.kept() == ["request-2"]


@dataclass(frozen=True)
class Held(EncodedImage):
    """An image that is read only when the test lets go."""

    go: threading.Event = field(default_factory=threading.Event)
    reading: threading.Event = field(default_factory=threading.Event)

    def resized(
        self, letterboxes: Sequence[HasResized], max_pixels: int, stop: Stop, *, scaled: bool = False
    ) -> list[Pixels]:
        self.reading.set()
        assert self.go.wait(PATIENCE_S)
        return EncodedImage(self.data).resized(letterboxes, max_pixels, stop, scaled=scaled)


def test_offering_never_waits_and_what_the_queue_has_no_room_for_is_dropped(bench: Bench) -> None:
    held = Held(scene(0))
    bench.captures.offer(Offer(held, ("sample",), "held"))
    assert held.reading.wait(PATIENCE_S)
    for seed in range(1, 40):
        bench.captures.offer(offer(seed))
    assert bench.tally.results == ["dropped"] * 7
    held.go.set()
    assert bench.captures.idle(PATIENCE_S)
    assert bench.kept() == ["held", *(f"request-{seed}" for seed in range(1, 33))]


def test_the_queue_is_bounded_in_bytes(bench: Bench) -> None:
    held = Held(scene(0))
    bench.captures.offer(Offer(held, ("sample",), "held", answer_bytes=QUEUE_BYTES // 2))
    assert held.reading.wait(PATIENCE_S)
    bench.captures.offer(Offer(EncodedImage(scene(1)), ("sample",), "second", answer_bytes=QUEUE_BYTES // 2))
    bench.captures.offer(Offer(EncodedImage(scene(1)), ("sample",), "third", answer_bytes=QUEUE_BYTES + 1))
    assert bench.tally.results == ["dropped", "too_large"]
    held.go.set()


def test_closing_writes_what_waits_and_takes_no_more(bench: Bench) -> None:
    for seed in range(6):
        bench.captures.offer(offer(seed))
    bench.captures.close(PATIENCE_S)
    assert bench.kept() == [f"request-{seed}" for seed in range(6)]
    bench.captures.offer(offer(7))
    assert bench.tally.results == [*["kept"] * 6, "dropped"]


def test_closing_ends_in_time_and_leaves_no_half_capture(bench: Bench) -> None:
    held = Held(scene(0))
    bench.captures.offer(Offer(held, ("sample",), "held"))
    assert held.reading.wait(PATIENCE_S)
    bench.captures.offer(offer(1))
    bench.captures.close(0.05)
    assert bench.tally.results == ["dropped"]
    assert list(bench.root.glob("2*")) == []
    held.go.set()
    assert bench.captures.idle(PATIENCE_S)
    assert bench.kept() == ["held"]


class Crash(BaseException):
    """The process ends here."""


def crash_after(files: int) -> WriteFile:
    left = iter(range(files))

    def write(path: Path, data: bytes) -> None:
        if next(left, None) is None:
            path.write_bytes(data[: len(data) // 2])
            raise Crash
        write_file(path, data)

    return write


@pytest.mark.parametrize("files", [0, 1])
def test_a_crash_while_a_capture_is_written_leaves_nothing_that_counts(
    bench: Bench, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.give(offer(1))
    before = bench.on_disk()
    capture = bench.folder.captures()[0].read().model_copy(update={"captured_at": "2026-11-28T00:00:00+00:00"})
    with monkeypatch.context() as dead:
        dead.setattr("shutil.rmtree", lambda *_, **__: None)  # a process that is gone cleans up nothing
        with pytest.raises(Crash):
            CaptureFolder(bench.root, MIB, crash_after(files)).keep(capture, scene(2), Fingerprint(1))
    assert len(list(bench.root.glob(".part-*"))) == 1
    assert bench.kept() == ["request-1"]
    after = Bench(bench.root)
    assert after.tally.nbytes == bench.on_disk() == before
    assert list(bench.root.glob(".part-*")) == []


@dataclass
class Disk:
    """A disk that is full while the test says so."""

    full: bool = False
    attempts: int = 0

    def write(self, path: Path, data: bytes) -> None:
        self.attempts += 1
        if self.full:
            path.write_bytes(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, data)


def test_a_full_disk_is_logged_once_leaves_nothing_and_captures_go_on_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk()
    bench = Bench(tmp_path, write=disk.write)
    bench.give(offer(0))
    disk.full = True
    with caplog.at_level(logging.INFO, "pomona.capture"):
        bench.give(offer(1), offer(2), offer(3))
        assert bench.tally.results == ["kept", "failed", "failed", "failed"]
        assert list(tmp_path.glob(".part-*")) == []
        (line,) = caplog.records
        assert (line.levelname, vars(line)["detail"]) == ("ERROR", "No space left on device")
        disk.full = False
        bench.give(offer(4))
    assert bench.kept() == ["request-0", "request-4"]
    assert [line.levelname for line in caplog.records] == ["ERROR", "INFO"]
    # A small frame may fit on a full disk: that is not logged each time.
    disk.full = True
    bench.give(offer(5))
    assert len(caplog.records) == 2
    bench.clock.leap(60)
    bench.give(offer(6))
    assert [line.levelname for line in caplog.records][2:] == ["ERROR"]


def test_an_error_in_one_frame_does_not_end_the_thread(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> schema.InspectResponse:
        raise RuntimeError("encoding failed")

    bench.give(Offer(EncodedImage(scene(1)), ("sample",), "broken", answer=broken), offer(2))
    assert bench.tally.results == ["failed", "kept"]
    assert "encoding failed" in caplog.text


def unwritable(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("")
    return file / "captures"


@pytest.mark.parametrize("where", [unwritable, lambda _: Path("/proc/captures")])
def test_a_folder_that_cannot_be_written_is_a_clear_error_at_the_start(
    tmp_path: Path, where: Callable[[Path], Path]
) -> None:
    root = where(tmp_path)
    with pytest.raises(CaptureFolderError, match=rf"POMONA_CAPTURE_DIR must name a folder .*{root} cannot be written"):
        open_captures(CaptureOptions(root, MIB, 1, 0.5, 0.1, 0), max_pixels=MIB)


def test_what_else_lies_in_the_folder_is_left_alone(bench: Bench) -> None:
    (bench.root / "notes.txt").write_text("mine")
    (bench.root / "older").mkdir()
    bench.give(offer(1))
    assert bench.kept() == ["request-1"]
    assert (bench.root / "notes.txt").read_text() == "mine"


def test_a_damaged_record_is_named(bench: Bench) -> None:
    bench.give(offer(1))
    (kept,) = bench.folder.captures()
    record = json.loads((kept.path / "capture.json").read_text())
    (kept.path / "capture.json").write_text(json.dumps(record | {"reasons": ["boredom"]}))
    with pytest.raises(CaptureFolderError, match=r"capture.json is not the record of a capture: reasons\.0"):
        kept.read()
    (kept.path / "capture.json").unlink()
    with pytest.raises(CaptureFolderError, match=r"capture.json cannot be read"):
        kept.read()


def test_captures_can_be_removed_one_by_one(bench: Bench) -> None:
    bench.give(offer(1), offer(2))
    bench.folder.remove(bench.folder.captures()[0])
    assert bench.kept() == ["request-2"]
