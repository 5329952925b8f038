"""The files of the page at `/`: what a browser gets, and when it need not get it again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.contract.door import Door, problem

FOLDER: Final = Path(__file__).parents[2] / "service" / "page"
PATHS: Final = [
    "/",
    "/docs",
    *(f"/page/{each.relative_to(FOLDER)}" for each in FOLDER.rglob("*.*") if each.name != "index.html"),
]


async def test_the_page_takes_scripts_and_styles_from_its_own_service_only(door: Door) -> None:
    page = await door.client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
    assert "unsafe" not in policy
    assert page.headers["x-frame-options"] == "DENY"
    assert re.findall(r'\bsrc="(?!\./page/)|\bhref="(?!\./|#)|\bstyle="|<style|\bon\w+="', page.text) == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_file_is_sent_once_and_then_only_when_it_changed(door: Door, path: str) -> None:
    first = await door.client.get(path)
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    again = await door.client.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-length" not in again.headers
    other = await door.client.get(path, headers={"if-none-match": '"other"'})
    assert other.content == first.content


@pytest.mark.parametrize("accepted", ["gzip", "br, GZIP;q=0.5", "deflate,gzip"])
async def test_text_is_packed_for_browsers_that_take_it(door: Door, accepted: str) -> None:
    packed = await door.client.get("/page/main.js", headers={"accept-encoding": accepted})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "accept-encoding"
    assert packed.content == (FOLDER / "main.js").read_bytes()
    assert int(packed.headers["content-length"]) < len(packed.content) / 2


@pytest.mark.parametrize("accepted", ["identity", "gzip;q=0", "br", ""])
async def test_text_is_sent_as_it_is_to_others(door: Door, accepted: str) -> None:
    plain = await door.client.get("/page/main.js", headers={"accept-encoding": accepted})
    assert "content-encoding" not in plain.headers
    assert plain.content == (FOLDER / "main.js").read_bytes()


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page/index.html"])
async def test_nothing_else_of_the_disk_is_served(door: Door, path: str) -> None:
    problem(await door.client.get(path), "not_found")


async def test_the_page_only_reads(door: Door) -> None:
    answer = await door.client.post("/")
    problem(answer, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"


def test_the_examples_are_small() -> None:
    assert sum(each.stat().st_size for each in (FOLDER / "examples").iterdir()) < 300_000
