"""Settings from environment variables."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.backends.load import ModelStore
from models.types import Size
from service.api.schema import Grade
from service.scheduler.policy import QueueOptions
from service.settings import Settings, SettingsError, load_settings, refuse_strangers
from tests.identity import Identity

FROM_TEXT = {
    "POMONA_HTTP_HOST": ("192.168.7.2", "192.168.7.2"),
    "POMONA_HTTP_PORT": ("8080", 8080),
    "POMONA_GRPC_PORT": ("0", 0),
    "POMONA_METRICS_ACCESS": ("open", "open"),
    "POMONA_ALLOW_ANONYMOUS": ("true", True),
    "POMONA_MODELS": ("sam-vit-b", ("sam-vit-b",)),
    "POMONA_MODELS_FILE": ("own/models.yaml", Path("own/models.yaml")),
    "POMONA_WEIGHTS_DIR": ("own/weights", Path("own/weights")),
    "POMONA_CACHE_DIR": ("own/cache", Path("own/cache")),
    "POMONA_BACKEND": ("torch", "torch"),
    "POMONA_DEVICE": ("cuda", "cuda"),
    "POMONA_THREADS": ("3", 3),
    "POMONA_UNET_PRECISION": ("int8", "int8"),
    "POMONA_MAX_UPLOAD_MIB": ("1.5", 1.5),
    "POMONA_MAX_MEGAPIXELS": ("0.25", 0.25),
    "POMONA_MAX_PROMPTS": ("7", 7),
    "POMONA_MAX_POINTS": ("8", 8),
    "POMONA_MAX_GRID_POINTS": ("500", 500),
    "POMONA_EMBEDDING_CACHE_MIB": ("0", 0.0),
    "POMONA_MEMORY_MIB": ("1500", 1500.0),
    "POMONA_TRACK_SESSIONS": ("3", 3),
    "POMONA_TRACK_OBJECTS": ("5", 5),
    "POMONA_TRACK_MEMORY_MIB": ("0.5", 0.5),
    "POMONA_TRACK_IDLE_S": ("1.5", 1.5),
    "POMONA_EMBEDDING_MAX_AGE_S": ("12.5", 12.5),
    "POMONA_REQUEST_TIMEOUT_S": ("0.5", 0.5),
    "POMONA_MAX_QUEUED": ("9", 9),
    "POMONA_INPUT_SIZE": ("768", 768),
    "POMONA_CAMERA_SIZES": ("400x300, 416x180", (Size(300, 400), Size(180, 416))),
    "POMONA_GRADES": ("fine:0.1", (Grade(grade="fine", max_infected_fraction=0.1),)),
    "POMONA_DRAIN_TIMEOUT_S": ("0.5", 0.5),
    "POMONA_MAX_CONNECTIONS": ("10", 10),
    "POMONA_HEADER_TIMEOUT_S": ("2.5", 2.5),
    "POMONA_IDLE_TIMEOUT_S": ("30", 30.0),
    "POMONA_WRITE_TIMEOUT_S": ("7", 7.0),
    "POMONA_ADMIN_PORT": ("3002", 3002),
    "POMONA_LOG_LEVEL": ("WARNING", "WARNING"),
}

TLS = ("POMONA_TLS_CERT_FILE", "POMONA_TLS_KEY_FILE")
AUTHORITIES, KEYS = "POMONA_TLS_CLIENT_CA_FILE", "POMONA_API_KEYS_FILE"

WRONG = [
    ("POMONA_HTTP_PORT", "0"),
    ("POMONA_HTTP_PORT", "65536"),
    ("POMONA_HTTP_PORT", "http"),
    ("POMONA_GRPC_PORT", "-1"),
    ("POMONA_GRPC_PORT", "65536"),
    ("POMONA_TLS_KEY_FILE", "nowhere/tls.key"),
    ("POMONA_API_KEYS_FILE", "nowhere/keys.json"),
    ("POMONA_METRICS_ACCESS", "all"),
    ("POMONA_ALLOW_ANONYMOUS", "please"),
    ("POMONA_MODELS", " , "),
    ("POMONA_BACKEND", "onnx"),
    ("POMONA_DEVICE", "gpu"),
    ("POMONA_THREADS", "-1"),
    ("POMONA_UNET_PRECISION", "int4"),
    ("POMONA_MAX_UPLOAD_MIB", "0"),
    ("POMONA_MAX_UPLOAD_MIB", "inf"),
    ("POMONA_MAX_MEGAPIXELS", "nan"),
    ("POMONA_MAX_PROMPTS", "0"),
    ("POMONA_MAX_POINTS", "1.5"),
    ("POMONA_EMBEDDING_CACHE_MIB", "-1"),
    ("POMONA_MEMORY_MIB", "-1"),
    ("POMONA_TRACK_SESSIONS", "0"),
    ("POMONA_TRACK_OBJECTS", "0"),
    ("POMONA_TRACK_MEMORY_MIB", "0"),
    ("POMONA_TRACK_IDLE_S", "0"),
    ("POMONA_EMBEDDING_MAX_AGE_S", "0"),
    ("POMONA_REQUEST_TIMEOUT_S", "soon"),
    ("POMONA_MAX_QUEUED", "0"),
    ("POMONA_INPUT_SIZE", "640"),
    ("POMONA_CAMERA_SIZES", "1600"),
    ("POMONA_CAMERA_SIZES", "1600x0"),
    ("POMONA_CAMERA_SIZES", "10000x10000"),
    ("POMONA_INPUT_SIZE", "largest"),
    ("POMONA_GRADES", "A"),
    ("POMONA_GRADES", "A:much"),
    ("POMONA_GRADES", "A:0.2,B:0.1"),
    ("POMONA_GRADES", "A:nan"),
    ("POMONA_GRADES", " , "),
    ("POMONA_DRAIN_TIMEOUT_S", "0"),
    ("POMONA_MAX_CONNECTIONS", "0"),
    ("POMONA_HEADER_TIMEOUT_S", "0"),
    ("POMONA_IDLE_TIMEOUT_S", "0"),
    ("POMONA_WRITE_TIMEOUT_S", "never"),
    ("POMONA_ADMIN_PORT", "-1"),
    ("POMONA_LOG_LEVEL", "info"),
]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("POMONA_"):
            monkeypatch.delenv(name)


def test_every_setting_is_in_these_tests() -> None:
    assert {*FROM_TEXT, *TLS, AUTHORITIES, KEYS} == {f"POMONA_{name.upper()}" for name in Settings.model_fields}


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_cuda_cannot_be_required_of_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_BACKEND", "openvino")
    monkeypatch.setenv("POMONA_DEVICE", "cuda")
    with pytest.raises(SettingsError, match=r"POMONA_DEVICE: .*cuda needs the backend torch"):
        load_settings()


@pytest.mark.parametrize("variable", FROM_TEXT)
def test_each_setting_is_read_from_its_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, value = FROM_TEXT[variable]
    name = variable.removeprefix("POMONA_").lower()
    before = getattr(load_settings(), name)
    monkeypatch.setenv(variable, text)
    assert getattr(load_settings(), name) == value
    assert before != value


def test_the_defaults_are_the_documented_ones() -> None:
    settings = load_settings()
    assert settings.http_port == 3000
    assert settings.grpc_port == 3001
    assert settings.models == ("mobile-sam", "unet-mobilenetv2-citrus")
    assert settings.backend == "auto"
    assert settings.max_upload_bytes == 32 * 1024 * 1024
    assert settings.max_pixels == 50_000_000
    assert settings.embedding_cache_bytes == 512 * 1024 * 1024
    assert settings.queue_options == QueueOptions(max_queued=256)
    assert settings.input_size == 1024
    assert ",".join(str(grade) for grade in settings.grades) == "A:0.01,B:0.05,C:0.25"
    assert settings.drain_timeout_s == 30
    assert settings.model_store == ModelStore(settings.cache_dir, None, "auto")
    assert settings.cache_dir.is_absolute()


def test_derived_limits_follow_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, (text, _) in FROM_TEXT.items():
        monkeypatch.setenv(variable, text)
    settings = load_settings()
    assert settings.max_upload_bytes == 1_572_864
    assert settings.max_pixels == 250_000
    assert settings.embedding_cache_bytes == 0
    assert settings.queue_options == QueueOptions(max_queued=9)
    assert settings.model_store == ModelStore(Path("own/cache"), Path("own/weights"), "int8")


@pytest.mark.parametrize(
    "text", ["mobile-sam,sam-vit-b", " mobile-sam , sam-vit-b ", "mobile-sam,,sam-vit-b,", ",mobile-sam,sam-vit-b"]
)
def test_models_are_separated_by_commas_and_keep_their_order(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_MODELS", text)
    assert load_settings().models == ("mobile-sam", "sam-vit-b")


@pytest.mark.parametrize("text", ["A:0,B:0.5,C: 1", " A : 0 , B:5e-1, C:1.0,"])
def test_grades_are_names_and_numbers_separated_by_commas(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_GRADES", text)
    grades = load_settings().grades
    assert [(grade.grade, grade.max_infected_fraction) for grade in grades] == [("A", 0), ("B", 0.5), ("C", 1)]
    assert ",".join(str(grade) for grade in grades) == "A:0,B:0.5,C:1"


@pytest.mark.parametrize(("text", "size"), [("1024", 1024), ("768", 768), ("512", 512), ("auto", "auto")])
def test_the_input_size_is_one_of_three_numbers_or_auto(
    text: str, size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POMONA_INPUT_SIZE", text)
    assert load_settings().input_size == size


@pytest.mark.parametrize("variable", ["POMONA_MODELS_FILE", "POMONA_WEIGHTS_DIR"])
def test_an_empty_path_is_none(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "")
    assert getattr(load_settings(), variable.removeprefix("POMONA_").lower()) is None


@pytest.mark.parametrize(("variable", "text"), WRONG)
def test_a_wrong_value_is_refused_with_the_name_of_its_variable(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.detail.startswith(f"{variable}: ")
    assert caught.value.detail.count("POMONA_") == 1


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_HTTP_PORT", "http")
    monkeypatch.setenv("POMONA_MAX_PROMPTS", "-3")
    monkeypatch.setenv("POMONA_BACKEND", "openvino")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "POMONA_HTTP_PORT: " in caught.value.detail
    assert "'http'" in caught.value.detail
    assert "POMONA_MAX_PROMPTS: " in caught.value.detail
    assert "'-3'" in caught.value.detail
    assert "POMONA_BACKEND" not in caught.value.detail


def test_a_certificate_needs_its_key(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().tls is None
    certificate, key = TLS
    monkeypatch.setenv(certificate, str(identity.tls.certificate))
    with pytest.raises(SettingsError, match="neither"):
        load_settings()
    monkeypatch.setenv(key, str(identity.tls.key))
    assert load_settings().tls == identity.tls


def test_a_key_that_does_not_fit_the_certificate_is_refused(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TLS[0], str(identity.tls.certificate))
    for key in (identity.authority, identity.locked_key, identity.locked_key.with_name("none.key")):
        monkeypatch.setenv(TLS[1], str(key))
        with pytest.raises(SettingsError, match=rf"^POMONA_TLS_KEY_FILE: .*{key.name}"):
            load_settings()


def test_authorities_of_callers_are_certificates_and_need_a_certificate_of_the_service(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AUTHORITIES, str(identity.authority))
    with pytest.raises(SettingsError, match=r"^POMONA_TLS_CLIENT_CA_FILE: .* needs tls_cert_file and tls_key_file"):
        load_settings()
    for variable, file in zip(TLS, (identity.tls.certificate, identity.tls.key), strict=True):
        monkeypatch.setenv(variable, str(file))
    assert load_settings().tls == dataclasses.replace(identity.tls, client_authorities=identity.authority)
    monkeypatch.setenv(AUTHORITIES, str(identity.tls.key))
    with pytest.raises(SettingsError, match=r"^POMONA_TLS_CLIENT_CA_FILE: .*authorities in PEM"):
        load_settings()


def test_a_file_of_keys_is_read_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    monkeypatch.setenv(KEYS, str(file))
    file.write_text('{"keys": [{"name": "line-3"}]}')
    with pytest.raises(SettingsError, match=r"^POMONA_API_KEYS_FILE: .*keys\.json is malformed: keys\.0\."):
        load_settings()
    file.write_text('{"keys": []}')
    assert load_settings().api_keys_file == file


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.2", "pomona.local"])  # noqa: S104 (what is refused)
def test_without_keys_or_certificates_of_callers_the_service_is_for_this_machine_alone(
    host: str, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_strangers(load_settings(), "127.0.0.1")
    refuse_strangers(load_settings(), "::1")
    with pytest.raises(SettingsError, match=rf"listen on {host} .*POMONA_API_KEYS_FILE.*POMONA_ALLOW_ANONYMOUS=true"):
        refuse_strangers(load_settings(), host)
    for variable, file in zip(TLS, (identity.tls.certificate, identity.tls.key), strict=True):
        monkeypatch.setenv(variable, str(file))
    with pytest.raises(SettingsError, match="not authenticated"):
        refuse_strangers(load_settings(), host)  # the service's own certificate says nothing about callers
    monkeypatch.setenv(AUTHORITIES, str(identity.authority))
    refuse_strangers(load_settings(), host)
    monkeypatch.delenv(AUTHORITIES)
    monkeypatch.setenv("POMONA_ALLOW_ANONYMOUS", "true")
    refuse_strangers(load_settings(), host)
    monkeypatch.delenv("POMONA_ALLOW_ANONYMOUS")
    (tmp_path / "keys.json").write_text('{"keys": []}')
    monkeypatch.setenv(KEYS, str(tmp_path / "keys.json"))
    refuse_strangers(load_settings(), host)


def test_settings_cannot_be_changed() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1  # type: ignore[misc]


def test_a_path_may_start_at_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_CACHE_DIR", "~/pomona-cache")
    assert load_settings().cache_dir == Path.home() / "pomona-cache"


def test_an_empty_variable_is_as_if_it_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POMONA_CACHE_DIR", raising=False)
    monkeypatch.delenv("POMONA_HTTP_PORT", raising=False)
    unset = load_settings()
    monkeypatch.setenv("POMONA_CACHE_DIR", "")
    monkeypatch.setenv("POMONA_HTTP_PORT", "")
    assert load_settings() == unset
