"""Locust users that behave like a sorting line, an annotator and a batch job, and the steps of their load.

`make loadtest` runs this without Locust's web page; the options are in `plan.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
from gevent import GreenletExit
from gevent.pool import Pool
from locust import FastHttpUser, LoadTestShape, User, events, task
from locust.contrib.fasthttp import LocustUserAgent
from locust.env import Environment
from locust.runners import LocalRunner

from loadtest import locust_report
from loadtest.images import PromptedImage, images_of_folder, rendered_images
from loadtest.plan import Camera, Options, Step, add_options, read_options, schedule
from loadtest.summary import Kind, Outcome, Record, judge
from loadtest.wire import CONTENT_TYPE, DEADLINE_HEADER, SEGMENT, multipart, problem_code, retry_after_s

_GIVE_UP_S: Final = 30
_CONNECT_WITHIN_S: Final = 5
_CLICKS: Final = (10, 30)

LocustUserAgent.redirect_response_codes = frozenset()  # only the host itself is to be loaded


@dataclass
class Load:
    """State that the users of a run share.

    Attributes:
        options: from the command line.
        images: what they send.
        models: of the service.
        numbers: of the cameras, counted up.
        started: on the monotonic clock.
        rng: chooses images, prompts and pauses for thought, the same in each run.
    """

    options: Options
    images: tuple[PromptedImage, ...]
    models: list[dict[str, Any]]
    records: list[Record] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    started: float = field(default_factory=time.monotonic)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def now(self) -> float:
        """Return the seconds since the start of the run."""
        return time.monotonic() - self.started

    def image(self) -> PromptedImage:
        """Return an image that the service has not seen."""
        return self.images[self.rng.integers(len(self.images))].unseen()

    def prompt_field(self, image: PromptedImage) -> dict[str, str]:
        """Return the form's field with one of the image's prompts."""
        return {"request": json.dumps({"prompts": [image.prompts[self.rng.integers(len(image.prompts))]]})}


@dataclass(frozen=True, slots=True)
class Request:
    """A request to be sent.

    Attributes:
        kind: what it is.
        path: of the endpoint.
        fields: of the form.
        jpeg: the image, if it is sent.
        step: in which it fell due; None in a pause.
        due: seconds since the start of the run.
        deadline_s: seconds from `due` to its deadline, or None.
        retried_after: problem code after which the user sends another request; then this one does not count.
    """

    kind: Kind
    path: str
    fields: Mapping[str, str]
    jpeg: bytes | None
    step: Step | None
    due: float
    deadline_s: float | None = None
    retried_after: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        outcome: how the request ended.
        code: of the problem, or what else went wrong.
        body: as it came.
    """

    outcome: Outcome
    code: str
    body: bytes


class _PomonaUser(FastHttpUser):
    """Sends requests, keeps a record of each, and honours Retry-After."""

    abstract = True
    insecure = False
    network_timeout = _GIVE_UP_S
    connection_timeout = _CONNECT_WITHIN_S
    load: ClassVar[Load]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._hold_s = 0.0

    def send(self, request: Request) -> Answer:
        """Send a request and keep a record of how it ended."""
        load, sent = self.load, self.load.now()
        name = _name(request.kind, request.step)
        headers = {"Content-Type": CONTENT_TYPE}
        if request.deadline_s is not None:
            left_s = request.due + request.deadline_s - sent
            headers[DEADLINE_HEADER] = str(max(1, int(left_s * 1000)))
        try:
            with self.client.post(
                request.path,
                data=multipart(request.fields, request.jpeg),  # type: ignore[arg-type]  # bytes work
                headers=headers,
                name=name,
                catch_response=True,
            ) as response:
                seconds = load.now() - request.due
                body = response.content or b""
                status = response.status_code or 0
                code = "" if status == 200 else problem_code(body) or _failure(status, response)
                outcome = judge(status, problem_code(body), seconds, request.deadline_s)
                retried = bool(code) and code == request.retried_after
                if outcome in (Outcome.REFUSED, Outcome.FAILED):
                    response.request_meta["name"] = f"{name}, {code if retried else outcome}"
                if outcome is Outcome.IN_TIME or retried:
                    response.success()
                else:
                    response.failure(f"{outcome} {code}".strip())
                wait = (response.headers or {}).get("Retry-After")
        except GreenletExit:
            seconds = load.now() - request.due
            load.records.append(_record(request, Outcome.FAILED, seconds, sent - request.due, "cut_off_at_the_end"))
            raise
        if not retried:
            load.records.append(_record(request, outcome, seconds, sent - request.due, code))
        self._hold_s = retry_after_s(wait) if outcome in (Outcome.REFUSED, Outcome.FAILED) else 0.0
        return Answer(outcome, code, body)

    def until_allowed(self) -> float:
        """Return how long a user in a closed loop waits: for the next step, and for Retry-After."""
        return max(self._hold_s, self.load.options.plan.wait_at(self.load.now()))


class SortingLine(_PomonaUser):
    """One camera: frames are sent on time, each with a deadline, whether or not earlier ones were answered."""

    def on_start(self) -> None:
        """Set up the camera, out of phase with the others."""
        options = self.load.options
        phase = next(self.load.numbers) % options.cameras / options.cameras
        self._camera = Camera(schedule(options.plan, options.fps, phase), options.in_flight)
        self._in_flight = Pool()

    def wait_time(self) -> float:
        """Return the seconds until the next frame is due; after the last, the length of a pause."""
        due = self._camera.due
        return self.load.options.pause_seconds if due is None else max(0.0, due - self.load.now())

    @task
    def take_frame(self) -> None:
        """Send the frame that is due, if there is one, without waiting for its answer."""
        taken = self._camera.take(self.load.now())
        if taken is None:
            return
        frame, may_be_sent = taken
        options = self.load.options
        if may_be_sent:
            image = self.load.image()
            fields, deadline_s = self.load.prompt_field(image), options.deadline_ms / 1000
            request = Request(Kind.FRAME, SEGMENT, fields, image.jpeg, frame.step, frame.due, deadline_s)
            self._in_flight.spawn(self._send, request)
            return
        self.load.records.append(Record(Kind.FRAME, frame.step.number, Outcome.SKIPPED, 0.0))
        self.environment.events.request.fire(
            request_type="POST",
            name=f"{_name(Kind.FRAME, frame.step)}, {Outcome.SKIPPED}",
            response_time=0,
            response_length=0,
            exception=RuntimeError(f"{Outcome.SKIPPED}: {options.in_flight} frames in flight"),
            context={},
        )

    def on_stop(self) -> None:
        """Wait for the frames in flight; those that are not answered by then have failed."""
        self._in_flight.join(timeout=_GIVE_UP_S)
        self._in_flight.kill()

    def _send(self, request: Request) -> None:
        try:
            self.send(request)
        finally:
            self._camera.land()


class Annotator(_PomonaUser):
    """Embeds an image, then clicks in it by its id, thinking between clicks."""

    def on_start(self) -> None:
        """Begin without an image."""
        self._image = PromptedImage(b"", ())
        self._image_id = ""
        self._clicks_left = 0

    def wait_time(self) -> float:
        """Return a time to think."""
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
        answer = self.send(self._request(Kind.EMBED, "/v1/embed", {}, self._image.jpeg))
        if answer.outcome is Outcome.IN_TIME:
            self._image_id = json.loads(answer.body)["image"]["id"]
            self._clicks_left = int(self.load.rng.integers(*_CLICKS, endpoint=True))

    def _click(self) -> None:
        prompt = self.load.prompt_field(self._image)
        request = self._request(
            Kind.CLICK, SEGMENT, {**prompt, "image_id": self._image_id}, retried_after="unknown_image_id"
        )
        answer = self.send(request)
        if answer.code == request.retried_after:
            self.send(Request(Kind.CLICK, SEGMENT, prompt, self._image.jpeg, request.step, request.due))
        self._clicks_left -= 1

    def _request(
        self, kind: Kind, path: str, fields: Mapping[str, str], jpeg: bytes | None = None, retried_after: str = ""
    ) -> Request:
        now = self.load.now()
        return Request(kind, path, fields, jpeg, self.load.options.plan.step_at(now), now, retried_after=retried_after)


class BatchJob(_PomonaUser):
    """Sends the next image when the last one is answered; after a refusal, the same one after Retry-After."""

    def on_start(self) -> None:
        """Begin without an image."""
        self._image: PromptedImage | None = None

    def wait_time(self) -> float:
        """Return the shortest time allowed."""
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
        fields = self.load.prompt_field(self._image)
        answer = self.send(Request(Kind.BATCH, SEGMENT, fields, self._image.jpeg, step, now))
        if answer.outcome is not Outcome.REFUSED:
            self._image = None


class Steps(LoadTestShape):
    """Keeps all users from the start to the end of the plan; the cameras' schedules make the steps."""

    shown: Step | None = None

    def tick(self) -> tuple[int, float, list[type[User]] | None] | None:
        """Return the users that Locust should run now; None at the end."""
        options = _PomonaUser.load.options
        if self.get_run_time() >= options.plan.duration_s:
            return None
        step = options.plan.step_at(self.get_run_time())
        if step is not None and step != self.shown:
            print(f"Step {step.number + 1} of {len(options.rates)}: {step.rate:g}x", flush=True)
            self.shown = step
        users = [user for user in (SortingLine, Annotator, BatchJob) if user.fixed_count]
        total = sum(user.fixed_count for user in users)
        return total, total, list(users)


def _name(kind: Kind, step: Step | None) -> str:
    return f"{kind} at {step.rate:g}x" if step else f"{kind} in a pause"


def _record(request: Request, outcome: Outcome, seconds: float, lag_s: float, code: str) -> Record:
    return Record(request.kind, request.step.number if request.step else None, outcome, seconds, lag_s, code)


def _failure(status: int, response: Any) -> str:
    error = getattr(response, "error", None)
    return f"http_{status}" if status else type(error).__name__


@events.init_command_line_parser.add_listener
def _declare(parser: argparse.ArgumentParser) -> None:
    add_options(parser, include_in_web_ui=False)


@events.init.add_listener
def _prepare(environment: Environment, **_: object) -> None:
    if not isinstance(environment.runner, LocalRunner):
        sys.exit("Locust must run as one process, which keeps the steps and the records; raise --cameras instead.")
    parsed = environment.parsed_options
    if parsed is None:
        raise TypeError("Locust must be started from the command line")
    options = read_options(parsed)
    try:
        images = images_of_folder(options.images) if options.images else rendered_images(options.size)
    except ValueError as error:
        sys.exit(f"--images: {error}")
    _PomonaUser.load = Load(options, images, locust_report.loaded_models(environment.host or ""))
    SortingLine.fixed_count, SortingLine.concurrency = options.cameras, options.in_flight
    Annotator.fixed_count, BatchJob.fixed_count = options.annotators, options.batch_jobs


@events.test_start.add_listener
def _start(**_: object) -> None:
    load = _PomonaUser.load
    _PomonaUser.load = Load(load.options, load.images, load.models)


@events.test_stop.add_listener
def _stop(environment: Environment, **_: object) -> None:
    load = _PomonaUser.load
    if not locust_report.write(environment.host or "", load.models, load.options, load.records, load.options.out):
        print("No frame was answered.")
        environment.process_exit_code = 1
