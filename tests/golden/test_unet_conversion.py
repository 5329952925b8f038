"""A U-Net on both backends, from its entry in a models file to logits, on seeded random weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.backends.base import BackendName, UNetBackend
from models.backends.converted_models import UNET
from models.backends.load import ModelStore, ensure_files, load_sam, load_unet
from models.backends.openvino_backend import compile_model
from models.catalog import CATALOGUE, CatalogueEntry, LocalFile, load_catalogue
from models.errors import BackendError, BadCheckpoint, NoSource, WeightsError
from models.types import Pixels, Size
from models.unet.build import PixelsToLogits, new_unet
from models.unet.letterbox import UNetLetterbox, pad, unet_letterbox
from tests.untrained import write_untrained_unet

ARCHITECTURES = ("unet-resnet18", "unet-mobilenetv2")
BACKENDS: tuple[BackendName, ...] = ("torch", "openvino")
UPRIGHT, LYING = unet_letterbox(Size(416, 180), 64 * 128), unet_letterbox(Size(300, 400), 96 * 128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unets")


@pytest.fixture(scope="module")
def entries(folder: Path) -> Mapping[str, CatalogueEntry]:
    """An untrained network of each architecture in an ordinary models file, under the architecture's name."""
    lines = ["models:"]
    for seed, architecture in enumerate(ARCHITECTURES):
        write_untrained_unet(folder / f"{architecture}.safetensors", architecture, seed)
        lines += [f"  {architecture}:", f"    architecture: {architecture}", "    licence: CC0-1.0"]
        lines += [f"    file: {architecture}.safetensors"]
    (folder / "models.yaml").write_text("\n".join(lines) + "\n")
    return load_catalogue(folder / "models.yaml")


@pytest.fixture(scope="module")
def loaded(entries: Mapping[str, CatalogueEntry], folder: Path) -> dict[tuple[str, BackendName], UNetBackend]:
    model_store = ModelStore(folder / "cache")
    return {
        (architecture, backend): load_unet(entries[architecture], backend, model_store, threads=1)
        for architecture in ARCHITECTURES
        for backend in BACKENDS
    }


def image(letterbox: UNetLetterbox, seed: int) -> Pixels:
    shape = (letterbox.resized.height, letterbox.resized.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def infer(unet: UNetBackend, letterbox: UNetLetterbox, *seeds: int) -> list[NDArray[np.float32]]:
    return unet.infer([unet.prepare(image(letterbox, seed), letterbox) for seed in seeds])


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    # Float32 kernels add up in another order; over twenty layers that is 1e-5 of the range. A wrong mean or channel
    # moves the logits by a hundredth and more.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("letterbox", [UPRIGHT, LYING], ids=["upright", "lying"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_backends_give_the_logits_of_the_plain_network(
    loaded: dict[tuple[str, BackendName], UNetBackend], architecture: str, letterbox: UNetLetterbox
) -> None:
    network = new_unet(architecture, ARCHITECTURES.index(architecture))
    network = PixelsToLogits(network.half().float().eval())  # what a stand-in keeps
    with torch.inference_mode():
        expected = network(torch.from_numpy(pad(image(letterbox, 0), letterbox)[None]))[0].numpy()
    for backend in BACKENDS:
        unet = loaded[architecture, backend]
        (found,) = infer(unet, letterbox, 0)
        assert unet.name == backend
        assert found.dtype == np.float32
        assert found.shape == (5, letterbox.padded.height, letterbox.padded.width)
        assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_mates_do_not_change_a_images_logits(
    loaded: dict[tuple[str, BackendName], UNetBackend], architecture: str, backend: BackendName
) -> None:
    unet = loaded[architecture, backend]
    (alone,) = infer(unet, UPRIGHT, 1)
    (_, among, _) = infer(unet, UPRIGHT, 0, 1, 2)
    # A batch may take another kernel, so not to the last bit.
    assert_close(among, alone)
    (other,) = infer(unet, UPRIGHT, 2)
    assert np.abs(other - alone).max() > 1e-2 * np.abs(alone).max()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_converted_network_runs_on_as_many_threads_as_asked(
    entries: Mapping[str, CatalogueEntry], folder: Path, loaded: object, threads: int
) -> None:
    converted = ensure_files(entries["unet-mobilenetv2"], "openvino", ModelStore(folder / "cache"))
    compiled = compile_model(converted / UNET, threads=threads).get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_outlive_the_next_inference(
    loaded: dict[tuple[str, BackendName], UNetBackend], backend: BackendName
) -> None:
    unet = loaded["unet-mobilenetv2", backend]
    (first,) = infer(unet, UPRIGHT, 0)
    kept = first.copy()
    infer(unet, UPRIGHT, 1)
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_sizes_are_rejected(loaded: dict[tuple[str, BackendName], UNetBackend], backend: BackendName) -> None:
    unet = loaded["unet-mobilenetv2", backend]
    with pytest.raises(ValueError, match="the pixels must have the shape"):
        unet.prepare(image(LYING, 0), UPRIGHT)
    mixed = [unet.prepare(image(letterbox, 0), letterbox) for letterbox in (UPRIGHT, LYING)]
    with pytest.raises(ValueError, match="separate batches"):
        unet.infer(mixed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sizes_of_batches_on_offer_rise_from_one(
    loaded: dict[tuple[str, BackendName], UNetBackend], backend: BackendName
) -> None:
    sizes = loaded["unet-resnet18", backend].image_batches
    assert sizes[0] == 1
    assert list(sizes) == sorted(set(sizes))


def test_a_conversion_is_kept_and_a_checkpoint_of_another_architecture_leaves_none(
    entries: Mapping[str, CatalogueEntry], folder: Path, loaded: object
) -> None:
    model_store = ModelStore(folder / "cache")
    entry = entries["unet-mobilenetv2"]
    converted = ensure_files(entry, "openvino", model_store)
    made = (converted / UNET).stat().st_mtime_ns
    assert ensure_files(entry, "openvino", model_store) == converted
    assert (converted / UNET).stat().st_mtime_ns == made
    wrong = CatalogueEntry(
        name="wrong",
        architecture=entries["unet-resnet18"].architecture,
        licence=entry.licence,
        filename=entry.filename,
        size=entry.size,
        sha256=entry.sha256,
        sources=entry.sources,
    )
    with pytest.raises(BadCheckpoint, match="does not fit the architecture unet-resnet18"):
        load_unet(wrong, "torch", model_store)
    elsewhere = ModelStore(folder / "elsewhere")
    with pytest.raises(BackendError, match="does not fit the architecture unet-resnet18"):
        load_unet(wrong, "openvino", elsewhere)
    assert not list((folder / "elsewhere").rglob("*.xml"))


def rot(path: Path) -> None:
    """Change some bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.fixture
def damaged(entries: Mapping[str, CatalogueEntry], folder: Path, loaded: object, tmp_path: Path) -> Path:
    """A copy of the converted network, in its place in the cache `tmp_path`."""
    converted = ensure_files(entries["unet-mobilenetv2"], "openvino", ModelStore(folder / "cache"))
    return Path(shutil.copytree(converted, tmp_path / converted.relative_to(folder / "cache")))


@pytest.mark.parametrize("damage", [rot, truncate])
def test_damaged_converted_models_are_converted_again(
    entries: Mapping[str, CatalogueEntry],
    loaded: dict[tuple[str, BackendName], UNetBackend],
    tmp_path: Path,
    damaged: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damage((damaged / UNET).with_suffix(".bin"))
    repaired = load_unet(entries["unet-mobilenetv2"], "openvino", ModelStore(tmp_path), threads=1)
    assert "unet-mobilenetv2 is converted again" in caplog.text
    (found,), (expected,) = (infer(unet, UPRIGHT, 0) for unet in (repaired, loaded["unet-mobilenetv2", "openvino"]))
    assert_close(found, expected)


def test_damaged_converted_models_without_their_checkpoint_are_one_clear_error(
    entries: Mapping[str, CatalogueEntry], tmp_path: Path, damaged: Path
) -> None:
    rot((damaged / UNET).with_suffix(".bin"))
    lost = replace(entries["unet-mobilenetv2"], sources=(LocalFile(tmp_path / "lost.safetensors"),))
    with pytest.raises(
        NoSource, match=r"unet\.bin is not as it was converted.* could not be converted again\. .*lost\.safetensors"
    ):
        load_unet(lost, "openvino", ModelStore(tmp_path))


def test_a_cache_that_cannot_be_written_is_one_clear_error(
    entries: Mapping[str, CatalogueEntry], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(WeightsError, match=r"POMONA_CACHE_DIR"):
        load_unet(entries["unet-mobilenetv2"], "openvino", ModelStore(tmp_path / "cache"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_entry_of_the_other_family_is_rejected(
    entries: Mapping[str, CatalogueEntry], backend: BackendName, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="mobile-sam must be of the family 'unet', got 'sam'"):
        load_unet(CATALOGUE["mobile-sam"], backend, ModelStore(tmp_path))
    with pytest.raises(ValueError, match="must be of the family 'sam', got 'unet'"):
        load_sam(entries["unet-resnet18"], backend, ModelStore(tmp_path))
