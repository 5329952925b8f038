"""What the container images contain, and that serving on OpenVINO needs no PyTorch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

from models.backends import load
from models.backends.converted_models import HASHES, NNCF, UNET, converted_folder
from models.backends.load import ModelStore, ensure_files
from models.catalog import CATALOGUE
from models.errors import BackendError
from models.weights.checkpoints import sha256_of
from service.settings import Settings

ROOT: Final = Path(__file__).parents[2]
ONLY_PYTORCH: Final = {
    "nncf",
    "safetensors",
    "segment-anything",
    "segmentation-models-pytorch",
    "timm",
    "torch",
    "torchvision",
}


def locked(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.MULTILINE))


def test_the_cpu_image_has_the_projects_dependencies_but_those_that_only_pytorch_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [line for line in (ROOT / "deploy/image/cpu.in").read_text().splitlines() if not line.startswith("#")]
    assert listed == [line for line in project["dependencies"] if Requirement(line).name not in ONLY_PYTORCH]


def test_the_cpu_image_has_the_tested_versions() -> None:
    ours, cpu = locked(ROOT / "requirements.lock"), locked(ROOT / "deploy/image/requirements-cpu.lock")
    assert cpu.items() <= ours.items()
    assert "openvino" in cpu
    assert not {name for name in cpu if name in ONLY_PYTORCH or name.startswith(("nvidia-cu", "triton"))}


def test_the_images_contain_the_default_models() -> None:
    (models,) = re.findall(r"^MODELS\s*\?=\s*(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tuple(models.split(",")) == Settings.model_fields["models"].default


def test_the_stages_that_run_are_minimal_and_unprivileged() -> None:
    text = (ROOT / "deploy/image/Dockerfile").read_text()
    runtime = text[text.index("AS runtime") :]
    assert "USER 10001:10001" in runtime
    assert "HEALTHCHECK" in runtime
    assert "apt-get" not in text
    # Other stages contribute packages, code, weights and the list of packages, nothing else.
    copied = set(re.findall(r"^COPY --from=\S+ (\S+)", runtime, re.MULTILINE))
    assert copied == {"/srv/pomona", "/opt/venv", "/build/sbom.json", "/opt/pomona/cache"}


def test_converted_models_are_named_after_the_installed_version_of_nncf() -> None:
    assert version("nncf") == NNCF


def test_the_service_is_imported_without_pytorch() -> None:
    code = """
import sys
banned = {"torch", "torchvision", "timm", "segment_anything", "segmentation_models_pytorch", "safetensors", "nncf"}

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in banned:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import service.app, service.prepare, models.backends.openvino_backend
print("imported")
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("imported\n")


def write_converted(folder: Path) -> None:
    """Write what counts as converted models: a file and its hash."""
    folder.mkdir(parents=True)
    (folder / UNET).write_text("a model")
    (folder / HASHES).write_text(json.dumps({UNET: sha256_of(folder / UNET)}))


@pytest.fixture
def no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "find_spec", lambda _: None)


@pytest.mark.usefixtures("no_pytorch")
def test_without_pytorch_converted_models_are_used_and_needed(tmp_path: Path) -> None:
    entry, model_store = CATALOGUE["mobile-sam"], ModelStore(tmp_path)
    with pytest.raises(BackendError, match=r"mobile-sam .* service\.prepare"):
        ensure_files(entry, "openvino", model_store)
    folder = converted_folder(entry, tmp_path, "fp32")
    write_converted(folder)
    assert ensure_files(entry, "openvino", model_store) == folder


@pytest.mark.usefixtures("no_pytorch")
def test_without_pytorch_a_unet_that_was_not_quantised_is_used_in_float32(tmp_path: Path) -> None:
    entry, model_store = CATALOGUE["unet-mobilenetv2-citrus"], ModelStore(tmp_path, unet_precision="int8")
    folder = converted_folder(entry, tmp_path, "fp32")
    write_converted(folder)
    assert ensure_files(entry, "openvino", model_store) == folder


@pytest.mark.usefixtures("no_pytorch")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / UNET).write_text("a nodel"), r"unet\.xml is not as it was converted"),
        (lambda folder: (folder / UNET).unlink(), r"unet\.xml cannot be read"),
        (lambda folder: (folder / HASHES).unlink(), r"sha256\.json cannot be read"),
        (lambda folder: (folder / HASHES).write_text('{"unet.xml": '), r"sha256\.json is damaged"),
        (lambda folder: (folder / HASHES).write_text("{}"), r"sha256\.json names no files"),
    ],
)
def test_without_pytorch_damaged_models_are_refused_with_what_is_wrong_and_what_to_do(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    entry = CATALOGUE["unet-mobilenetv2-citrus"]
    folder = converted_folder(entry, tmp_path, "fp32")
    write_converted(folder)
    damage(folder)
    with pytest.raises(BackendError, match=rf"{entry.name} cannot be loaded: .*{words}.* service\.prepare"):
        ensure_files(entry, "openvino", ModelStore(tmp_path))
