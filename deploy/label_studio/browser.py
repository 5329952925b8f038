"""What an annotator does with Pomona in Label Studio's page, done in Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Page, Route, sync_playwright

from deploy.label_studio.studio import Studio, TrialFailed

_WITHIN_MS: Final = 60_000
_DRAWN_MS: Final = 2_500
"""The page draws masks some time after it has them, and says nothing when it is done."""

_LISTED: Final = "document.body.innerText.match(/Healthy/g).length > 3"
"""The labels are on the page three times; each region of fruit is once more."""

_SMART: Final = ".lsf-tool_smart"
_ACCEPT: Final = ".lsf-auto-accept__action_type_accept"
_FIRST_OF_CLICKS: Final = 2
"""Place among the labels, which are in the order of the configuration: after those of the brush."""


def annotate_in_browser(studio: Studio, project: int, other: int, click: Mapping[str, float], folder: Path) -> None:
    """Click on the image of a project's task with a smart tool, accept the mask, and submit it.

    Args:
        studio: with the projects.
        project: of one task without annotations.
        other: of one task with a prediction, to be looked at.
        click: `x` and `y` in percent of the image.
        folder: gets `prediction.png`, the whole image as Pomona annotated it, and `click.png`, the mask of the click.

    Raises:
        TrialFailed: no mask comes, or it is not what is submitted.
        playwright.sync_api.Error: the page is not as expected.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise TrialFailed("Chromium is not installed (Debian: apt-get install --no-install-recommends chromium).")
    folder.mkdir(parents=True, exist_ok=True)

    def own_host_only(route: Route) -> None:
        if route.request.url.startswith(studio.url):
            route.continue_()
        else:
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1400, "height": 860})
        context.set_default_timeout(_WITHIN_MS)
        context.route("**/*", own_host_only)
        cookies: Any = studio.cookies()
        context.add_cookies(cookies)
        page = context.new_page()
        _open_task(page, studio, other)
        page.wait_for_function(_LISTED)
        page.wait_for_timeout(_DRAWN_MS)
        page.screenshot(path=folder / "prediction.png")
        _open_task(page, studio, project)
        _annotate(page, click, folder)
        browser.close()
    (task,) = studio.tasks(project)
    submitted = [(result["type"], result["from_name"]) for each in task["annotations"] for result in each["result"]]
    if submitted != [("brushlabels", "brush")]:
        raise TrialFailed(f"One brush mask must have been submitted, got {submitted}.")


def _open_task(page: Page, studio: Studio, project: int) -> None:
    (task,) = studio.tasks(project)
    page.goto(f"{studio.url}/projects/{project}/data?task={task['id']}")
    page.get_by_text("Auto-Annotation").wait_for()
    page.wait_for_timeout(_DRAWN_MS)


def _annotate(page: Page, click: Mapping[str, float], folder: Path) -> None:
    page.get_by_text("Auto-Annotation").click()
    page.locator(_SMART).first.hover()
    page.locator(f"{_SMART}[aria-label=key-point-tool]").click()
    page.locator(".lsf-label").nth(_FIRST_OF_CLICKS).click()
    image = page.locator(".konvajs-content").first.bounding_box()
    if image is None:
        raise TrialFailed("The page shows no image.")
    x, y = (image["x"] + image["width"] * click["x"] / 100, image["y"] + image["height"] * click["y"] / 100)
    with page.expect_response(lambda response: "interactive-annotating" in response.url) as answered:
        page.mouse.click(x, y)
    if "data" not in answered.value.json():
        raise TrialFailed(f"The click was not answered: {answered.value.text()[:1000]}")
    page.wait_for_timeout(_DRAWN_MS)
    page.screenshot(path=folder / "click.png")
    page.locator(_ACCEPT).click()
    page.wait_for_timeout(_DRAWN_MS)
    with page.expect_response(lambda response: "/annotations" in response.url):
        page.get_by_text("Submit").click()
