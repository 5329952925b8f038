"""Who calls and what they may do: API keys from a file that is re-read, with scopes and limits for each key.

A key is 256 bits from the system's random source, behind an id by which it is found. So one salted SHA-256 for each
request is enough: slow hashes such as scrypt are for passwords, which can be guessed, and would take milliseconds of
every request.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import PomonaError
from service.errors import PermissionDenied, RateLimited, Unauthenticated
from service.watched_files import WatchedFiles

Scope = Literal["infer", "admin"]
"""What a key is for: `infer` for all operations, `admin` for what operates the service (/metrics)."""

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
MAX_KEYS: Final = 256
"""Of a file; also bounds what logs and metrics can name."""

_LOG: Final = logging.getLogger("pomona.access")
_PREFIX: Final = "pomona"
_ID_BYTES: Final = 6
_SALT_BYTES: Final = 16
_SECRET_BYTES: Final = 32
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_KEY_LENGTH: Final = 256


class KeyFileError(PomonaError):
    """The file of keys is missing or malformed."""


class ApiKey(BaseModel):
    """A key as the file has it: nothing from which the key itself could be made.

    Attributes:
        id: by which it is found; the middle part of the key.
        name: for logs and metrics.
        scopes: what it is for.
        rate: most requests and frames per second on average, with bursts of one second; None for no limit.
        concurrency: most requests and frames at a time; None for no limit.
        created: when it was added.
        salt: random, hexadecimal.
        sha256: of the salt's bytes followed by the key's text, hexadecimal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    concurrency: int | None = Field(None, ge=1)
    created: datetime.date
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def matches(self, text: str) -> bool:
        """Return whether `text` is this key; takes the same time wherever they differ."""
        return hmac.compare_digest(_digest(self.salt, text), self.sha256)


class ApiKeys(BaseModel):
    """The file: JSON with all keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: Annotated[tuple[ApiKey, ...], Field(max_length=MAX_KEYS)] = ()


def new_key(
    name: str, scopes: tuple[Scope, ...], *, rate: float | None = None, concurrency: int | None = None
) -> tuple[ApiKey, str]:
    """Return a new key as the file has it, and its text, which is stored nowhere.

    Raises:
        KeyFileError: the name or a limit is not valid.
    """
    identifier, salt = secrets.token_hex(_ID_BYTES), secrets.token_hex(_SALT_BYTES)
    text = f"{_PREFIX}_{identifier}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    try:
        key = ApiKey(
            id=identifier,
            name=name,
            scopes=scopes,
            rate=rate,
            concurrency=concurrency,
            created=datetime.datetime.now(datetime.UTC).date(),
            salt=salt,
            sha256=_digest(salt, text),
        )
    except ValidationError as error:
        raise KeyFileError(_first_problem(error)) from error
    return key, text


def read_keys(path: Path) -> ApiKeys:
    """Read a file of keys.

    Raises:
        KeyFileError: it cannot be read, is larger than 1 MiB, is not such JSON, or names a key twice.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"The file of keys {path} cannot be read: {error.strerror}.") from error
    if len(text) > _MAX_FILE_BYTES:
        raise KeyFileError(f"The file of keys {path} must have at most {_MAX_FILE_BYTES} bytes.")
    try:
        keys = ApiKeys.model_validate_json(text)
    except ValidationError as error:
        raise KeyFileError(f"The file of keys {path} is malformed: {_first_problem(error)}") from error
    for what in ("id", "name"):
        values = [getattr(key, what) for key in keys.keys]
        if len(set(values)) < len(values):
            raise KeyFileError(f"The file of keys {path} must have every {what} once.")
    return keys


class KeyFile:
    """The keys of a file, which is looked at once a second while requests come, and re-read when it changed.

    A file that cannot be read later is reported, and the keys that were read last remain.

    Args:
        path: of the file.
        clock: seconds, monotonic.

    Raises:
        KeyFileError: it cannot be read now.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._files = WatchedFiles((path,), clock)  # before it is read, so that a change meanwhile is noticed
        self._keys = {key.id: key for key in read_keys(path).keys}

    def find(self, identifier: str) -> ApiKey | None:
        """Return the key with an id, or None."""
        if self._files.changed():
            self._reread()
        return self._keys.get(identifier)

    def _reread(self) -> None:
        try:
            self._keys = {key.id: key for key in read_keys(self._path).keys}
        except KeyFileError as error:
            _LOG.error("the keys are those of before", extra={"detail": error.detail})
            return
        _LOG.info("the keys were read again", extra={"keys": len(self._keys)})


@dataclass(slots=True)
class _Usage:
    """What a key uses now.

    Attributes:
        running: requests and frames that are not answered yet.
        tokens: requests that may begin at once.
        at: when `tokens` was counted.
    """

    running: int
    tokens: float
    at: float


class Access:
    """Lets callers in, over HTTP and gRPC alike.

    Args:
        keys: those that are valid; None where everybody may do everything.
        clock: seconds, monotonic.
    """

    def __init__(self, keys: KeyFile | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._usage: dict[str, _Usage] = {}

    @classmethod
    def of(cls, file: Path | None) -> Access:
        """Return that of a file of keys; where there is none, everybody may do everything.

        Raises:
            KeyFileError: it cannot be read.
        """
        return cls(None if file is None else KeyFile(file))

    def caller(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Return the caller's key; None where everybody may do everything.

        Args:
            headers: by name in lower case, or metadata: `authorization: Bearer KEY`, `x-api-key: KEY`, or HTTP Basic
                with the key as the password.

        Raises:
            Unauthenticated: there is no key, or none that is valid.
        """
        if self._keys is None:
            return None
        text = _presented(headers)
        if not text:
            raise Unauthenticated("An API key is needed, as Authorization: Bearer KEY or X-API-Key: KEY.")
        key = self._keys.find(_id_of(text))
        if key is None or len(text) > _MAX_KEY_LENGTH or not key.matches(text):
            raise Unauthenticated("The API key is not valid: it is unknown here, or was removed.")
        return key

    @staticmethod
    def permit(key: ApiKey, scope: Scope) -> None:
        """Check that a key is for something.

        Raises:
            PermissionDenied: it is not.
        """
        if scope not in key.scopes:
            raise PermissionDenied(
                f"This needs an API key with the scope {scope}; {key.name} has {', '.join(key.scopes)}."
            )

    @contextmanager
    def using(self, key: ApiKey, scope: Scope) -> Iterator[None]:
        """Count a request, or a frame of a stream, while it is answered.

        Raises:
            PermissionDenied: the key is not for this.
            RateLimited: it has as many as it may have.
        """
        self.permit(key, scope)
        usage = self._usage_of(key)
        if key.concurrency is not None and usage.running >= key.concurrency:
            raise RateLimited(f"The API key {key.name} may have {key.concurrency} requests at a time.", 1.0)
        if key.rate is not None:
            if usage.tokens < 1:
                wait = (1 - usage.tokens) / key.rate
                raise RateLimited(f"The API key {key.name} may make {key.rate:g} requests per second.", wait)
            usage.tokens -= 1
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    @property
    def counted(self) -> int:
        """Number of keys whose use is remembered."""
        return len(self._usage)

    def _usage_of(self, key: ApiKey) -> _Usage:
        now = self._clock()
        burst = max(1.0, key.rate or 0.0)
        usage = self._usage.get(key.id)
        if usage is None:
            if len(self._usage) >= 2 * MAX_KEYS:  # of keys that were removed long ago
                self._usage = {name: one for name, one in self._usage.items() if one.running}
            usage = self._usage[key.id] = _Usage(0, burst, now)
        usage.tokens = min(burst, usage.tokens + (now - usage.at) * (key.rate or 0.0))
        usage.at = now
        return usage


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address to listen on; False for what is no IP address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _presented(headers: Mapping[str, str]) -> str:
    """Return the key that a caller sent, or ""; a proxy in between may use Authorization for itself."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    own = headers.get("x-api-key", "").strip()
    if scheme.lower() == "bearer":
        return rest.strip()
    # Label Studio has a user and a password for its models, and nothing else.
    return own or (_password_of(rest) if scheme.lower() == "basic" else "")


def _password_of(credentials: str) -> str:
    try:
        decoded = base64.b64decode(credentials[: 4 * _MAX_KEY_LENGTH].strip(), validate=True)
    except binascii.Error:
        return ""
    return decoded.decode(errors="replace").partition(":")[2]


def _id_of(text: str) -> str:
    prefix, _, rest = text[:_MAX_KEY_LENGTH].partition("_")
    return rest.partition("_")[0] if prefix == _PREFIX else ""


def _digest(salt: str, text: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + text.encode(errors="replace")).hexdigest()


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place and place + ': '}{problem['msg']}."
