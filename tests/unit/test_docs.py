"""The README and the pages of docs/ agree with the code and with each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest
import yaml

from docs.generate_settings import PAGE, render
from service.errors import PROBLEMS
from service.settings import Settings

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
DOCS: Final = ROOT / "docs"
PAGES: Final = (README, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md")))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

_FENCE: Final = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MODULE: Final = re.compile(r"python -m ([a-z_][\w.]*)")
_FILE: Final = re.compile(r"`((?:models|service|clients|loadtest|deploy|docs|tests)/[\w./-]+)`")
_VARIABLE: Final = re.compile(r"\bPOMONA_[A-Z][A-Z_]*\b")
_REMOVED: Final = {"POMONA_LINGER_MS"}
"""Settings that only the changelog names."""

_OF_CALLERS: Final = {"POMONA_API_KEY"}
"""Variables of the client."""


def prose(page: Path) -> str:
    """The page without its code blocks, where neither links nor headings count."""
    return _FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Ids of the page's headings, as Python-Markdown and GitHub both make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Every link and image of the page that stays in the project: the file and the anchor."""
    for target in _LINK.findall(prose(page)):
        if "://" not in target:
            file, _, anchor = target.partition("#")
            yield (page.parent / file if file else page), anchor


def make_targets() -> set[str]:
    """What the Makefile can make."""
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@every_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), f"{page.name} links to {file}, which does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name} links to #{anchor}, which {file.name} has not"


@every_page
def test_links_of_the_site_stay_in_the_site(page: Path) -> None:
    if page.parent == DOCS:
        outside = [str(file) for file, _ in links(page) if file.resolve().parent != DOCS]
        assert outside == [], "files outside docs/ are not part of the site: name them as code"


@every_page
def test_make_targets_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    code = [*re.findall(r"`(make [^`\n]*)`", text), *re.findall(r"^\$ (.*)$", text, re.MULTILINE)]
    named = {target for line in code for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", line)}
    assert named - make_targets() == set()


@every_page
def test_variables_that_are_named_are_settings(page: Path) -> None:
    known = {f"POMONA_{name.upper()}" for name in Settings.model_fields} | _REMOVED | _OF_CALLERS
    assert set(_VARIABLE.findall(page.read_text())) - known == set()


@every_page
def test_python_modules_that_are_named_exist(page: Path) -> None:
    missing = {name for name in _MODULE.findall(page.read_text()) if find_spec(name) is None}
    assert missing == set()


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = {path for path in _FILE.findall(prose(page)) if "NAME" not in path}
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w-]+\.md", str(navigation))
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_page_of_settings_is_what_the_generator_writes() -> None:
    assert PAGE.read_text("utf-8") == render(), "run python -m docs.generate_settings"
    assert re.findall(r"^\| `POMONA_(\w+)`", render(), re.MULTILINE)


def test_every_error_code_is_listed_under_its_status() -> None:
    listed: dict[str, set[int]] = {}
    rows = re.findall(r"^\| (\d{3}) \| (`.+) \|$", (DOCS / "api.md").read_text(), re.MULTILINE)
    for status, codes in rows:
        for code in re.findall(r"`(\w+)`", codes):
            listed.setdefault(code, set()).add(int(status))
    assert listed == {
        code: {problem.status for problem in PROBLEMS.values() if problem.code == code}
        for code in {problem.code for problem in PROBLEMS.values()}
    }
