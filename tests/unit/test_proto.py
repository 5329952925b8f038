"""The `.proto`: its generated code is up to date, and every declaration has a comment."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import get_args

from google.protobuf import descriptor_pb2

from models.catalog import Family
from service.grpc.streams import DEFAULT_IN_FLIGHT, MAX_IN_FLIGHT
from service.proto.generate import GENERATED, SOURCES, generate
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

SOURCE = (SOURCES / "pomona" / "v1" / "segmentation.proto").read_text()


def texts(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.suffix in {".py", ".pyi"})
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_the_generated_code_is_up_to_date(tmp_path: Path) -> None:
    generate(tmp_path / "generated")
    made, committed = texts(tmp_path / "generated"), texts(GENERATED)
    assert sorted(made) == sorted(committed)
    stale = [name for name in made if made[name] != committed[name]]
    assert stale == [], "run make proto"


def test_a_file_that_is_no_longer_generated_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "old_pb2.py"
    left.write_text("")
    generate(tmp_path)
    assert not left.exists()


def test_the_file_is_named_as_its_clients_name_it() -> None:
    assert (pb.DESCRIPTOR.name, pb.DESCRIPTOR.package) == ("pomona/v1/segmentation.proto", "pomona.v1")


def test_every_declaration_has_a_comment() -> None:
    members = re.compile(r"oneof \w+ \{.*?\}", re.DOTALL)  # whose types say what they are
    lines = [line.strip() for line in members.sub("oneof;", SOURCE).splitlines()]
    silent = [
        line
        for above, line in pairwise(lines)
        if line.endswith((";", "{", "{}"))
        and not line.startswith(("//", "syntax", "package", "reserved"))
        and not above.startswith("//")
    ]
    assert silent == []


def test_every_family_of_models_has_its_number() -> None:
    names = {f"MODEL_FAMILY_{family.upper()}" for family in get_args(Family)}
    assert set(pb.ModelFamily.keys()) == {*names, "MODEL_FAMILY_UNSPECIFIED"}


def test_a_gap_in_the_numbers_of_fields_is_reserved() -> None:
    described = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    for message in described.message_type:
        reserved = {number for span in message.reserved_range for number in range(span.start, span.end)}
        used = [field.number for field in message.field]
        assert sorted({*used, *reserved}) == list(range(1, len(used) + len(reserved) + 1)), message.name


def test_the_limits_in_the_comments_are_those_of_the_code() -> None:
    assert f"1 to {MAX_IN_FLIGHT}; {DEFAULT_IN_FLIGHT} where 0." in SOURCE
