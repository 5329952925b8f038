"""Asks a server's U-Net with the library that callers of Triton have: `python -m tests.system.triton_classes …`.

A process of its own, as the library's messages have the names of ours and one process holds them only once.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["http", "grpc"])
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path, help="has image and pixels.npy, and gets the arrays of answers, as .npz")
    options = parser.parse_args()
    library: Any = importlib.import_module(f"tritonclient.{options.kind}")
    file = np.array([(options.folder / "image").read_bytes()], object)
    pixels = np.load(options.folder / "pixels.npy")

    def tensor(array: Any, datatype: str) -> Any:
        made = library.InferInput("image", list(array.shape), datatype)
        made.set_data_from_numpy(array)
        return made

    told: dict[str, Any] = {}
    with library.InferenceServerClient(options.address) as client:
        told["ready"] = client.is_model_ready(options.model)
        model = client.get_model_metadata(options.model)
        if options.kind == "http":
            names, (version,) = [output["name"] for output in model["outputs"]], model["versions"]
        else:
            names, (version,) = [output.name for output in model.outputs], model.versions
        told["version"] = version

        answer = client.infer(options.model, [tensor(file, "BYTES")], request_id="belt-8", model_version=version)
        np.savez(options.folder / "of_file.npz", **{name: answer.as_numpy(name) for name in names})

        wanted = [library.InferRequestedOutput("class_map")]
        answer = client.infer(options.model, [tensor(pixels, "UINT8")], outputs=wanted, timeout=60_000_000)
        np.savez(options.folder / "of_pixels.npz", class_map=answer.as_numpy("class_map"))
        told["others"] = [name for name in names if answer.as_numpy(name) is not None]

        bad: dict[str, tuple[list[Any], dict[str, Any]]] = {
            "text": ([tensor(np.array([b"an orange"], object), "BYTES")], {}),
            "output": ([tensor(file, "BYTES")], {"outputs": [library.InferRequestedOutput("masks")]}),
            "version": ([tensor(file, "BYTES")], {"model_version": "3"}),
            "late": ([tensor(pixels[::-1].copy(), "UINT8")], {"timeout": 100}),
        }
        told["refused"] = {}
        for name, (inputs, how) in bad.items():
            try:
                client.infer(options.model, inputs, **how)
            except Exception as error:  # noqa: BLE001 (the library's own has no module in common)
                told["refused"][name] = error.status()  # type: ignore[attr-defined]
    print(json.dumps(told))


if __name__ == "__main__":
    main()
