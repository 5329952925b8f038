"""Generates the client's messages from the service's `.proto` file; part of `make proto`.

Only the messages: `pomona.grpc_codec` finds the methods in their descriptors, as the code that protoc generates for
methods needs a grpcio at least as new as itself.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from service.proto.generate import generate

GENERATED: Final = Path(__file__).parent / "src" / "pomona" / "_proto"

_DOCSTRING: Final = '"""Made by `make proto`."""\n'


def make(into: Path) -> None:
    """Write the module and its type stub.

    Args:
        into: folder; other files in it are deleted.

    Raises:
        RuntimeError: protoc refused the file; the message has its output.
    """
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    with TemporaryDirectory() as made:
        generate(Path(made))
        for suffix in (".py", ".pyi"):
            shutil.copy(Path(made) / "pomona" / "v1" / f"segmentation_pb2{suffix}", into)
    (into / "__init__.py").write_text(_DOCSTRING)


if __name__ == "__main__":
    make(GENERATED)
