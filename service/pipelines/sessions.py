"""Sessions of `track`: each remembers the objects of one video between its frames, within limits.

Bytes are set aside for as much as an object can ever be remembered by, when it is added, so that a session that was
admitted never fails for want of them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from models.sam2.memory import TrackState
from models.types import Size
from service.errors import Overloaded, SessionExpired, TooManyObjects, TooManySessions, UnknownSession
from service.observability.observer import Observer
from service.runners.sam2 import Sam2Runner
from service.settings import Settings

MAX_WAITING: Final = 64
"""Frames of one session that wait for those before them, as many as a stream may have in flight."""

_REMEMBERED: Final = 1024
"""Names of expired sessions, so that their callers learn why they are gone."""

_RETRY_AFTER_S: Final = 5.0


class Line:
    """Frames of a session, one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> asyncio.Future[None]:
        """Take the last place; it is done once it is the first."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            place.set_result(None)
        self._waiting.append(place)
        return place

    def leave(self, place: asyncio.Future[None]) -> None:
        """Give a place up; the next is the first where this one was."""
        was_first = self._waiting[0] is place
        self._waiting.remove(place)
        if was_first and self._waiting and not self._waiting[0].done():
            self._waiting[0].set_result(None)


@dataclass(slots=True, eq=False)
class Session:
    """A session.

    Attributes:
        name: unguessable.
        caller: name of the API key that opened it; others' requests do not find it.
        runner: of the model.
        used: when its last frame came or was answered, seconds on the clock.
        state: what is remembered; for the device's thread while a frame is there.
        size: of all frames; None before the first.
        line: frames that are being answered.
        step: the device's work on the last frame, which a caller who leaves does not stop.
        objects: ids for which bytes are set aside.
    """

    name: str
    caller: str
    runner: Sam2Runner
    used: float
    state: TrackState = field(default_factory=TrackState)
    size: Size | None = None
    line: Line = field(default_factory=Line)
    step: asyncio.Future[Any] | None = None
    objects: frozenset[int] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes that are set aside."""
        return len(self.objects) * (self.runner.tracker.object_bytes or 0)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[asyncio.Future[None]]:
        """Hold a place in the line within a block; wait for it before the session is looked at.

        It is held until the device is done with the frame, also where the block ends before.

        Raises:
            Overloaded: too many frames wait.
        """
        if len(self.line) >= MAX_WAITING:
            raise Overloaded(
                f"{MAX_WAITING} frames of this session wait for those before them: send fewer at a time.",
                retry_after=1,
            )
        place = self.line.join()
        try:
            yield place
        finally:
            if self.step is None or self.step.done() or not place.done():
                self.line.leave(place)
            else:
                self.step.add_done_callback(lambda _: self.line.leave(place))


class Sessions:
    """All sessions. For one event loop.

    Args:
        settings: limits.
        clock: seconds, monotonic.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._expired: OrderedDict[str, str] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def nbytes(self) -> int:
        """Bytes that are set aside for all."""
        return sum(session.nbytes for session in self._open.values())

    def open(self, runner: Sam2Runner, caller: str, observer: Observer) -> Session:
        """Open a session.

        Raises:
            TooManySessions: as many are open as allowed.
        """
        self.expire(observer)
        limit = self._settings.track_sessions
        if len(self._open) >= limit:
            observer.track_session("refused")
            raise TooManySessions(
                f"{limit} sessions are open, as many as POMONA_TRACK_SESSIONS allows: end one (/v1/track/end), or wait "
                f"until one expires.",
                retry_after=_RETRY_AFTER_S,
            )
        session = Session(secrets.token_hex(16), caller, runner, self._clock())
        self._open[session.name] = session
        observer.track_session("opened")
        self._report(observer)
        self._arm(observer)
        return session

    def get(self, name: str, caller: str, observer: Observer) -> Session:
        """Return a session, now in use.

        Raises:
            SessionExpired: it was idle for too long.
            UnknownSession: there is none of this name, or another caller opened it.
        """
        self.expire(observer)
        session = self._open.get(name)
        if session is None and self._expired.get(name) == caller:
            raise SessionExpired(
                f"The session had no frame for {self._settings.track_idle_s:g} s (POMONA_TRACK_IDLE_S) and was closed: "
                "open another one."
            )
        if session is None or session.caller != caller:
            raise UnknownSession("There is no such session: it was never opened here, or it was ended.")
        session.used = self._clock()
        return session

    def end(self, session: Session, observer: Observer) -> None:
        """Close a session and forget what it remembers; harmless when repeated."""
        if self._open.pop(session.name, None) is not None:
            observer.track_session("closed")
            self._report(observer)

    def is_open(self, session: Session) -> bool:
        """Return whether a session was not closed meanwhile."""
        return session.name in self._open

    def set_aside(self, session: Session, objects: frozenset[int], observer: Observer) -> None:
        """Set bytes aside for what will be remembered of objects.

        Raises:
            TooManyObjects: the session may not follow as many.
            TooManySessions: all sessions together would remember too much.
        """
        limit, added = self._settings.track_objects, len(objects - session.objects)
        if len(objects) > limit and added:
            raise TooManyObjects(
                f"A session must follow at most {limit} objects (POMONA_TRACK_OBJECTS), got {len(objects)}: remove "
                "some in the same request."
            )
        each = session.runner.tracker.object_bytes or 0
        if added and self.nbytes + added * each > self._settings.track_memory_bytes:
            observer.track_session("refused")
            raise TooManySessions(
                f"{added} more objects take {added * each >> 10} KiB, and the sessions have "
                f"{self.nbytes >> 10} KiB of {self._settings.track_memory_bytes >> 10} KiB (POMONA_TRACK_MEMORY_MIB): "
                "remove objects, or end sessions.",
                retry_after=_RETRY_AFTER_S,
            )
        session.objects = session.objects | objects
        self._report(observer)

    def settle(self, session: Session, observer: Observer) -> None:
        """Note that a frame was answered: only objects that are remembered count from now on."""
        session.used = self._clock()
        session.objects = frozenset(session.state.objects)
        self._report(observer)

    def expire(self, observer: Observer) -> None:
        """Close the sessions that were idle for too long."""
        oldest = self._clock() - self._settings.track_idle_s
        idle = [session for session in self._open.values() if session.used <= oldest and not len(session.line)]
        for session in idle:
            del self._open[session.name]
            self._expired[session.name] = session.caller
            observer.track_session("expired")
        while len(self._expired) > _REMEMBERED:
            self._expired.popitem(last=False)
        if idle:
            self._report(observer)

    def _arm(self, observer: Observer) -> None:
        """Look for idle sessions also while no request comes, as long as any is open."""
        if self._timer is None:
            wait = self._settings.track_idle_s
            self._timer = asyncio.get_running_loop().call_later(wait, self._tick, observer)

    def _tick(self, observer: Observer) -> None:
        self._timer = None
        self.expire(observer)
        if self._open:
            self._arm(observer)

    def _report(self, observer: Observer) -> None:
        observer.track_held(len(self._open), self.nbytes)
