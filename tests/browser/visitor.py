"""What somebody does with the page, in pixels of the image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Locator, Page, expect

from models.types import Size
from tests.contract.scenes import FRUIT_SIZE

_MARGIN: Final = 0.97
"""Share of the canvas that an image takes when it was fitted."""

expect.set_options(timeout=20_000)


@dataclass(frozen=True)
class Visitor:
    """Somebody with a browser.

    Attributes:
        page: the tab.
        address: of the service, without a slash at its end.
        size: of the images that they open.
    """

    page: Page
    address: str
    size: Size = FRUIT_SIZE

    def arrive(self, view: str = "segment") -> Visitor:
        """Open the page and wait until it knows the service."""
        self.page.goto(f"{self.address}/#view={view}")
        expect(self.page.locator("#state")).to_have_text("ready")
        expect(self.page.locator("#sam-model option").first).to_be_attached()
        return self

    def open(self, file: Path) -> None:
        """Choose an image, and wait until it is shown."""
        self.page.locator("input[data-opens]").last.set_input_files(file)
        expect(self.page.locator("#canvas")).to_have_attribute("aria-label", f"Image {file.name}")

    def click(self, x: float, y: float, button: Literal["left", "right"] = "left") -> None:
        """Click a pixel."""
        self.page.mouse.click(*self._at(x, y), button=button)

    def drag(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Drag from one pixel to another."""
        self.page.mouse.move(*self._at(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*self._at((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self._at(x1, y1))
        self.page.mouse.up()

    def colour(self, x: float, y: float) -> tuple[int, ...]:
        """Return what the canvas shows at a pixel of the image: red, green, blue."""
        left, top, scale = self._placed()
        shown: list[int] = self.page.evaluate(
            """async ([x, y]) => {
              await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
              const canvas = document.getElementById("canvas");
              const density = canvas.width / canvas.clientWidth;
              const at = [Math.round(x * density), Math.round(y * density)];
              return [...canvas.getContext("2d").getImageData(at[0], at[1], 1, 1).data];
            }""",
            [left + x * scale, top + y * scale],
        )
        return tuple(shown[:3])

    def area(self, number: int) -> Locator:
        """Where the list of objects says how many pixels an object has."""
        return self.page.locator(f"#objects li:nth-child({number}) .numbers")

    def download(self, name: str, panel: str, folder: Path) -> Path:
        """Press a button that downloads, and return the file."""
        with self.page.expect_download() as started:
            self.page.locator(f"#{panel}-result").get_by_role("button", name=name, exact=True).click()
        file = folder / started.value.suggested_filename
        started.value.save_as(file)
        return file

    def _placed(self) -> tuple[float, float, float]:
        """Return where the fitted image lies on the canvas, and how large its pixels are."""
        canvas = self.page.locator("#canvas").bounding_box()
        assert canvas is not None
        width, height = canvas["width"], canvas["height"]
        scale = min(width * _MARGIN / self.size.width, height * _MARGIN / self.size.height)
        return (width - self.size.width * scale) / 2, (height - self.size.height * scale) / 2, scale

    def _at(self, x: float, y: float) -> tuple[float, float]:
        canvas = self.page.locator("#canvas").bounding_box()
        assert canvas is not None
        left, top, scale = self._placed()
        return canvas["x"] + left + x * scale, canvas["y"] + top + y * scale
