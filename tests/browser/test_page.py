"""The page as a whole in a real browser: keys, prefixes, live frames, metrics, a phone, people who use no mouse."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect

from service import keys
from service.access import Access, KeyFile, new_key
from tests.browser.visitor import Visitor
from tests.contract.live import LiveDoor, live_door

PREFIX = "/line-3/pomona"


@contextmanager
def proxy(to: str) -> Iterator[str]:
    """Serve a service under a prefix, as ingresses do; yields the address."""
    host = urlsplit(to).netloc

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            length = int(self.headers.get("content-length") or 0)
            connection = http.client.HTTPConnection(host)
            path, body = self.path.removeprefix(PREFIX), self.rfile.read(length)
            connection.request(self.command, path, body, dict(self.headers))
            answer = connection.getresponse()
            given = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(given)
            connection.close()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
        server.shutdown()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[LiveDoor, str]]:
    """A service with one API key, and the key."""
    file = tmp_path / "keys.json"
    file.write_text('{"keys": []}')
    key, text = new_key("line-3", ("infer",))
    keys.add(file, key)
    with live_door(access=Access(KeyFile(file)), api_keys_file=file) as door:
        yield door, text


def test_a_key_is_asked_for_and_kept_for_the_tab(page: Page, guarded: tuple[LiveDoor, str], two: Path) -> None:
    door, key = guarded
    page.goto(door.address)
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("The service needs an API key.")
    page.get_by_role("button", name="Key").click()
    dialog.get_by_label("Key", exact=True).fill(key)
    dialog.get_by_role("button", name="Use this key").click()
    expect(page.locator("#sam-model option").first).to_be_attached()
    expect(page.get_by_role("alert")).to_be_empty()
    visitor = Visitor(page, door.address)
    visitor.open(two)
    visitor.click(90, 90)
    expect(visitor.area(1)).to_contain_text("px")
    expect(page.locator("#segment-result pre")).to_contain_text("Authorization: Bearer $POMONA_API_KEY")
    assert key not in page.locator("#segment-result pre").inner_text()
    page.reload()
    expect(page.locator("#sam-model option").first).to_be_attached()
    expect(dialog).to_be_hidden()


def test_metrics_say_which_key_they_need(page: Page, guarded: tuple[LiveDoor, str]) -> None:
    door, key = guarded
    page.goto(door.address)
    page.get_by_role("dialog").get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")
    expect(page.locator("#sam-model option").first).to_be_attached()
    page.get_by_role("tab", name="Metrics").click()
    expect(page.get_by_role("alert")).to_contain_text("admin")


def test_it_works_behind_a_prefix(page: Page, served: LiveDoor, two: Path) -> None:
    with proxy(served.address) as address:
        visitor = Visitor(page, address).arrive()
        visitor.open(two)
        visitor.click(90, 90)
        expect(visitor.area(1)).to_contain_text("px")
        expect(page.locator("#segment-result pre")).to_contain_text(f"{address}/v1/segment")
        expect(page.get_by_role("link", name="API")).to_have_attribute("href", "./docs")
        page.goto("about:blank")


def test_frames_are_inspected_live_until_stopped(page: Page, served: LiveDoor, two: Path, none: Path) -> None:
    Visitor(page, served.address).arrive("live")
    page.get_by_label("Frames per second").fill("10")
    page.locator("#live-deadline").fill("")
    page.locator("input[data-frames]").first.set_input_files([two, none])
    expect(page.locator("#outcome")).to_contain_text("2 fruits")
    expect(page.locator("#outcome")).to_contain_text("0 fruits")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#news")).to_have_text("Live inspection has stopped.")
    answered = page.locator("#live-counts dd").first
    assert int(answered.inner_text()) >= 2


def test_a_camera_is_inspected_live(page: Page, served: LiveDoor) -> None:
    Visitor(page, served.address).arrive("live")
    page.locator("#live-deadline").fill("")
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#live-counts dd").first).not_to_have_text("0")
    page.get_by_role("tab", name="Segment").click()
    expect(page.get_by_role("tab", name="Live")).to_have_attribute("aria-selected", "false")
    expect(page.locator("#live-stop")).to_be_disabled()


def test_late_frames_are_counted_as_such(page: Page, served: LiveDoor, two: Path) -> None:
    Visitor(page, served.address).arrive("live")
    page.locator("#live-deadline").fill("1")
    page.locator("input[data-frames]").first.set_input_files([two])
    expect(page.locator("#live-counts dd").nth(1)).not_to_have_text("0")
    expect(page.get_by_role("alert")).to_be_empty()


def test_metrics_are_plotted(page: Page, served: LiveDoor) -> None:
    Visitor(page, served.address).arrive("metrics")
    expect(page.locator("#board figure")).to_have_count(8)
    expect(page.locator("#board-summary")).not_to_have_text("Reading the metrics …")


def test_tabs_follow_the_arrow_keys_and_the_address(page: Page, served: LiveDoor) -> None:
    Visitor(page, served.address).arrive("inspect")
    page.get_by_role("tab", name="Inspect").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Live")).to_be_focused()
    assert page.url.endswith("#view=live")


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [("light", ViewportSize(width=390, height=844)), ("dark", ViewportSize(width=1280, height=800))],
)
def test_axe_finds_nothing_serious(
    chromium: Browser, served: LiveDoor, two: Path, scheme: Literal["light", "dark"], viewport: ViewportSize
) -> None:
    with chromium.new_context(viewport=viewport, color_scheme=scheme, bypass_csp=True) as context:
        visitor = Visitor(context.new_page(), served.address).arrive()
        found = {"welcome": serious(visitor.page)}
        visitor.open(two)
        visitor.click(90, 90)
        expect(visitor.page.locator("#masks input")).to_have_count(3)
        found["segment"] = serious(visitor.page)
        visitor.page.get_by_role("tab", name="Inspect").click()
        expect(visitor.page.locator("#fruits tbody tr")).to_have_count(2)
        found["inspect"] = serious(visitor.page)
        for view in ("live", "metrics"):
            visitor.page.get_by_role("tab", name=view.capitalize()).click()
            found[view] = serious(visitor.page)
        visitor.page.get_by_role("button", name="Help").click()
        found["help"] = serious(visitor.page)
    assert {view: names for view, names in found.items() if names} == {}


def serious(page: Page) -> list[str]:
    """Return what keeps people out by axe's rules, with the first element of each kind."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in violations
        if each["impact"] in {"serious", "critical"}
    ]


def test_on_a_phone_image_and_controls_are_in_reach(chromium: Browser, served: LiveDoor, two: Path) -> None:
    with chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as context:
        page = context.new_page()
        visitor = Visitor(page, served.address).arrive()
        visitor.open(two)
        canvas = page.locator("#canvas").bounding_box()
        assert canvas is not None
        page.touchscreen.tap(canvas["x"] + canvas["width"] / 4, canvas["y"] + canvas["height"] / 2)
        expect(visitor.area(1)).to_contain_text("px")
        expect(page.get_by_role("button", name="Undo")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
