"""All settings, from environment variables that start with `POMONA_`, checked together at the start."""

from __future__ import annotations

import math
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.backends.load import BackendChoice, DeviceChoice, ModelStore, UNetPrecision
from models.errors import PomonaError
from models.inspection import GRADES
from models.types import Size
from service.access import KeyFileError, is_loopback, read_keys
from service.api.schema import Grade, Grades, InputSize
from service.capture.captures import CaptureOptions
from service.scheduler.policy import QueueOptions

MISCONFIGURED: Final = 78
"""Exit status where the service refuses to start as it is configured (EX_CONFIG of sysexits.h)."""

_MIB = 1024 * 1024


class SettingsError(PomonaError):
    """A setting is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of TLS.

    Attributes:
        certificate: the service's, with its chain.
        key: of that certificate.
        client_authorities: of the certificates that callers must have; None where they need none.
    """

    certificate: Path
    key: Path
    client_authorities: Path | None = None


class Settings(BaseSettings):
    """Every setting of the service. Each is the environment variable `POMONA_` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="POMONA_", frozen=True, extra="ignore", env_ignore_empty=True, allow_inf_nan=False
    )

    http_host: str = Field(
        "127.0.0.1",
        description="IP address to listen on, for HTTP and gRPC: 127.0.0.1 for callers on this machine alone, :: for "
        "all of its addresses (of IPv6 and IPv4, or of IPv4 where it has no IPv6), 0.0.0.0 for those of IPv4. Beyond "
        "this machine the service listens only with api_keys_file, tls_client_ca_file or allow_anonymous. The image "
        "and the chart set ::.",
    )
    http_port: int = Field(3000, ge=1, le=65535, description="Port for HTTP.")
    grpc_port: int = Field(3001, ge=0, le=65535, description="Port for gRPC; 0 for none.")
    tls_cert_file: Path | None = Field(
        None,
        description="PEM file with the certificate and its chain. With it and its key, HTTP and gRPC are served "
        "over TLS only, 1.2 or 1.3. Renewed files are read again when callers connect.",
    )
    tls_key_file: Path | None = Field(
        None, validate_default=True, description="PEM file with the certificate's private key, without a password."
    )
    tls_client_ca_file: Path | None = Field(
        None,
        description="PEM file with the authorities of callers' certificates: mutual TLS. Without such a certificate "
        "no connection is made, for HTTP (health checks included) or gRPC.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with the API keys that callers must have, which python -m service.keys writes; read again "
        "when it changes. Health checks and the API's description need no key.",
    )
    metrics_access: Literal["admin", "open"] = Field(
        "admin",
        description="Who may read /metrics where there are API keys: those with the scope admin, or everybody.",
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Listen beyond this machine although callers need neither an API key nor a certificate: for a "
        "network, or behind a proxy, that admits only known callers.",
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("mobile-sam", "unet-mobilenetv2-citrus"),
        min_length=1,
        description="Models to load, separated by commas. The first of each family answers requests that name none.",
    )
    models_file: Path | None = Field(None, description="YAML file that adds your own checkpoints to the catalogue.")
    models_dir: Path | None = Field(
        None,
        description="Folder from which POST /v1/models/load may load new revisions of models while the service runs, "
        "for callers whose API key has the scope admin; without it none are loaded. Users who can write to it decide "
        "what is served.",
    )
    weights_dir: Path | None = Field(
        None,
        description="Folder with checkpoints under their official names; searched before any download.",
    )
    cache_dir: Path = Field(
        user_cache_path("pomona"),
        description="Folder for downloaded checkpoints and converted models.",
    )
    backend: BackendChoice = Field(
        "auto",
        description="What executes the models: torch, openvino, or auto (torch with a CUDA device, else openvino).",
    )
    device: DeviceChoice = Field(
        "auto",
        validate_default=True,
        description="Where models run: cpu; cuda, which ends the process where no CUDA device is visible; or auto, "
        "CUDA if there is a device, else the CPU. OpenVINO runs on the CPU alone. The chart sets cuda for pods "
        "with GPUs.",
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of one inference on OpenVINO; 0 for all cores, or a container's CPU limit."
    )
    unet_precision: UNetPrecision = Field(
        "auto",
        description="What U-Nets compute in on OpenVINO: fp32; auto, bfloat16 where the CPU has instructions for it "
        "(AVX-512 BF16, AMX), else fp32; or int8, which is tried at the first start (one to two minutes longer) and "
        "kept where the CPU has instructions for it (VNNI), it loses at most 0.01 of the IoU that fp32 has with the "
        "exact masks of rendered scenes, for fruit and for infected pixels, and it is faster; else as auto.",
    )
    max_upload_mib: float = Field(32, gt=0, description="Largest request body in MiB, enforced while it is read.")
    max_megapixels: float = Field(
        50, gt=0, description="Largest image in millions of pixels, checked before it is decoded."
    )
    max_prompts: int = Field(64, ge=1, description="Most prompts in one request.")
    max_points: int = Field(64, ge=1, description="Most points in one prompt.")
    max_grid_points: int = Field(
        6000,
        ge=1,
        description="Most points that an automatic or edges request may ask for, those of all crops together. A point "
        "takes the mask decoder about 40 ms on two cores.",
    )
    embedding_cache_mib: float = Field(
        512, ge=0, description="Memory for embeddings of recent images; one takes 4 MiB, a SAM 2's 16 MiB."
    )
    embedding_max_age_s: float = Field(600, gt=0, description="Seconds after which an embedding is forgotten.")
    track_sessions: int = Field(16, ge=1, description="Most sessions of /v1/track that are open at a time.")
    track_objects: int = Field(16, ge=1, description="Most objects that a session of /v1/track follows at a time.")
    track_memory_mib: float = Field(
        512,
        gt=0,
        description="Memory in MiB for what all sessions of /v1/track remember of their objects, on the model's "
        "device; 7.1 MiB per object of the published models.",
    )
    track_idle_s: float = Field(
        60, gt=0, description="Seconds without a frame after which a session of /v1/track is closed."
    )
    memory_mib: float = Field(
        0,
        ge=0,
        description="Memory in MiB that all requests together may take, beside the models and the embedding cache: "
        "what does not fit waits, or is refused as overloaded. 0 for 95 % of the container's limit, else of the "
        "machine's memory, less what the process takes once the models are loaded and less embedding_cache_mib.",
    )
    request_timeout_s: float = Field(
        60, gt=0, description="Seconds from a request's first byte to its answer, reading included."
    )
    max_queued: int = Field(
        256,
        ge=1,
        description="Most items waiting for a device; a request beyond them is refused. Those without a deadline may "
        "take three fourths.",
    )
    input_size: InputSize = Field(
        1024,
        description="Longest side in pixels at which images are encoded, where a request has no input_size and the "
        "model supports others than 1024 and has none of its own: 1024, 768, 512 or auto.",
    )
    camera_sizes: Annotated[tuple[Size, ...], NoDecode] = Field(
        (),
        description="Sizes of the images to come, such as 1600x1200,4160x1800: a few of each are answered before the "
        "server is ready (2 to 3 seconds per size for MobileSAM on two cores), so that a camera's first frame is as "
        "fast as later ones.",
    )
    grades: Annotated[Grades, NoDecode] = Field(
        tuple(Grade(grade=grade.name, max_infected_fraction=grade.most) for grade in GRADES),
        description="Grades from best to worst, each with the largest infected fraction of a fruit of that grade; "
        "fruit beyond the last is graded `reject`.",
    )
    drain_timeout_s: float = Field(
        30, gt=0, description="Seconds that admitted work has to finish when the server stops."
    )
    max_connections: int = Field(
        1000,
        ge=1,
        description="Most connections of callers to HTTP, and as many to gRPC. Beyond them HTTP closes the connection "
        "that has waited longest for a request, and refuses new ones where all have one; some more are kept for "
        "/livez, /readyz and /metrics. Fewer where the limit of open files is too small for them.",
    )
    header_timeout_s: float = Field(
        10,
        gt=0,
        description="Seconds that a new connection has for its TLS handshake, and a request for all of its headers.",
    )
    idle_timeout_s: float = Field(
        75, gt=0, description="Seconds after which a connection without a request is closed, over HTTP and gRPC."
    )
    write_timeout_s: float = Field(
        20,
        gt=0,
        description="Seconds in which a caller over HTTP must take 256 KiB of its answer, or all that is left of it; "
        "else its connection is closed.",
    )
    admin_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Another port for /livez, /readyz and /metrics alone, over plain HTTP, whose connections are "
        "counted apart; 0 for none. The image and the chart set 3002.",
    )
    capture_dir: Path | None = Field(
        None,
        description="Folder in which hard frames of /v1/inspect are kept with their answers, for labelling and "
        "training; unset, nothing is kept. See docs/capture.md for what is in it and who may see it.",
    )
    capture_mib: float = Field(
        1024, gt=0, description="Most that captures take on disk, in MiB; the oldest are removed for new ones."
    )
    capture_per_hour: int = Field(
        60,
        ge=1,
        le=100_000,
        description="Most frames that a worker process keeps in an hour; those kept for one reason alone take at most "
        "half of them.",
    )
    capture_confidence: float = Field(
        0.7, ge=0, le=1, description="Frames with a fruit of less confidence are kept (low_confidence)."
    )
    capture_grade_margin: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Frames with a fruit whose infected fraction is nearer to the limit of a grade than this share of "
        "the limit are kept (near_grade): with 0.1 and a limit of 0.05, those above 0.045 and below 0.055.",
    )
    capture_sample: float = Field(
        0.001, ge=0, le=1, description="Share of all other frames that are kept too, drawn at random (sample)."
    )
    label_studio_url: str | None = Field(
        None,
        description="Address of a Label Studio, such as http://label-studio:8080, whose tasks' images /label-studio "
        "fetches; unset, there is no /label-studio. Images are fetched from nowhere else.",
    )
    label_studio_token: SecretStr | None = Field(
        None,
        validate_default=True,
        description="Access token of a user of that Label Studio who may see the images.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe log lines that are written."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("device")
    @classmethod
    def _has_a_backend(cls, value: DeviceChoice, others: ValidationInfo) -> DeviceChoice:
        if value == "cuda" and others.data.get("backend") == "openvino":
            raise ValueError("cuda needs the backend torch (POMONA_BACKEND): OpenVINO runs on the CPU alone")
        return value

    @field_validator("camera_sizes", mode="before")
    @classmethod
    def _read_sizes(cls, value: object) -> object:
        return _sizes(value) if isinstance(value, str) else value

    @field_validator("camera_sizes")
    @classmethod
    def _within_limits(cls, value: tuple[Size, ...], others: ValidationInfo) -> tuple[Size, ...]:
        most = others.data.get("max_megapixels", math.inf) * 1_000_000
        for size in value:
            if size.pixels > most:
                raise ValueError(f"{size.width}x{size.height} has more pixels than max_megapixels allows")
        return value

    @field_validator("grades", mode="before")
    @classmethod
    def _read_grades(cls, value: object) -> object:
        return _grades(value) if isinstance(value, str) else value

    @field_validator("input_size", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """Convert the text of a variable: it is not one of the literal's numbers by itself."""
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    @field_validator(
        "models_file",
        "models_dir",
        "weights_dir",
        "cache_dir",
        "tls_cert_file",
        "tls_key_file",
        "tls_client_ca_file",
        "api_keys_file",
        "capture_dir",
    )
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @field_validator("tls_key_file")
    @classmethod
    def _fits_the_certificate(cls, value: Path | None, others: ValidationInfo) -> Path | None:
        if "tls_cert_file" in others.data:  # else that is reported already
            _check_key(others.data["tls_cert_file"], value)
        return value

    @field_validator("tls_client_ca_file")
    @classmethod
    def _has_authorities(cls, value: Path | None, others: ValidationInfo) -> Path | None:
        if value is None:
            return None
        if "tls_cert_file" in others.data and others.data["tls_cert_file"] is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(value)
        except OSError as error:  # ssl.SSLError is one too
            raise ValueError(f"{value} must have certificates of authorities in PEM: {error}") from error
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _has_keys(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                read_keys(value)
            except KeyFileError as error:
                raise ValueError(error.detail) from error
        return value

    @field_validator("label_studio_url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
        if not fits or "@" in parts.netloc or parts.query or parts.fragment or any(map(str.isspace, value)):
            raise ValueError("must be like https://label-studio.example.com, without user, query or fragment")
        return value.rstrip("/")

    @field_validator("label_studio_token")
    @classmethod
    def _fits_the_address(cls, value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if "label_studio_url" in others.data and (others.data["label_studio_url"] is None) != (value is None):
            raise ValueError("label_studio_url and label_studio_token must be set together, or neither")
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_.-]{1,2048}", value.get_secret_value()):
            raise ValueError("must be an access token as Label Studio shows it: letters, digits, '_', '.' and '-'")
        return value

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload_mib` in bytes."""
        return int(self.max_upload_mib * _MIB)

    @property
    def max_pixels(self) -> int:
        """`max_megapixels` in pixels."""
        return int(self.max_megapixels * 1_000_000)

    @property
    def max_values(self) -> int:
        """Most values in the JSON of a request, or fields in a message: four times what the largest prompts have."""
        return 4 * self.max_prompts * (3 * self.max_points + 16)

    @property
    def embedding_cache_bytes(self) -> int:
        """`embedding_cache_mib` in bytes."""
        return int(self.embedding_cache_mib * _MIB)

    @property
    def track_memory_bytes(self) -> int:
        """`track_memory_mib` in bytes."""
        return int(self.track_memory_mib * _MIB)

    @property
    def tls(self) -> Tls | None:
        """The files of TLS; None without it."""
        certificate, key = self.tls_cert_file, self.tls_key_file
        return None if certificate is None or key is None else Tls(certificate, key, self.tls_client_ca_file)

    @property
    def queue_options(self) -> QueueOptions:
        """Options of a device's queue."""
        return QueueOptions(max_queued=self.max_queued)

    @property
    def capture_options(self) -> CaptureOptions | None:
        """What is captured; None for nothing."""
        if self.capture_dir is None:
            return None
        return CaptureOptions(
            self.capture_dir,
            int(self.capture_mib * _MIB),
            self.capture_per_hour,
            self.capture_confidence,
            self.capture_grade_margin,
            self.capture_sample,
        )

    @property
    def model_store(self) -> ModelStore:
        """Where checkpoints and converted models are stored."""
        return ModelStore(self.cache_dir, self.weights_dir, self.unet_precision)


def _sizes(text: str) -> tuple[Size, ...]:
    sizes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part)
        if match is None:
            raise ValueError(f"sizes must be like 1600x1200, width and height, got {part!r}")
        sizes.append(Size(width=int(match[1]), height=int(match[2])))
    return tuple(sizes)


def _grades(text: str) -> list[dict[str, str | float]]:
    """Read `A:0.01,B:0.05`: names and limits."""
    grades: list[dict[str, str | float]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, limit = part.rpartition(":")
        if not colon:
            raise ValueError(f"grades must be like A:0.01, a name, a colon and a number, got {part!r}")
        grades.append({"grade": name.strip(), "max_infected_fraction": float(limit)})
    return grades


def _check_key(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise ValueError("tls_cert_file and tls_key_file must be set together, or neither")
    if certificate is None or key is None:
        return
    for file in (certificate, key):
        if not file.is_file():
            raise ValueError(f"there is no file {file}")
    try:
        # Without a password it would prompt for one at the terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ValueError(
            f"{certificate} and {key} must be a certificate and its unlocked key in PEM: {error}"
        ) from error


def _shown(place: tuple[int | str, ...], given: object) -> str:
    """Return a value as a message may have it: nothing secret belongs in a log."""
    return "a secret" if place[:1] == ("label_studio_token",) else repr(given)


def refuse_strangers(settings: Settings, host: str) -> None:
    """Check that callers beyond this machine are not admitted by mistake.

    Args:
        settings: of the service.
        host: IP address that it is about to listen on.

    Raises:
        SettingsError: others could connect, and are neither authenticated nor allowed to be anonymous.
    """
    authenticated = settings.api_keys_file is not None or settings.tls_client_ca_file is not None
    if not (authenticated or settings.allow_anonymous or is_loopback(host)):
        raise SettingsError(
            f"The service would listen on {host} for callers that are not authenticated: set POMONA_API_KEYS_FILE "
            "(python -m service.keys add NAME makes a key) or POMONA_TLS_CLIENT_CA_FILE, listen on 127.0.0.1 "
            "(POMONA_HTTP_HOST), or set POMONA_ALLOW_ANONYMOUS=true."
        )


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: naming every variable that is wrong and why.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"POMONA_{'_'.join(str(part) for part in problem['loc'][:1]).upper()}: {problem['msg']}"
            f" (got {_shown(problem['loc'], problem['input'])})"
            for problem in error.errors()
        )
        raise SettingsError(problems) from error
