"""Loads models of an open vocabulary from folders that `transformers` wrote, or that were downloaded from its hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models.errors import BackendError, BadCheckpoint, MalformedPrompt

GROUNDING_DINO: Final = "grounding-dino"
CLIPSEG: Final = "clipseg"


@dataclass(frozen=True, slots=True)
class Phrases:
    """Nouns as a model reads them.

    Attributes:
        nouns: in the order of the request, at least one.
        tokens: ids of each noun's tokens, without those that begin, separate or end.
    """

    nouns: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class GroundingParts:
    """A network in evaluation mode, float32 on the CPU, and what reads its texts.

    Attributes:
        network: of `transformers`.
        tokenizer: of `transformers`.
        preprocessing: content of preprocessor_config.json; empty without the file.
    """

    network: Any
    tokenizer: Any
    preprocessing: dict[str, Any]


def build_grounding(architecture: str, folder: Path) -> GroundingParts:
    """Load a network, its configuration and its tokenizer; nothing is looked up on the network.

    Args:
        architecture: `GROUNDING_DINO` or `CLIPSEG`.
        folder: with config.json, model.safetensors and the tokenizer's files.

    Raises:
        BackendError: `transformers` is not installed.
        BadCheckpoint: a file is missing or cannot be used, or is of another architecture.
    """
    try:
        # Imported here: it takes seconds, and only this family needs it.
        from transformers import AutoTokenizer, CLIPSegForImageSegmentation, GroundingDinoForObjectDetection
        from transformers.utils import logging
    except ImportError as error:
        raise BackendError(
            "Grounding DINO and CLIPSeg need the package transformers, which is not installed: make sam2 installs it "
            "from requirements-sam2.lock."
        ) from error
    logging.disable_progress_bar()
    network_type = GroundingDinoForObjectDetection if architecture == GROUNDING_DINO else CLIPSegForImageSegmentation
    described = _read(folder / "config.json")
    if described.get("model_type") != architecture:
        raise BadCheckpoint(
            f"{folder / 'config.json'}: model_type must be {architecture}, got {described.get('model_type')!r}."
        )
    try:
        network, report = network_type.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        # Of a folder on this machine, which has no revision.
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # nosec B615
    except Exception as error:  # a folder is checked by whatever it makes fail
        raise BadCheckpoint(
            f"{folder} must hold a {architecture} as transformers writes it, with model.safetensors and the "
            f"tokenizer's files: {type(error).__name__}: {error}"
        ) from error
    wrong = [*report["missing_keys"], *report["mismatched_keys"]]
    if wrong:
        raise BadCheckpoint(f"{folder}: {len(wrong)} tensors are missing or of the wrong shape, such as {wrong[0]}.")
    network.eval().requires_grad_(requires_grad=False).float()
    preprocessor = folder / "preprocessor_config.json"
    return GroundingParts(network, tokenizer, _read(preprocessor) if preprocessor.is_file() else {})


def read_phrases(tokenizer: Any, nouns: Sequence[str], most: int) -> Phrases:
    """Return nouns as a tokenizer reads them.

    Args:
        tokenizer: of `transformers`.
        nouns: at least one.
        most: tokens that each may have.

    Raises:
        MalformedPrompt: a noun has too many tokens, or none.
    """
    tokens = tuple(tuple(tokenizer(noun, add_special_tokens=False).input_ids) for noun in nouns)
    for noun, ids in zip(nouns, tokens, strict=True):
        if not 1 <= len(ids) <= most:
            raise MalformedPrompt(f"text: a noun must have 1 to {most} tokens, got {len(ids)} of {noun!r}.")
    return Phrases(tuple(nouns), tokens)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{file} must be the file that transformers wrote beside the weights: {error}") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{file} must hold a JSON object, got {type(content).__name__}.")
    return content
