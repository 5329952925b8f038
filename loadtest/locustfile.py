"""Locust users that behave like a sorting line, like an annotator and like a batch job, and the steps of their load.

`make loadtest` runs this without Locust's web page; the options are in `options.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, TextIO

import numpy as np
from gevent import GreenletExit
from gevent.pool import Pool
from locust import FastHttpUser, LoadTestShape, User, events, task
from locust.contrib.fasthttp import LocustUserAgent
from locust.env import Environment
from locust.runners import LocalRunner

from loadtest.options import Options, add_options, read_options
from loadtest.outcomes import Kind, Outcome, Record, judge
from loadtest.photos import Image, drawn, of_folder
from loadtest.plan import Camera, Step, schedule
from loadtest.wire import CONTENT_TYPE, multipart, problem_code, retry_after_s

_GIVE_UP_S: Final = 30
_CONNECT_WITHIN_S: Final = 5
_CLICKS: Final = (10, 30)

LocustUserAgent.redirect_response_codes = frozenset()  # traffic goes to the host alone


@dataclass
class Load:
    """What the users of a run share.

    Attributes:
        options: from the command line.
        images: what they send.
        records: file for a line per request; None where nobody asked for it.
        numbers: of the cameras.
        started: time on the monotonic clock.
        rng: chooses images, prompts and pauses for thought, the same in each run.
    """

    options: Options
    images: tuple[Image, ...]
    records: TextIO | None
    numbers: Iterator[int] = field(default_factory=itertools.count)
    started: float = field(default_factory=time.monotonic)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def now(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self.started

    def image(self) -> Image:
        """One that the service has not seen."""
        return self.images[self.rng.integers(len(self.images))].anew()

    def prompting(self, image: Image) -> dict[str, str]:
        """The form's field with a prompt that fits the image."""
        return {"request": json.dumps({"prompts": [image.prompts[self.rng.integers(len(image.prompts))]]})}

    def keep(self, record: Record) -> None:
        """Write a record down."""
        if self.records is not None:
            self.records.write(record.line())


@dataclass(frozen=True, slots=True)
class Question:
    """A request to be sent.

    Attributes:
        kind: what it is.
        path: where it goes.
        fields: of the form.
        jpeg: the image, where it is sent.
        step: in which it fell due; None in a pause.
        due: when, in seconds since the start of the run.
        deadline_s: seconds from `due` in which it is to be answered, where it has a deadline.
        heals: problem code after which the user asks again with what was missing; neither a failure nor an end.
    """

    kind: Kind
    path: str
    fields: Mapping[str, str]
    jpeg: bytes | None
    step: Step | None
    due: float
    deadline_s: float | None = None
    heals: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        outcome: how the request ended.
        code: of the problem, or what else went wrong.
        body: of the answer.
    """

    outcome: Outcome
    code: str
    body: bytes


class _PomonaUser(FastHttpUser):
    """Sends requests, keeps a record of each, and waits where the service asks for it."""

    abstract = True
    insecure = False
    network_timeout = _GIVE_UP_S
    connection_timeout = _CONNECT_WITHIN_S
    load: ClassVar[Load]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._hold_s = 0.0

    def ask(self, question: Question) -> Answer:
        """Send a request and keep a record of how it ended."""
        load, sent = self.load, self.load.now()
        name = _name(question.kind, question.step)
        headers = {"Content-Type": CONTENT_TYPE}
        if question.deadline_s is not None:
            left_s = question.due + question.deadline_s - sent
            headers["X-Deadline-Ms"] = str(max(1, int(left_s * 1000)))
        try:
            with self.client.post(
                question.path,
                data=multipart(question.fields, question.jpeg),  # type: ignore[arg-type]  # bytes are well
                headers=headers,
                name=name,
                catch_response=True,
            ) as response:
                seconds = load.now() - question.due
                body = response.content or b""
                status = response.status_code or 0
                code = "" if status == 200 else problem_code(body) or _what_failed(status, response)
                outcome = judge(status, problem_code(body), seconds, question.deadline_s)
                healed = bool(code) and code == question.heals
                if outcome in (Outcome.REFUSED, Outcome.FAILED):
                    response.request_meta["name"] = f"{name}, {code if healed else outcome}"
                if outcome is Outcome.IN_TIME or healed:
                    response.success()
                else:
                    response.failure(f"{outcome} {code}".strip())
                wait = (response.headers or {}).get("Retry-After")
        except GreenletExit:
            seconds = load.now() - question.due
            load.keep(_record(question, Outcome.FAILED, seconds, sent - question.due, "cut_off_at_the_end"))
            raise
        if not healed:
            load.keep(_record(question, outcome, seconds, sent - question.due, code))
        self._hold_s = retry_after_s(wait) if outcome in (Outcome.REFUSED, Outcome.FAILED) else 0.0
        return Answer(outcome, code, body)

    def until_allowed(self) -> float:
        """Seconds that a user in a closed loop waits: for the next step, and as long as it was asked to."""
        return max(self._hold_s, self.load.options.plan.wait_at(self.load.now()))


class SortingLine(_PomonaUser):
    """One camera: a frame is taken and sent on time whether or not earlier ones were answered, each with a deadline."""

    def on_start(self) -> None:
        """Set the camera up: it is out of step with the others, as cameras are."""
        options = self.load.options
        phase = next(self.load.numbers) % options.cameras / options.cameras
        self._camera = Camera(schedule(options.plan, options.fps, phase), options.in_flight)
        self._in_flight = Pool()

    def wait_time(self) -> float:
        """Seconds until the next frame is due; after the last, the length of a pause."""
        due = self._camera.due
        return self.load.options.pause_seconds if due is None else max(0.0, due - self.load.now())

    @task
    def take_frame(self) -> None:
        """Send the frame that is due, where one is, without waiting for its answer."""
        taken = self._camera.take(self.load.now())
        if taken is None:
            return
        frame, may_be_sent = taken
        options = self.load.options
        if may_be_sent:
            image = self.load.image()
            fields, deadline_s = self.load.prompting(image), options.deadline_ms / 1000
            question = Question(Kind.FRAME, "/v1/segment", fields, image.jpeg, frame.step, frame.due, deadline_s)
            self._in_flight.spawn(self._send, question)
            return
        self.load.keep(Record(Kind.FRAME, frame.step.number, Outcome.SKIPPED, 0.0))
        self.environment.events.request.fire(
            request_type="POST",
            name=f"{_name(Kind.FRAME, frame.step)}, {Outcome.SKIPPED}",
            response_time=0,
            response_length=0,
            exception=RuntimeError(f"{Outcome.SKIPPED}: {options.in_flight} frames in flight"),
            context={},
        )

    def on_stop(self) -> None:
        """Wait for the frames in flight; what is not answered then has failed."""
        self._in_flight.join(timeout=_GIVE_UP_S)
        self._in_flight.kill()

    def _send(self, question: Question) -> None:
        try:
            self.ask(question)
        finally:
            self._camera.land()


class Annotator(_PomonaUser):
    """Has an image embedded, then clicks in it by its id, thinking between clicks."""

    def on_start(self) -> None:
        """Begin with no image."""
        self._image = Image(b"", ())
        self._image_id = ""
        self._clicks_left = 0

    def wait_time(self) -> float:
        """Think, about so long."""
        return max(self.until_allowed(), self.load.rng.uniform(0.5, 1.5) * self.load.options.think_seconds)

    @task
    def work(self) -> None:
        """Click, or begin the next image."""
        if self.load.options.plan.step_at(self.load.now()) is None:
            return
        if self._clicks_left:
            self._click()
        else:
            self._begin()

    def _begin(self) -> None:
        self._image = self.load.image()
        answer = self.ask(self._question(Kind.EMBED, "/v1/embed", {}, self._image.jpeg))
        if answer.outcome is Outcome.IN_TIME:
            self._image_id = json.loads(answer.body)["image"]["id"]
            self._clicks_left = int(self.load.rng.integers(*_CLICKS, endpoint=True))

    def _click(self) -> None:
        prompt = self.load.prompting(self._image)
        question = self._question(
            Kind.CLICK, "/v1/segment", {**prompt, "image_id": self._image_id}, heals="unknown_image_id"
        )
        answer = self.ask(question)
        if answer.code == question.heals:
            self.ask(Question(Kind.CLICK, "/v1/segment", prompt, self._image.jpeg, question.step, question.due))
        self._clicks_left -= 1

    def _question(
        self, kind: Kind, path: str, fields: Mapping[str, str], jpeg: bytes | None = None, heals: str = ""
    ) -> Question:
        now = self.load.now()
        return Question(kind, path, fields, jpeg, self.load.options.plan.step_at(now), now, heals=heals)


class BatchJob(_PomonaUser):
    """Sends the next image when the last one is answered; after a refusal the same one, when it is asked to."""

    def on_start(self) -> None:
        """Begin with no image."""
        self._image: Image | None = None

    def wait_time(self) -> float:
        """As short as allowed."""
        return self.until_allowed()

    @task
    def send_image(self) -> None:
        """Send an image."""
        now = self.load.now()
        step = self.load.options.plan.step_at(now)
        if step is None:
            return
        if self._image is None:
            self._image = self.load.image()
        fields = self.load.prompting(self._image)
        answer = self.ask(Question(Kind.BATCH, "/v1/segment", fields, self._image.jpeg, step, now))
        if answer.outcome is not Outcome.REFUSED:
            self._image = None


class Steps(LoadTestShape):
    """All users from the start to the end of the plan; the cameras' schedule makes the steps."""

    def tick(self) -> tuple[int, float, list[type[User]] | None] | None:
        """What Locust asks every second."""
        options = _PomonaUser.load.options
        if self.get_run_time() >= options.plan.duration_s:
            return None
        users = [user for user in (SortingLine, Annotator, BatchJob) if user.fixed_count]
        total = sum(user.fixed_count for user in users)
        return total, total, list(users)


def _name(kind: Kind, step: Step | None) -> str:
    return f"{kind} at {step.rate:g}x" if step else f"{kind} in a pause"


def _record(question: Question, outcome: Outcome, seconds: float, lag_s: float, code: str) -> Record:
    return Record(question.kind, question.step.number if question.step else None, outcome, seconds, lag_s, code)


def _what_failed(status: int, response: Any) -> str:
    error = getattr(response, "error", None)
    return f"http_{status}" if status else type(error).__name__


@events.init_command_line_parser.add_listener
def _declare(parser: argparse.ArgumentParser) -> None:
    add_options(parser, include_in_web_ui=False)
    parser.add_argument("--records", type=Path, default=None, help="file to write a line of JSON per request to")


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    if not isinstance(environment.runner, LocalRunner):
        sys.exit("The steps and the records are those of one Locust process; start one, with more --cameras.")
    parsed = environment.parsed_options
    if parsed is None:
        raise TypeError("Locust was started without its command line")
    options = read_options(parsed)
    try:
        images = of_folder(options.images) if options.images else drawn(options.image_size)
    except ValueError as error:
        sys.exit(f"--images: {error}")
    records = parsed.records.open("w", buffering=1) if parsed.records else None
    _PomonaUser.load = Load(options, images, records)
    SortingLine.fixed_count, SortingLine.concurrency = options.cameras, options.in_flight
    Annotator.fixed_count, BatchJob.fixed_count = options.annotators, options.batch_jobs


@events.test_start.add_listener
def _start(**_: object) -> None:
    load = _PomonaUser.load
    _PomonaUser.load = Load(load.options, load.images, load.records)
