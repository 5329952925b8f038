"""What the README says of settings and error codes is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from service.errors import PROBLEMS
from service.settings import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()


def shown(default: object) -> str:
    if default is None or default == ():
        return "unset"
    if isinstance(default, Path):
        return f"`{default.name}` in the user's cache folder"
    return f"`{','.join(map(str, default)) if isinstance(default, tuple) else default}`"


def settings_rows() -> list[str]:
    """A table row per setting, from where the settings are declared."""
    return [
        f"| `POMONA_{name.upper()}` | {shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def test_the_readme_lists_every_setting_with_its_default_and_meaning() -> None:
    table = README.split("## Settings")[1].split("## Models")[0]
    assert [line for line in table.splitlines() if line.startswith("| `POMONA_")] == settings_rows()


def test_the_readme_lists_every_error_code_under_its_status() -> None:
    listed: dict[str, set[int]] = {}
    for statuses, codes in re.findall(r"^\| ((?:\d{3}(?:, )?)+) \| (.+) \|$", README, re.MULTILINE):
        for code in re.findall(r"`(\w+)`", codes):
            listed.setdefault(code, set()).update(int(status) for status in statuses.split(", "))
    assert set(listed) == {problem.code for problem in PROBLEMS.values()}
    assert all(problem.status in listed[problem.code] for problem in PROBLEMS.values())
