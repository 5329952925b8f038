"""Makes the client's messages from the service's `.proto` file; a part of `make proto`.

Only the messages: the methods are a table in `pomona.grpc_messages`, as what protoc makes for them works with no grpcio
that is older than itself.
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
        into: folder; what else is in it goes.

    Raises:
        RuntimeError: protoc refused the file and said why.
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
