"""One turn of the circle: capture, label, train, shadow, promote, each step through a public door of Pomona."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tqdm import tqdm

from deploy.loop.frames import Use, all_rendered, rendered, use_of
from deploy.loop.labels import label
from deploy.loop.line import Line
from deploy.loop.report import Figures, Report, before_and_after, figures_of, write_report
from loadtest.server import Server, running
from models.data.samples import Sample
from models.synthetic import encode_jpeg
from models.types import SemanticMap
from pomona import NO_RETRY, Client, Revision, ShadowReport
from service.access import new_key
from service.keys import add

MODEL: Final = "unet-mobilenetv2-citrus"
RUN: Final = "plums"
"""The folder of the training run, in POMONA_MODELS_DIR."""

_ROOT: Final = Path(__file__).parents[2]
_WEIGHTS: Final = _ROOT / "models" / "weights" / f"{MODEL}.safetensors"
_SETTINGS: Final = {
    "models": MODEL,
    "capture_per_hour": "1000",  # a morning in a minute
    "capture_sample": "0.5",
}
_KEEP_FLOAT32: Final = "Serve best.safetensors"
"""What a training says whose weights lose too much as float16."""

_TIMEOUT_S: Final = 60.0
_LOADED_WITHIN_S: Final = 300.0
_COMPARED_WITHIN_S: Final = 300.0
_WRITTEN_WITHIN_S: Final = 30.0
_POLL_S: Final = 0.5
_EVERY_S: Final = 0.5


class TurnFailed(Exception):
    """A step did not do what it must."""


@dataclass(frozen=True)
class Amounts:
    """How much of everything.

    Attributes:
        train: frames of new fruit that pass the camera to be captured and trained on.
        validation: likewise to validate on.
        held_out: frames that only the figures before and after are taken from, of the new fruit and of ordinary scenes.
        epochs: of the training.
        shown: captured frames in an epoch.
        rendered: ordinary scenes in an epoch, so that the old fruit is not forgotten.
        compared: live frames that the shadow must have answered.
        checked: ordinary scenes to validate on.
        area: most pixels of an image in the network while it is trained.
        train_within_s: after which the training is ended.
    """

    train: int = 120
    validation: int = 24
    held_out: int = 40
    epochs: int = 3
    shown: int = 50
    rendered: int = 110
    compared: int = 20
    checked: int = 12
    area: int = 100_352
    train_within_s: float = 3600.0


@dataclass
class Turn:
    """One turn.

    Args:
        folder: for the service's files, the captures and the training run.
        out: for the report and the image; it exists.
        amounts: how much of everything.
        say: receives each line of progress.
    """

    folder: Path
    out: Path
    amounts: Amounts
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Report:
        """Go round once.

        Raises:
            TurnFailed: a step did not do what it must.
            PomonaError, ServerFailed: the service did not.
        """
        key, text = new_key("line", ("infer", "admin"))
        add(self.folder / "keys.json", key)
        (self.folder / "models").mkdir()
        settings = {
            "capture_dir": str(self.folder / "captures"),
            "models_dir": str(self.folder / "models"),
            "api_keys_file": str(self.folder / "keys.json"),
        }
        with (
            running(self.folder, **_SETTINGS, **settings) as server,
            Client(server.address, api_key=text, timeout=_TIMEOUT_S, retry=NO_RETRY) as client,
        ):
            return self._go_round(server, client)

    def _go_round(self, server: Server, client: Client) -> Report:
        old = _active(client)
        self.say(f"{MODEL} {old} answers at {server.address}")
        names: dict[str, Use] = {"new fruit": "held-out", "ordinary": "ordinary"}
        truth = {name: self._render(use, self.amounts.held_out) for name, use in names.items()}
        said = {name: _ask(client, samples) for name, samples in truth.items()}
        before = self._figures("before", truth, said)
        with self._timed("capture"):
            self._capture(client)
        with self._timed("label"):
            data = self.folder / "labelled"
            captured = label(self._export(), data, rendered, use_of)
            self.say(f"labelled {captured.get('train', 0)} frames to train on, {captured.get('val', 0)} to validate on")
        live = [(frame_id, encode_jpeg(sample)) for frame_id, sample in all_rendered("live", self.amounts.compared)]
        with Line(client, live, _EVERY_S) as line:
            with self._timed("train"):
                file = self._train(data, captured.get("train", 0))
            with self._timed("load"):
                new = self._load(client, file)
            with self._timed("shadow"):
                shadow = self._shadow(client)
            client.promote_model(MODEL, new)
            self.say(f"promoted {new}: it answers from the next frame on")
            freed = client.unload_model(MODEL, old)
            self.say(f"unloaded {old}, {freed} MiB freed")
            _wait_for(lambda: line.counts.answered[new] > 0, _TIMEOUT_S, "no live frame was answered by it")
        counts = line.counts
        by_revision = ", ".join(f"{count} by {revision}" for revision, count in counts.answered.items())
        self.say(f"the line sent {counts.sent} frames meanwhile: {by_revision}, {counts.unanswered} without an answer")
        for reason in counts.lost:
            self.say(f"  lost: {reason}")
        said_after = {name: _ask(client, samples) for name, samples in truth.items()}
        after = self._figures("after", truth, said_after)
        report = Report(
            before=before,
            after=after,
            revisions=(old, new),
            captured=captured,
            sent=counts.sent,
            lost=counts.unanswered,
            shadow=_numbers(shadow),
            seconds=self.seconds,
        )
        write_report(report, self.out)
        shown = before_and_after(truth["new fruit"], said["new fruit"], said_after["new fruit"])
        shown.save(self.out / "before-after.webp", quality=80)
        return report

    def _render(self, use: Use, count: int) -> list[Sample]:
        frames = tqdm(all_rendered(use, count), f"rendering {use}", count, leave=False, disable=None)
        return [sample for _, sample in frames]

    def _figures(
        self, when: str, truth: dict[str, list[Sample]], said: dict[str, list[SemanticMap]]
    ) -> dict[str, Figures]:
        figures = {name: figures_of(said[name], samples) for name, samples in truth.items()}
        for name, each in figures.items():
            self.say(
                f"{when}, {each.frames} frames of {name}: IoU of fruit {each.fruit_iou:.3f} (least "
                f"{each.least_fruit_iou:.3f}), error of the infected fraction {each.infected_fraction_error:.3f}"
            )
        return figures

    def _capture(self, client: Client) -> None:
        """Send the frames of a line, one after the other, and wait until the service has written what it keeps."""
        sent = 0
        uses: dict[Use, int] = {"train": self.amounts.train, "val": self.amounts.validation}
        for use, count in uses.items():
            for frame_id, sample in tqdm(all_rendered(use, count), f"sending {use}", count, leave=False, disable=None):
                client.inspect(encode_jpeg(sample), mode="fast", frame_id=frame_id)
                sent += 1
        until, kept = time.monotonic() + _WRITTEN_WITHIN_S, -1
        while kept != (now := self._captures()) and time.monotonic() < until:
            kept = now
            time.sleep(2 * _POLL_S)
        self.say(f"the service kept {kept} of {sent} frames")

    def _captures(self) -> int:
        return len(list((self.folder / "captures").glob("2*")))

    def _export(self) -> Path:
        tasks = self.folder / "to-label"
        log = self.folder / "export.log"
        command = ["-m", "service.capture", "--captures", str(self.folder / "captures"), "export"]
        _check(_run([*command, "--to", "label-studio", str(tasks)], log, _TIMEOUT_S), log, "exporting")
        return tasks

    def _train(self, data: Path, images: int) -> str:
        """Train, and return what is to be loaded: a path in the service's folder of models."""
        amounts = self.amounts
        if not images:
            raise TurnFailed("No captured frame is one to train on: send more frames.")
        options = {
            "out": str(self.folder / "models" / RUN),
            "name": RUN,
            "begin-from": str(_WEIGHTS),
            "area": str(amounts.area),
            "batch": "4",
            "close": "0",
            "epochs": str(amounts.epochs),
            "patience": "0",
            "schedule": "constant",
            "learning-rate": "2e-4",
            "averaging": "0.95",
            "rendered": str(amounts.rendered),
            "rendered-validation": str(amounts.checked),
            "device": "cpu",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        data_words = ["--data", str(data), "--data-weight", f"{amounts.shown / images:.3f}"]
        log = self.out / "training.log"
        self.say(f"training for {amounts.epochs} epochs at a low priority; see {log}")
        status = _run(["-m", "models.training", "unet", *words, *data_words], log, amounts.train_within_s)
        if status and _KEEP_FLOAT32 in log.read_text("utf-8"):
            self.say("float16 would change the answers too much on so few images: the float32 weights are served")
            return f"{RUN}/best.safetensors"
        _check(status, log, "training")
        return RUN

    def _load(self, client: Client, file: str) -> str:
        """Load the new revision as a shadow, and wait until it is warmed up."""
        made = client.load_model(MODEL, file, shadow=1.0)

        def loaded() -> bool:
            revision = _find(client, made.revision)
            if revision.state == "failed":
                raise TurnFailed(f"The service could not load {made.revision}: {revision.error}")
            return revision.state == "loaded"

        _wait_for(loaded, _LOADED_WITHIN_S, f"{made.revision} was not loaded")
        self.say(f"{made.revision} is loaded beside the active one, and answers each live frame too")
        return made.revision

    def _shadow(self, client: Client) -> ShadowReport:
        with tqdm(total=self.amounts.compared, desc="comparing", leave=False, disable=None) as progress:

            def compared() -> bool:
                progress.n = min(client.shadows()[0].compared, self.amounts.compared)
                progress.refresh()
                return progress.n >= self.amounts.compared

            _wait_for(compared, _COMPARED_WITHIN_S, "the shadow found no idle time for enough frames")
        (report,) = client.shadows()
        self.say(
            f"shadow: {report.compared} frames compared, {report.skipped} skipped, {report.failed} failed; IoU of "
            f"fruit mean {report.mean_iou or 0:.3f}, least {report.least_iou or 0:.3f}; {report.grade_changes} of "
            f"{report.fruits} fruits with another grade or found by one alone"
        )
        return report

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - started, 1)


def _ask(client: Client, samples: Sequence[Sample]) -> list[SemanticMap]:
    """Return what the active revision says; `semantic` answers are never captured, so nothing of them is trained on."""
    return [client.semantic(encode_jpeg(sample)).array for sample in samples]


def _active(client: Client) -> str:
    return next(model.revision for model in client.models() if model.name == MODEL)


def _find(client: Client, revision: str) -> Revision:
    revisions = next(model.revisions for model in client.models() if model.name == MODEL)
    return next(each for each in revisions if each.revision == revision)


def _numbers(report: ShadowReport) -> dict[str, float | int | None]:
    return {name: value for name, value in asdict(report).items() if value is None or isinstance(value, int | float)}


def _wait_for(done: Callable[[], bool], within_s: float, problem: str) -> None:
    until = time.monotonic() + within_s
    while not done():
        if time.monotonic() > until:
            raise TurnFailed(f"{problem} within {within_s:.0f} s.")
        time.sleep(_POLL_S)


def _run(arguments: Sequence[str], log: Path, within_s: float) -> int:
    """Run a module of ours in a process of its own at a low priority, as the service answers meanwhile.

    Args:
        arguments: of Python.
        log: what it prints, as it does.
        within_s: after which it is ended.

    Returns:
        Its exit status.
    """
    try:
        with log.open("wb") as output:
            done = subprocess.run(  # noqa: S603 (our own module)
                ["nice", "-n", "5", sys.executable, *arguments],  # noqa: S607 (coreutils)
                cwd=_ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=within_s,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise TurnFailed(f"{' '.join(arguments[:3])} took longer than {within_s:.0f} s; see {log}.") from error
    return done.returncode


def _check(status: int, log: Path, step: str) -> None:
    if status:
        raise TurnFailed(f"{step} ended with {status}:\n{log.read_text('utf-8')[-4000:]}")
