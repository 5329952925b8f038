"""The Python client's messages are those of the service's `.proto` file."""

from __future__ import annotations

from pathlib import Path

from clients.python.make_proto import GENERATED, make


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix in {".py", ".pyi"}}


def test_the_generated_code_is_what_make_proto_makes(tmp_path: Path) -> None:
    left = tmp_path / "old_pb2.py"
    left.write_text("")
    make(tmp_path)
    made, committed = texts(tmp_path), texts(GENERATED)
    assert made.keys() == committed.keys()
    stale = [name for name in made if made[name] != committed[name]]
    assert stale == [], "run make proto"


def test_the_generated_code_does_not_import_the_service() -> None:
    assert all(
        "service" not in line for line in texts(GENERATED)["segmentation_pb2.py"].splitlines() if "import" in line
    )
