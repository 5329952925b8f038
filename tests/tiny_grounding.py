"""Grounding DINO and CLIPSeg of random weights, small enough for a test, in folders as `transformers` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
)

_WORDS: Final = ("orange", "oranges", "apple", "leaf", "sticker", "mouldy", "a", "fruit", "plum", "##s")
_SPECIAL: Final = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
"""Where Grounding DINO looks for them, as in BERT's vocabulary."""


def write_grounding_dino(folder: Path, *, max_text_len: int = 48) -> Path:
    """Write a Grounding DINO of few layers and 20 queries; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [_SPECIAL.get(number, f"[unused{number}]") for number in range(1100)]
    vocabulary[1030 : 1030 + len(_WORDS)] = _WORDS
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "out_features": ["stage2", "stage3", "stage4"],
        },
        text_config={
            "model_type": "bert",
            "vocab_size": 1100,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        num_queries=20,
        max_text_len=max_text_len,
        fusion_dropout=0.0,
        fusion_droppath=0.0,
    )
    _save(GroundingDinoForObjectDetection, config, folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    preprocessor = {
        "size": {"shortest_edge": 64, "longest_edge": 107},
        "image_processor_type": "GroundingDinoImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def write_clipseg(folder: Path) -> Path:
    """Write a CLIPSeg of three layers whose input has 64 x 64 pixels; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = len(tokens) - 1
    common = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config={
            **common, "vocab_size": len(tokens), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end,
        },
        vision_config={**common, "image_size": 64, "patch_size": 16},
        projection_dim=32,
        extract_layers=[0, 1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )  # fmt: skip
    _save(CLIPSegForImageSegmentation, config, folder)
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    preprocessor = {
        "size": {"height": 64, "width": 64},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "ViTImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def _save(network_type: Any, config: Any, folder: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = network_type(config)
        network.requires_grad_(requires_grad=False)
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    network.save_pretrained(folder)
