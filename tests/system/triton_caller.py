"""Asks a server with the library that callers of Triton have: `python -m tests.system.triton_caller http|grpc …`.

A process of its own, as the library's messages have the names of ours and one process holds them only once.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "mobile-sam"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["http", "grpc"])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path, help="has image, pixels.npy and boxes.npy, and gets masks.npz")
    options = parser.parse_args()
    library: Any = importlib.import_module(f"tritonclient.{options.kind}")
    told: dict[str, Any] = {}
    data = (options.folder / "image").read_bytes()
    pixels, boxes = (np.load(options.folder / f"{name}.npy") for name in ("pixels", "boxes"))

    def tensor(name: str, array: Any, datatype: str, **how: Any) -> Any:
        made = library.InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array, **how)
        return made

    image = tensor("image", np.array([data], object), "BYTES")
    one = tensor("multimask", np.array([False]), "BOOL")
    prompts = [tensor("boxes", boxes, "FP32"), one]
    with library.InferenceServerClient(options.address) as client:
        told["live"], told["ready"] = client.is_server_live(), client.is_server_ready()
        told["models"] = [client.is_model_ready(MODEL), client.is_model_ready("sam-vit-b")]
        server, model = client.get_server_metadata(), client.get_model_metadata(MODEL)
        told["server"] = server["name"] if options.kind == "http" else server.name
        told["versions"] = list(model["versions"] if options.kind == "http" else model.versions)

        answer = client.infer(MODEL, [image, *prompts], request_id="belt-7", priority=1, timeout=60_000_000)
        whole = answer.get_response()
        told["id"] = whole["id"] if options.kind == "http" else whole.id
        masks = {name: answer.as_numpy(name) for name in ("masks", "scores", "boxes", "areas", "logits")}

        wanted = [library.InferRequestedOutput("masks")]
        answer = client.infer(
            MODEL,
            [image, *prompts],
            outputs=wanted,
            parameters={"mask_format": "rle"},
            model_version=told["versions"][0],
        )
        told["rle"] = [json.loads(text) for text in answer.as_numpy("masks").ravel()]
        told["others"] = answer.as_numpy("scores") is not None

        answer = client.infer(MODEL, [tensor("image", pixels, "UINT8"), *prompts], outputs=wanted)
        masks["of_pixels"] = answer.as_numpy("masks")
        if options.kind == "http":
            listed = [tensor("boxes", boxes, "FP32", binary_data=False), one]
            outputs = [library.InferRequestedOutput("areas", binary_data=False)]
            told["areas"] = client.infer(MODEL, [image, *listed], outputs=outputs).as_numpy("areas").ravel().tolist()

        outside = tensor("boxes", boxes + np.float32(10_000), "FP32")
        bad: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
            "text": (MODEL, [tensor("image", np.array([b"an orange"], object), "BYTES"), *prompts], {}),
            "outside": (MODEL, [image, outside], {}),
            "model": ("plum-sam", [image, *prompts], {}),
            "version": (MODEL, [image, *prompts], {"model_version": "3"}),
            "output": (MODEL, [image, *prompts], {"outputs": [library.InferRequestedOutput("mask")]}),
            "late": (MODEL, [tensor("image", pixels[::-1].copy(), "UINT8"), *prompts], {"timeout": 1000}),
        }
        told["refused"] = {}
        for name, (model_name, inputs, how) in bad.items():
            try:
                client.infer(model_name, inputs, **how)
            except Exception as error:  # noqa: BLE001 (the library's own has no module in common)
                told["refused"][name] = (error.status(), error.message())  # type: ignore[attr-defined]
    np.savez(options.folder / "masks.npz", **masks)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
