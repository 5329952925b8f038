"""Grades as callers and settings give them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from models.inspection import REJECT, Grade

MOST_GRADES: Final = 16


class GradeIn(BaseModel):
    """A grade and the most of a fruit that may be infected for it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    grade: str = Field(min_length=1, max_length=32, description="Its name, as it will stand in the answer.")
    max_infected_fraction: float = Field(
        ge=0, le=1, allow_inf_nan=False, description="The most that may be infected, itself included."
    )

    def __str__(self) -> str:
        return str(self.domain)

    @property
    def domain(self) -> Grade:
        """As the models know it."""
        return Grade(self.grade, self.max_infected_fraction)


def _rising(grades: tuple[GradeIn, ...]) -> tuple[GradeIn, ...]:
    if not 1 <= len(grades) <= MOST_GRADES:
        raise ValueError(f"{len(grades)} grades; 1 to {MOST_GRADES} would be right")
    for better, worse in pairwise(grades):
        if better.max_infected_fraction >= worse.max_infected_fraction:
            raise ValueError(
                f"{better.grade} takes up to {better.max_infected_fraction:g} and {worse.grade}, which follows, up to "
                f"{worse.max_infected_fraction:g}: rising numbers, the best grade first, would be right"
            )
    names = [grade.grade for grade in grades]
    if len(set(names)) < len(names) or REJECT in names:
        raise ValueError(f"each grade needs a name of its own, and {REJECT!r} is that of what no grade takes")
    return grades


Grades = Annotated[
    tuple[GradeIn, ...],
    Field(json_schema_extra={"minItems": 1, "maxItems": MOST_GRADES}),
    AfterValidator(_rising),
]
"""From the best to the worst; what no grade takes is rejected."""


def grades_of(text: str) -> list[dict[str, str | float]]:
    """Read `A:0.01,B:0.05`: names and the most that may be infected.

    Raises:
        ValueError: a part is not of that form.
    """
    grades: list[dict[str, str | float]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, most = part.rpartition(":")
        if not colon:
            raise ValueError(f"{part!r} is not a name, a colon and a number, like A:0.01")
        grades.append({"grade": name.strip(), "max_infected_fraction": float(most)})
    return grades
