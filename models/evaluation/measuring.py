"""Shows sets of images to all candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from models.evaluation.answers import Answer
from models.evaluation.gallery import Gallery
from models.evaluation.results import Group, ImageFile, Subject
from models.evaluation.sam_subject import SamCandidate
from models.evaluation.shots import ImageSet, Shot
from models.evaluation.tally import Tally
from models.evaluation.unet_subject import Inspected, UNetCandidate


@dataclass(frozen=True, slots=True)
class Panel:
    """All candidates.

    Attributes:
        unets: a SAM's `finder` is one of them.
        sams: those to prompt.
    """

    unets: Sequence[UNetCandidate]
    sams: Sequence[SamCandidate]

    def answers(self, shot: Shot, seed: int) -> Iterator[tuple[Subject, Answer]]:
        """Ask everybody about an image; see `SamCandidate.answers`.

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


def measure_set(panel: Panel, images: ImageSet, *, seed: int, progress: bool) -> tuple[Group, list[ImageFile]]:
    """Measure everybody on one set.

    Args:
        panel: the candidates.
        images: where these tell no fruits apart, nobody is prompted from the annotation.
        seed: of the boxes' jitter and of the bootstrap.
        progress: draw a bar on a terminal.

    Returns:
        What was measured, subjects in the order of the panel, and their best and worst images.

    Raises:
        DataError: an image cannot be used any more.
        BackendError: a device failed.
    """
    tallies: dict[str, Tally] = {}
    galleries: dict[str, Gallery] = {}
    fruits = 0
    for number, shot in enumerate(
        tqdm(images, desc=images.title, total=len(images.names), unit="image", disable=None if progress else True)
    ):
        asked = shot if images.told_apart else shot.untold()
        if number == 0:
            # The first calls of a model compile, and allocate: they are not timed.
            for _ in panel.answers(asked, seed):
                pass
        fruits += len(asked.sample.instances)
        for subject, answer in panel.answers(asked, seed):
            iou = tallies.setdefault(subject.name, Tally(subject)).add(asked.sample, answer)
            galleries.setdefault(subject.name, Gallery()).offer(asked.sample, answer, iou)
    group = Group(
        name=images.name,
        title=images.title,
        description=images.description,
        images=len(images.names),
        fruits=fruits,
        measured=tuple(tally.measured(seed) for tally in tallies.values()),
    )
    return group, [file for name, each in galleries.items() for file in each.files(images.name, name)]
