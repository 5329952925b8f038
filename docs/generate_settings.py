"""Write docs/settings.md from the settings class: `python -m docs.generate_settings`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from pydantic.fields import FieldInfo

from service.settings import Settings

PAGE: Final = Path(__file__).with_name("settings.md")

_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "Network": ("http_host", "http_port", "grpc_port", "tls_cert_file", "tls_key_file", "tls_client_ca_file"),
    "Access": ("api_keys_file", "metrics_access", "allow_anonymous"),
    "Models": (
        "models",
        "models_file",
        "models_dir",
        "weights_dir",
        "cache_dir",
        "backend",
        "device",
        "threads",
        "unet_precision",
        "input_size",
        "camera_sizes",
        "grades",
    ),
    "Limits": (
        "max_upload_mib",
        "max_megapixels",
        "max_prompts",
        "max_points",
        "max_queued",
        "request_timeout_s",
        "embedding_cache_mib",
        "embedding_max_age_s",
    ),
    "Capture": (
        "capture_dir",
        "capture_mib",
        "capture_per_hour",
        "capture_confidence",
        "capture_grade_margin",
        "capture_sample",
    ),
    "Label Studio": ("label_studio_url", "label_studio_token"),
    "Process": ("drain_timeout_s", "log_level"),
}
_OTHER: Final = "Other"
"""Section of a setting that no section above names."""

_INTRODUCTION: Final = """\
# Settings

Pomona is configured by environment variables. They are read and checked together at startup; a wrong value ends the
process with a message that names the variable and says what it must be.

```console
$ POMONA_MODELS=mobile-sam POMONA_LOG_LEVEL=WARNING make serve
```

Tracing is configured by OpenTelemetry's own variables: [traces and logs](tracing.md). In the Helm chart, `settings`
takes these names in lower case and without the prefix: [Kubernetes](kubernetes.md#what-the-chart-decides).
"""


def render() -> str:
    """Return the page's Markdown."""
    listed = {name for names in _SECTIONS.values() for name in names}
    sections = {**_SECTIONS, _OTHER: tuple(name for name in Settings.model_fields if name not in listed)}
    tables = [_section(title, names) for title, names in sections.items() if names]
    return "\n".join([_INTRODUCTION, *tables])


def _section(title: str, names: Iterable[str]) -> str:
    rows = [_row(name, Settings.model_fields[name]) for name in names]
    return "\n".join([f"## {title}", "", "| variable | default | meaning |", "|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    return f"| `POMONA_{name.upper()}` | {_default(field.default)} | {field.description} |"


def _default(value: object) -> str:
    if value is None or value == ():
        return "unset"
    if isinstance(value, Path):
        return f"`{value.name}` in the user's cache folder"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
