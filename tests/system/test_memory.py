"""Attacks on the memory of a real server, at a scale that takes seconds; `python -m loadtest memory` has the rest."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

import pytest

from loadtest import attacks
from loadtest.attacks import SMALL, Attack
from loadtest.memory import meet, warm_up
from loadtest.server import Server, free_port, running
from tests.system.conftest import LIMITS

pytestmark = [pytest.mark.slow, pytest.mark.alone]

BUDGET_MIB: Final = 240
BESIDE_MIB: Final = 60
"""What a server takes beside the budget: buffers of connections, the heap between two requests."""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little memory for requests, which allows small ones."""
    settings = LIMITS | {"memory_mib": str(BUDGET_MIB), "grpc_port": str(free_port())}
    with running(tmp_path_factory.mktemp("attacked"), **settings) as server:
        warm_up(server)
        yield server


ATTACKS: Final[dict[str, tuple[Attack, float, set[str]]]] = {
    "many masks": (functools.partial(attacks.many_masks, size=SMALL, mask_format="polygons"), 0.25, {"200"}),
    "mask prompts that are no masks of the image": (attacks.large_mask_prompts, 0.25, {"422"}),
    "JSON of many values": (attacks.many_values, 0.1, {"422"}),
    "unfinished uploads of 3.7 MiB": (attacks.unfinished_uploads, 0.12, {"open", "429", "closed"}),
    "headers of 10 MiB": (attacks.large_headers, 0.1, {"431", "closed"}),
    "trailers of 10 MiB": (attacks.large_trailers, 0.1, {"400", "closed", "415"}),
    "messages of many fields": (attacks.many_fields, 0.1, {"INVALID_ARGUMENT"}),
    "a message that unpacks to 300 MiB": (attacks.compressed_message, 0.1, {"UNIMPLEMENTED", "RESOURCE_EXHAUSTED"}),
    "metadata of 400 KiB": (attacks.large_metadata, 0.05, {"RESOURCE_EXHAUSTED"}),
    "frames of 3.6 MiB, all in flight": (attacks.large_frames, 0.12, {"answered"}),
}
"""Attacks, how large they are, and how they may be answered."""


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_no_more_memory_than_there_is_for_requests(attacked: Server, name: str) -> None:
    attack, scale, allowed = ATTACKS[name]
    result = meet(attacked, attack, scale=scale, rest_s=1)
    assert set(result.answers) <= allowed, result
    assert result.alive, attacked.log()[-4000:]
    assert result.peak_mib - result.before_mib <= BUDGET_MIB + BESIDE_MIB, result


def test_memory_goes_back_after_all_of_them(attacked: Server) -> None:
    """The mapped and trimmed heap keeps a little of each; a leak would show as tens of megabytes."""
    first = meet(attacked, attacks.many_values, scale=0.1, rest_s=6)
    last = meet(attacked, attacks.many_values, scale=0.1, rest_s=6)
    assert last.after_mib - first.after_mib <= 0.15 * first.before_mib
