"""Which model answers, and what those who ask for another are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from service.device_queue import DeviceQueue
from service.messages import When
from service.reception import WAY_BACK_S, Reception

from models.catalog import CatalogueEntry
from models.errors import PomonaError, UnknownModel
from service.errors import ModelNotLoaded, WrongFamily
from service.runners.base import Runner
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner
from tests.fakes import (
    LOADED,
    LOADED_UNET,
    NOT_LOADED,
    OTHER_UNET,
    PATIENCE_S,
    SECOND,
    FakeClock,
    FakeSam,
    FakeUNet,
    make_settings,
)


@asynccontextmanager
async def reception(
    loaded: Sequence[CatalogueEntry], others: Sequence[CatalogueEntry] = ()
) -> AsyncIterator[Reception]:
    queue = DeviceQueue("fake:0")
    runners: dict[str, Runner] = {
        entry.name: (
            UNetRunner(entry, FakeUNet(), queue) if entry.name.endswith("unet") else SamRunner(entry, FakeSam(), queue)
        )
        for entry in loaded
    }
    catalogue = {entry.name: entry for entry in (*loaded, *others)}
    opened = Reception(runners, catalogue, make_settings(), clock=FakeClock(50))
    yield opened
    for runner in runners.values():
        await runner.close(PATIENCE_S)
    opened.workers.shutdown()


ALL = (LOADED_UNET, LOADED, SECOND)
OTHERS = (NOT_LOADED, OTHER_UNET)


async def test_the_first_loaded_model_of_a_family_answers_where_none_is_named() -> None:
    async with reception(ALL) as opened:
        assert opened.arrive(SamRunner, None, When()).runner.entry is LOADED
        assert opened.arrive(SamRunner, SECOND.name, When()).runner.entry is SECOND
        assert opened.arrive(UNetRunner, None, When()).runner.entry is LOADED_UNET
        assert (opened.default("sam"), opened.default("unet")) == (LOADED.name, LOADED_UNET.name)


async def test_a_visit_knows_until_when_the_device_may_take() -> None:
    async with reception(ALL) as opened:
        visit = opened.arrive(SamRunner, None, When(within=2, urgency=1))
        terms = visit.terms(after=0.5)
        assert (terms.arrived, terms.deadline, terms.urgency) == (50, 51.5 - WAY_BACK_S, 1)
        assert opened.arrive(SamRunner, None, When()).terms(after=0.5).deadline is None


@pytest.mark.parametrize(
    ("kind", "name", "error", "says"),
    [
        (SamRunner, "plum-sam", UnknownModel, "no model 'plum-sam'; loaded: orange-sam, lemon-sam"),
        (UNetRunner, "plum-sam", UnknownModel, "no model 'plum-sam'; loaded: peel-unet"),
        (SamRunner, NOT_LOADED.name, ModelNotLoaded, "POMONA_MODELS=peel-unet,orange-sam,lemon-sam,melon-sam would"),
        (SamRunner, LOADED_UNET.name, WrongFamily, "peel-unet is a U-Net, .* takes a SAM, .*; loaded: orange-sam, lem"),
        (SamRunner, OTHER_UNET.name, WrongFamily, "rind-unet is a U-Net"),
        (UNetRunner, LOADED.name, WrongFamily, "orange-sam is a SAM, .* takes a U-Net, .*; loaded: peel-unet$"),
    ],
)
async def test_who_names_a_model_that_does_not_answer_is_told_which_would(
    kind: type[Runner], name: str, error: type[PomonaError], says: str
) -> None:
    async with reception(ALL, OTHERS) as opened:
        with pytest.raises(error, match=says) as caught:
            opened.arrive(kind, name, When())
        assert type(caught.value) is error


@pytest.mark.parametrize("name", [None, LOADED.name, "plum-unet"])
async def test_where_no_model_would_do_the_answer_says_how_to_load_one(name: str | None) -> None:
    async with reception((LOADED,), OTHERS) as opened:
        with pytest.raises(PomonaError, match=r"none is loaded\. POMONA_MODELS=orange-sam,rind-unet would load one"):
            opened.arrive(UNetRunner, name, When())
    async with reception((LOADED,)) as opened:
        assert opened.default("unet") is None
        with pytest.raises(PomonaError, match="POMONA_MODELS_FILE"):
            opened.arrive(UNetRunner, name, When())
