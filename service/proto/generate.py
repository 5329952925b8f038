"""Makes `generated/` from the `.proto` files: `python -m service.proto.generate`; needs the development packages."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Final

from grpc_tools import protoc

SOURCES: Final = Path(__file__).parent
GENERATED: Final = SOURCES / "generated"

_PACKAGE: Final = "service.proto.generated"
_DOCSTRING: Final = '"""Made by `make proto`."""\n'


def generate(into: Path) -> None:
    """Write the modules and their type stubs.

    A file's name in its descriptor stays that of its folder here, as clients that have a copy of it name it, so that
    both fit into one process; Python finds the modules in a package of ours.

    Args:
        into: folder; what else is in it goes.

    Raises:
        RuntimeError: protoc refused a file and said why.
    """
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    sources = sorted(path.relative_to(SOURCES) for path in SOURCES.rglob("*.proto"))
    plugins = {name: Path(sys.executable).parent / f"protoc-gen-{name}" for name in ("mypy", "mypy_grpc")}
    arguments = [
        f"-I{SOURCES}",
        f"-I{files('grpc_tools') / '_proto'}",
        *(f"--plugin=protoc-gen-{name}={path}" for name, path in plugins.items()),
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet,only_async:{into}",
        *map(str, sources),
    ]
    if protoc.main(["protoc", *arguments]) != 0:
        raise RuntimeError("protoc failed; what it says is above")
    packages = {".".join(source.parent.parts) for source in sources}
    ours = re.compile(rf"^from ({'|'.join(map(re.escape, packages))}) import", re.MULTILINE)
    for module in [*into.rglob("*_pb2*.py"), *into.rglob("*_pb2*.pyi")]:
        module.write_text(ours.sub(rf"from {_PACKAGE}.\1 import", module.read_text()))
    for folder in [into, *(path for path in into.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(_DOCSTRING)


if __name__ == "__main__":
    generate(GENERATED)
