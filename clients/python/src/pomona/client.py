"""The sync client: builds requests, and carries out by blocking what `pomona.retries.attempts` decides."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from pomona._calling import (
    DEFAULT_URL,
    BaseClient,
    drop_if_outdated,
    frames_in_flight,
    frames_of,
    grpc_transports,
    is_grpc,
    refuse_track,
)
from pomona._model_requests import LoadModel, PromoteModel, ReportShadows, UnloadModel
from pomona._requests import (
    Automatic,
    Call,
    Detect,
    EdgeDepth,
    Edges,
    Embed,
    FindInstances,
    FindText,
    Frame,
    ImageLike,
    InputSize,
    Inspect,
    ListModels,
    Mode,
    Padding,
    Preset,
    Ready,
    Request,
    Segment,
    Semantic,
)
from pomona.errors import PomonaError
from pomona.http import HttpTransport
from pomona.images import ImageSource
from pomona.prompts import Point, Prompts
from pomona.proposals import EdgeMap, Progress, Proposals
from pomona.results import Detections, Embedding, FrameInfo, Inspection, Instances, Model, Segmentation, SemanticMap
from pomona.retries import Plan, Retry, Timeout, Wait, attempts, first_attempt
from pomona.revisions import Revision, ShadowReport
from pomona.streams import FrameAnswer, StreamOptions, TakenFrame, failed, stream_frames
from pomona.transports import ClientCertificate, StreamingTransport, Transport, following, with_api_key
from pomona.video import EndTracking, TrackedFrame, TrackFrame

T = TypeVar("T")


class Client(BaseClient):
    """A client of a Pomona service, for any number of threads. It keeps connections: make one, and close it at the end.

    Args:
        url: of the service: `http://` or `https://`; with the extra `grpc` also `grpc://`, or `grpcs://` for TLS.
        timeout: limits in seconds; a number limits a call with all its attempts.
        retry: how often to try again; `NO_RETRY` for never.
        headers: sent with every request, for example a proxy's token.
        tls: for your own certificate authority, all that gRPC takes of it; None for the usual ones.
        api_key: the service's; None for that of the variable `POMONA_API_KEY`, if there is one.
        client_certificate: files of a certificate with its chain and of its key, PEM, for mutual TLS.
        transport: instead of all that says how to reach `url`: another way to the service, or that of `pomona.testing`.
        sleep: how to wait between attempts.

    Raises:
        InvalidArgument: the URL, the key or the certificate cannot be used.
        MissingPackage: the URL is one of gRPC, and the extra `grpc` is not installed.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: Timeout | float | None = None,
        retry: Retry | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        api_key: str | None = None,
        client_certificate: ClientCertificate | None = None,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(timeout, retry)
        self._sleep = sleep
        options: dict[str, Any] = {
            "headers": with_api_key(headers, api_key),
            "tls": tls,
            "client_certificate": client_certificate,
        }
        self._transport: Transport
        if transport is not None:
            self._transport = transport
        elif is_grpc(url):
            self._transport = grpc_transports().GrpcTransport(url, **options, connect=self._timeout.connect)
        else:
            self._transport = HttpTransport(url, **options)

    def segment(
        self,
        image: ImageLike,
        prompts: Prompts,
        *,
        model: str | None = None,
        multimask: bool = True,
        logits: bool = False,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Segmentation:
        """Return masks for prompts.

        Args:
            image: a path, encoded bytes, a PIL image, a uint8 array (RGB); or an `Embedding`, whose image is sent again
                only if the service has forgotten it.
            prompts: a point, box or mask; a list of these, which together describe one object; or for several objects
                a list of such lists.
            model: name of a SAM in the catalogue; None for the service's default.
            multimask: three masks, best first, for an ambiguous prompt; else one.
            logits: get masks as the SAM's low-resolution logits: a mask that is prompted again with more points is then
                refined as in segment-anything, at the price that it is upsampled here, where pixels along its edge may
                differ from the service's.
            overlay: also let the service draw the masks over the image.
            input_size: longest side in pixels at which the encoder sees the image; `auto` by the deadline.
            padding: how the image is padded for the encoder.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `TooLate` after the deadline.
        """
        request = Segment(
            prompts,
            model=model,
            multimask=multimask,
            logits=logits,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def inspect(
        self,
        image: ImageLike,
        *,
        mode: Mode = "auto",
        model: str | None = None,
        sam_model: str | None = None,
        grades: Mapping[str, float] | None = None,
        overlay: bool = False,
        frame_id: str | None = None,
        trigger_id: str | None = None,
        captured_at_ns: int | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Inspection:
        """Return every fruit, how much of it is infected, and its grade.

        Args:
            image: a path, encoded bytes, a PIL image, or a uint8 array (RGB).
            mode: `fast` is the U-Net alone, with `accurate` that sees three scales and a SAM outlines the fruit, `auto`
                is accurate where time allows.
            model: name of the U-Net in the catalogue; None for the service's default.
            sam_model: name of the SAM in the catalogue; None for the service's default.
            grades: largest infected fraction of each grade, from best to worst, rising: `{"A": 0.01}`.
            overlay: also let the service draw the fruit over the image.
            frame_id: the camera's; returned with the result.
            trigger_id: of the trigger; returned with the result.
            captured_at_ns: nanoseconds on the camera's clock; returned with the result.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `TooLate` after the deadline.
        """
        request = Inspect(mode=mode, model=model, sam_model=sam_model, grades=grades, overlay=overlay)
        frame = FrameInfo(frame_id, trigger_id, captured_at_ns)
        return self.send(request, image, frame, deadline=deadline, urgency=urgency, request_id=request_id)

    def semantic(
        self,
        image: ImageLike,
        *,
        model: str | None = None,
        overlay: bool = False,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> SemanticMap:
        """Return the class of every pixel: background, healthy or infected fruit; arguments as for `inspect`."""
        request = Semantic(model=model, overlay=overlay)
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def detect(
        self,
        image: ImageSource,
        *,
        classes: Sequence[str] | None = None,
        model: str | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
        overlay: bool = False,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Detections:
        """Return the boxes of objects of known classes, by a detector.

        Args:
            image: a path, encoded bytes, a PIL image, or a uint8 array (RGB).
            classes: names of the classes that are wanted; None for all that the detector knows.
            model: name of a detector in the catalogue; None for the service's default.
            score_threshold: least score of a box, 0 to 1; None for the service's default, 0.3.
            nms_threshold: of boxes of one class whose IoU is larger, only the best is kept; by default 0.45.
            max_detections: most boxes, 1 to 300, the best; by default 100.
            overlay: also let the service draw the boxes over the image.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `UnknownClass` for a class that the detector does not know.
        """
        request = Detect(
            classes=classes,
            model=model,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
            overlay=overlay,
        )
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def instances(
        self,
        image: ImageSource,
        *,
        classes: Sequence[str] | None = None,
        model: str | None = None,
        sam_model: str | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_instances: int | None = None,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Instances:
        """Return masks of what a detector finds, by a SAM.

        Args:
            image: a path, encoded bytes, a PIL image, or a uint8 array (RGB).
            classes: names of the classes that are wanted; None for all that the detector knows.
            model: name of a detector in the catalogue; None for the service's default.
            sam_model: name of a SAM in the catalogue; None for the service's default.
            score_threshold: least score of a box, 0 to 1; None for the service's default, 0.3.
            nms_threshold: of boxes of one class whose IoU is larger, only the best is kept; by default 0.45.
            max_instances: most objects, the best; None for as many as the service allows prompts.
            overlay: also let the service draw masks and boxes over the image.
            input_size: longest side in pixels at which the SAM's encoder sees the image; `auto` by the deadline.
            padding: how the image is padded for the encoder.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `UnknownClass` for a class that the detector does not know.
        """
        request = FindInstances(
            classes=classes,
            model=model,
            sam_model=sam_model,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_instances=max_instances,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def text(
        self,
        image: ImageSource,
        text: str,
        *,
        points: Sequence[Point] = (),
        model: str | None = None,
        sam_model: str | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_instances: int | None = None,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Instances:
        """Return masks of what a text names, by a detector and a SAM; other arguments as for `instances`.

        Args:
            image: a path, encoded bytes, a PIL image, or a uint8 array (RGB).
            text: nouns of the detector's classes, in the singular or the plural, separated by commas or full stops.
            points: clicks that refine: each goes to the smallest box around it.
            model: name of a detector in the catalogue; None for the service's default.
            sam_model: name of a SAM in the catalogue; None for the service's default.
            score_threshold: least score of a box.
            nms_threshold: of boxes of one class whose IoU is larger, only the best is kept.
            max_instances: most objects.
            overlay: also let the service draw masks and boxes over the image.
            input_size: longest side in pixels at which the SAM's encoder sees the image.
            padding: how the image is padded for the encoder.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `UnknownClass` for a noun that the detector does not know.
        """
        request = FindText(
            text,
            points=points,
            model=model,
            sam_model=sam_model,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_instances=max_instances,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def embed(
        self,
        image: ImageSource,
        *,
        model: str | None = None,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Embedding:
        """Encode an image once, and return what `segment` takes instead of it; arguments as there."""
        request = Embed(model=model, input_size=input_size, padding=padding)
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def automatic(
        self,
        image: ImageLike,
        *,
        preset: Preset = "full",
        points_per_side: int | None = None,
        crop_layers: int = 0,
        pred_iou_threshold: float | None = None,
        stability_score_threshold: float | None = None,
        box_nms_threshold: float | None = None,
        mask_nms_threshold: float | None = None,
        min_area: int = 0,
        max_area: int | None = None,
        min_side: int = 0,
        max_side: int | None = None,
        max_masks: int | None = None,
        model: str | None = None,
        overlay: bool = False,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Proposals:
        """Return masks of everything in an image.

        Args:
            image: as for `segment`.
            preset: `full` asks at 32 x 32 points, `fast` at 16 x 16.
            points_per_side: ask at so many by so many points instead.
            crop_layers: also encode 4 (1), or 4 and 16 (2), overlapping crops of the image, for small things.
            pred_iou_threshold: masks have a score above this; 0.88 by default.
            stability_score_threshold: masks have at least this stability score; 0.95 by default.
            box_nms_threshold: of two masks whose boxes have an IoU above this the better is kept; 0.7 by default.
            mask_nms_threshold: the same for the masks themselves; None where boxes alone decide.
            min_area: holes and islands of fewer pixels are removed, and masks of fewer pixels left out.
            max_area: most pixels of a mask.
            min_side: least width and height of a mask's box in pixels.
            max_side: largest width and height of a mask's box in pixels.
            max_masks: only so many, the best.
            model: name of a SAM in the catalogue; None for the service's default.
            overlay: also let the service draw the masks over the image.
            input_size: longest side in pixels at which the encoder sees the image; `auto` by the deadline.
            padding: how the image is padded for the encoder.
            deadline: seconds from now after which the answer is too late; the service answers with what it has found
                by then.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `TooLate` after the deadline.
        """
        request = Automatic(
            preset=preset,
            points_per_side=points_per_side,
            crop_layers=crop_layers,
            pred_iou_threshold=pred_iou_threshold,
            stability_score_threshold=stability_score_threshold,
            box_nms_threshold=box_nms_threshold,
            mask_nms_threshold=mask_nms_threshold,
            min_area=min_area,
            max_area=max_area,
            min_side=min_side,
            max_side=max_side,
            max_masks=max_masks,
            model=model,
            overlay=overlay,
            input_size=input_size,
            padding=padding,
        )
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def edges(
        self,
        image: ImageLike,
        *,
        points_per_side: int | None = None,
        box_nms_threshold: float | None = None,
        thick: bool = False,
        depth: EdgeDepth = "8",
        model: str | None = None,
        input_size: InputSize | None = None,
        padding: Padding | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> EdgeMap:
        """Return the edges of everything in an image.

        Args:
            image: as for `segment`.
            points_per_side: the image is asked at so many by so many points; 16 by default.
            box_nms_threshold: of two masks whose boxes have an IoU above this the better is kept; 0.7 by default.
            thick: keep edges as wide as they are found, instead of their ridges alone.
            depth: bits per pixel of the map.
            model: as for `automatic`, like the arguments that follow.
            input_size: longest side in pixels at which the encoder sees the image; `auto` by the deadline.
            padding: how the image is padded for the encoder.
            deadline: seconds from now after which the answer is too late.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `TooLate` after the deadline.
        """
        request = Edges(
            points_per_side=points_per_side,
            box_nms_threshold=box_nms_threshold,
            thick=thick,
            depth=depth,
            model=model,
            input_size=input_size,
            padding=padding,
        )
        return self.send(request, image, deadline=deadline, urgency=urgency, request_id=request_id)

    def follow(
        self,
        request: Automatic,
        image: ImageLike,
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> Generator[Progress | Proposals, None, None]:
        """Ask for everything in an image, and return masks as they are found; over gRPC only, and without retries.

        Leaving the loop early and closing the generator (`contextlib.closing`) cancels the work in the service.

        Yields:
            Any number of `Progress`, and last the `Proposals`.

        Raises:
            InvalidArgument: the client's URL is not one of gRPC.
            PomonaError: as for `automatic`.
        """
        transport = following(self._transport)
        send = first_attempt(Call.of(request, image), self._plan(deadline, urgency, request_id))
        yield from transport.follow(send.call, send.attempt)

    def track(
        self,
        image: ImageSource,
        prompts: Mapping[int, Prompts] | None = None,
        *,
        session: str | None = None,
        remove: Sequence[int] = (),
        model: str | None = None,
        logits: bool = False,
        frame_id: str | None = None,
        trigger_id: str | None = None,
        captured_at_ns: int | None = None,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> TrackedFrame:
        """Return masks of objects that are followed over the frames of a video, which come one by one; needs a SAM 2.

        Args:
            image: the next frame of the session, of the same size as those before it.
            prompts: by ids of your choice, from 1: a new object is followed from this frame on, a known one corrected.
                A prompt is points, a box, or points with a box; or a mask, which is taken as it is.
            session: of the answer to the frame before; None for the first frame, which must have prompts.
            remove: ids of objects that are followed no longer.
            model: name of a SAM 2 in the catalogue; None for the service's default, or the session's.
            logits: get masks as low-resolution logits, see `segment`.
            frame_id: the camera's; returned with the result.
            trigger_id: of the trigger; returned with the result.
            captured_at_ns: nanoseconds on the camera's clock; returned with the result.
            deadline: seconds from now after which the answer is too late; the session then goes on without the frame.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            request_id: identifies the request in the service's log.

        Raises:
            PomonaError: see `pomona.errors`; `SessionExpired` where no frame came for too long.
        """
        request = TrackFrame(prompts=prompts or {}, session=session, remove=remove, model=model, logits=logits)
        frame = FrameInfo(frame_id, trigger_id, captured_at_ns)
        return self.send(request, image, frame, deadline=deadline, urgency=urgency, request_id=request_id)

    def end_tracking(self, session: str) -> int:
        """Close a session of `track`, and return how many frames were answered; else it expires by itself."""
        return self.send(EndTracking(session))

    def models(self) -> tuple[Model, ...]:
        """Return the models of the catalogue, loaded ones first."""
        return self.send(ListModels())

    def load_model(
        self,
        model: str,
        file: str,
        *,
        sha256: str | None = None,
        architecture: str | None = None,
        promote: bool = False,
        shadow: float = 0.0,
        request_id: str | None = None,
    ) -> Revision:
        """Load a new revision of a model beside the one that answers.

        Args:
            model: name of a loaded model.
            file: path in the service's folder of models, of a checkpoint or of the folder of a training run.
            sha256: of the file; another file is then refused.
            architecture: network of the checkpoint; None for that of the active revision.
            promote: let the new revision answer as soon as it is warmed up.
            shadow: share of live frames, 0 to 1, that it answers too, in idle time, to be compared.
            request_id: identifies the request in the service's log.

        Returns:
            The revision; where its state is `loading`, `models` says when it is loaded.

        Raises:
            PomonaError: see `pomona.errors`.
        """
        request = LoadModel(model, file, sha256=sha256, architecture=architecture, promote=promote, shadow=shadow)
        return self.send(request, request_id=request_id)

    def promote_model(self, model: str, revision: str, *, request_id: str | None = None) -> Revision:
        """Let a loaded revision answer from the next request on; the one before stays loaded."""
        return self.send(PromoteModel(model, revision), request_id=request_id)

    def unload_model(self, model: str, revision: str, *, request_id: str | None = None) -> int:
        """Give up a revision that does not answer any more; return the MiB that requests have again."""
        return self.send(UnloadModel(model, revision), request_id=request_id)

    def shadows(self) -> tuple[ShadowReport, ...]:
        """Return how the answers of revisions that are loaded beside others differ from theirs."""
        return self.send(ReportShadows())

    def ready(self) -> bool:
        """Return whether the service has its models loaded and warmed up.

        Raises:
            ConnectionFailed: the service cannot be reached.
        """
        return self.send(Ready())

    def send(
        self,
        request: Request[T],
        image: ImageLike | None = None,
        frame: FrameInfo | None = None,
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        request_id: str | None = None,
    ) -> T:
        """Send a request object; the other methods build one and call this."""
        refuse_track(request)
        plan = self._plan(deadline, urgency, request_id)
        return self._send(self._transport, Call.of(request, image, frame), plan)

    def _send(self, transport: Transport, call: Call[T], plan: Plan, taken: TakenFrame | None = None) -> T:
        steps = attempts(call, plan)
        step = next(steps)
        while True:
            if isinstance(step, Wait):
                self._sleep(step.seconds)
                drop_if_outdated(taken)
                step = next(steps)
                continue
            try:
                return call.finish(transport.send(step.call, step.attempt))
            except PomonaError as error:
                step = steps.throw(error)

    def stream(
        self,
        frames: Iterable[Frame | ImageSource],
        request: Request[T],
        *,
        deadline: float | None = None,
        urgency: int | None = None,
        in_flight: int = 4,
        ordered: bool = True,
        newest_first: bool = False,
        capture_clock: Callable[[], int] | None = time.time_ns,
    ) -> Iterator[FrameAnswer[T]]:
        """Send a request for every frame of a camera, several at a time.

        A frame that fails is answered with its error, and the stream goes on, also if its connection breaks; the stream
        ends if no connection can be made. A frame is sent only if fewer than `in_flight` are in flight or have answers
        that were not yet returned; until then it is not taken from `frames`, unless `newest_first`. A thread takes the
        frames, so that a camera that blocks delays no answer. Over gRPC all frames of an `Inspect` or a `Segment` go
        over one stream, and leaving the loop early cancels those in flight; over HTTP they finish unseen, and
        `AsyncClient.stream` cancels them.

        Args:
            frames: images, or `Frame`s with the camera's identifiers.
            request: `Inspect(…)`, `Segment(…)` or `Semantic(…)`.
            deadline: seconds after which a frame's answer is too late, from when it was captured; for a frame that does
                not say when, or by another clock than `capture_clock`, from when it was taken from `frames`.
            urgency: RFC 9218, 0 the most urgent to 7 the least.
            in_flight: largest number of frames in flight, 1 to 256; 1 where the request follows fruit (`track`), whose
                frames must arrive in their order.
            ordered: answers in the order of the frames, else as they finish.
            newest_first: take frames as they come, and while there is no place let only the newest wait; the one that
                waited before is answered with `FrameDropped`. So a frame is sent at most one interval of the camera
                after it came. For a camera that does not wait.
            capture_clock: returns the time in nanoseconds by the clock of `captured_at_ns`: by default Unix time;
                `time.monotonic_ns` for cameras that the kernel stamps; None to count deadlines from when frames are
                taken. Times in the future, or more than an hour ago, are taken to be of another clock.

        Raises:
            StreamBroken: the service cannot be reached any more. What `frames` raises is raised here too.
            InvalidArgument: an argument cannot be used.
        """
        camera = frames_of(frames, request)
        in_flight = frames_in_flight(request, in_flight)
        options = StreamOptions(in_flight, ordered, newest_first, deadline, capture_clock)
        self._plan(deadline, urgency, None)  # checked before any frame is taken
        whole = self._transport
        own = whole.stream(request, in_flight) if isinstance(whole, StreamingTransport) else None
        if own is None:
            refuse_track(request)

        def answer(taken: TakenFrame) -> FrameAnswer[T]:
            frame = taken.frame
            try:
                plan = self._frame_plan(taken, options, urgency)
                call = Call.of(request, frame.image, frame.info)
                return FrameAnswer(frame, self._send(own or whole, call, plan, taken))
            except PomonaError as error:
                return failed(taken, error)

        return stream_frames(camera, answer, options, close=own.close if own is not None else lambda: None)

    def close(self) -> None:
        """Close connections; later calls raise `ClientClosed`."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
