"""Shows sets of pictures to all contenders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from models.evaluation.answers import Answer
from models.evaluation.gallery import Gallery
from models.evaluation.results import Group, PictureFile, Subject
from models.evaluation.sam_subject import SamContender
from models.evaluation.shots import PictureSet, Shot
from models.evaluation.tally import Tally
from models.evaluation.unet_subject import Inspected, UNetContender


@dataclass(frozen=True, slots=True)
class Panel:
    """All contenders.

    Attributes:
        unets: a SAM's `finder` is one of them.
        sams: those to prompt.
    """

    unets: Sequence[UNetContender]
    sams: Sequence[SamContender]

    def answers(self, shot: Shot, seed: int) -> Iterator[tuple[Subject, Answer]]:
        """Ask everybody about a picture; see `SamContender.answers`.

        Raises:
            BackendError: a device failed.
        """
        found: dict[str, Inspected] = {}
        for unet in self.unets:
            inspected = unet.inspect(shot)
            found[unet.subject.name] = inspected
            yield unet.subject, inspected.answer
        for sam in self.sams:
            yield from sam.answers(shot, seed, found.get(sam.finder) if sam.finder else None)


def measure_set(panel: Panel, pictures: PictureSet, *, seed: int, progress: bool) -> tuple[Group, list[PictureFile]]:
    """Measure everybody on one set.

    Args:
        panel: the contenders.
        pictures: where these tell no fruits apart, nobody is prompted from the annotation.
        seed: of the boxes' jitter and of the bootstrap.
        progress: draw a bar on a terminal.

    Returns:
        What was measured, subjects in the order of the panel, and their best and worst pictures.

    Raises:
        DataError: a picture cannot be used any more.
        BackendError: a device failed.
    """
    tallies: dict[str, Tally] = {}
    galleries: dict[str, Gallery] = {}
    fruits = 0
    for number, shot in enumerate(
        tqdm(
            pictures, desc=pictures.title, total=len(pictures.names), unit="picture", disable=None if progress else True
        )
    ):
        asked = shot if pictures.told_apart else shot.untold()
        if number == 0:
            # The first calls of a model compile, and allocate: they are not timed.
            for _ in panel.answers(asked, seed):
                pass
        fruits += len(asked.sample.instances)
        for subject, answer in panel.answers(asked, seed):
            iou = tallies.setdefault(subject.name, Tally(subject)).add(asked.sample, answer)
            galleries.setdefault(subject.name, Gallery()).offer(asked.sample, answer, iou)
    group = Group(
        name=pictures.name,
        title=pictures.title,
        description=pictures.description,
        pictures=len(pictures.names),
        fruits=fruits,
        measured=tuple(tally.measured(seed) for tally in tallies.values()),
    )
    return group, [file for name, each in galleries.items() for file in each.files(pictures.name, name)]
