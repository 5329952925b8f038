"""Calls a server with Triton's client library: `python -m tests.system.triton_caller http|grpc ADDRESS MODEL FOLDER`.

A process of its own, as the library's messages have the names of ours and one process holds them only once.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:  # noqa: PLR0915 (one call after the other)
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["http", "grpc"])
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument(
        "folder", type=Path, help="has image, pixels.npy and, for a SAM, boxes.npy; gets arrays as .npz"
    )
    options = parser.parse_args()
    library: Any = importlib.import_module(f"tritonclient.{options.kind}")
    over_http = options.kind == "http"
    folder, model = options.folder, options.model

    def tensor(name: str, array: Any, datatype: str, **how: Any) -> Any:
        made = library.InferInput(name, list(array.shape), datatype)
        made.set_data_from_numpy(array, **how)
        return made

    def field(answer: Any, name: str) -> Any:
        return answer[name] if over_http else getattr(answer, name)

    pixels = np.load(folder / "pixels.npy")
    image = tensor("image", np.array([(folder / "image").read_bytes()], object), "BYTES")
    text = tensor("image", np.array([b"an orange"], object), "BYTES")
    sam = (folder / "boxes.npy").exists()
    prompts: list[Any] = []
    first, unknown = "class_map", "masks"
    if sam:
        boxes = np.load(folder / "boxes.npy")
        one = tensor("multimask", np.array([False]), "BOOL")
        prompts = [tensor("boxes", boxes, "FP32"), one]
        first, unknown = "masks", "mask"
    found: dict[str, Any] = {}
    with library.InferenceServerClient(options.address) as client:
        found["live"], found["ready"] = client.is_server_live(), client.is_server_ready()
        found["models"] = [client.is_model_ready(model), client.is_model_ready("sam-vit-b")]
        found["server"] = field(client.get_server_metadata(), "name")
        metadata = client.get_model_metadata(model)
        found["versions"] = list(field(metadata, "versions"))
        names = [field(output, "name") for output in field(metadata, "outputs")]

        answer = client.infer(model, [image, *prompts], request_id="belt-7", priority=1, timeout=60_000_000)
        found["id"] = field(answer.get_response(), "id")
        np.savez(folder / "of_file.npz", **{name: answer.as_numpy(name) for name in names})

        wanted = [library.InferRequestedOutput(first)]
        raw = [tensor("image", pixels, "UINT8"), *prompts]
        answer = client.infer(model, raw, outputs=wanted, model_version=found["versions"][0])
        np.savez(folder / "of_pixels.npz", **{first: answer.as_numpy(first)})
        found["others"] = [name for name in names if answer.as_numpy(name) is not None]

        bad: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
            "text": (model, [text, *prompts], {}),
            "model": ("plum-sam", [image, *prompts], {}),
            "version": (model, [image, *prompts], {"model_version": "3"}),
            "output": (model, [image, *prompts], {"outputs": [library.InferRequestedOutput(unknown)]}),
            "late": (model, [tensor("image", pixels[::-1].copy(), "UINT8"), *prompts], {"timeout": 100}),
        }
        if sam:
            parameters = {"mask_format": "rle"}
            answer = client.infer(model, [image, *prompts], outputs=wanted, parameters=parameters)
            found["rle"] = [json.loads(mask) for mask in answer.as_numpy("masks").ravel()]
            bad["outside"] = (model, [image, tensor("boxes", boxes + np.float32(10_000), "FP32")], {})
        if sam and over_http:
            listed = [tensor("boxes", boxes, "FP32", binary_data=False), one]
            areas = [library.InferRequestedOutput("areas", binary_data=False)]
            found["areas"] = client.infer(model, [image, *listed], outputs=areas).as_numpy("areas").ravel().tolist()
        found["refused"] = {}
        for name, (model_name, inputs, how) in bad.items():
            try:
                client.infer(model_name, inputs, **how)
            except Exception as error:  # noqa: BLE001 (the library's own has no module in common)
                found["refused"][name] = (error.status(), error.message())  # type: ignore[attr-defined]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
