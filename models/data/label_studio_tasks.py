"""Find which image of a Label Studio task each region is on.

A task may show several images: a list of pages in one key of its data, or several keys with an Image tag each. A region
has the number of its page (`item_index`) and the name of its tag (`to_name`), but the export does not say which key a
tag shows: it is the key of the same name, or the only one that ends in the same number. What stays unclear is an error.
A key that no region of the whole export is on, such as a thumbnail, is not annotated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from models.data.image_files import ImageFolder, names_image
from models.errors import DataError

Json: TypeAlias = Mapping[str, Any]

_REGIONS: Final = frozenset({"polygon", "brush", "rectangle", "ellipse", "keypoint", "vector", "bitmask"})
_NUMBER: Final = re.compile(r"\d+$")


class AnnotatedImage(NamedTuple):
    """An image of a task, and what was drawn on it.

    Attributes:
        references: names that the image may be found by, the best first.
        results: its regions, as in the full export.
    """

    references: tuple[str, ...]
    results: tuple[Json, ...]


class _Page(NamedTuple):
    """A key of a task's data, and the place in its list; None where it is not a list."""

    key: str
    place: int | None


def tags_of(tasks: Sequence[object]) -> frozenset[str]:
    """Return the names of the Image tags that any region of an export is on."""
    return frozenset(
        str(result["to_name"])
        for task in tasks
        for annotation in _objects(task, "annotations")
        for result in _objects(annotation, "result")
        if "to_name" in result and (_has_labels(result) or result.get("type") in _REGIONS)
    )


def annotated_images(task: object, tags: frozenset[str], images: ImageFolder) -> list[AnnotatedImage]:
    """List the annotated images of a task.

    Args:
        task: task of the full export or of JSON-MIN.
        tags: see `tags_of`.
        images: the images at hand; where a task names several and only one is there, regions without a tag are on it.

    Raises:
        DataError: the task is invalid or not annotated, names no image, or does not say which one a region is on.
    """
    if not isinstance(task, Mapping):
        raise DataError("must be an object")
    results = _results(task)
    pages = _pages(task)
    upload = task.get("file_upload")
    uploaded = (upload,) if isinstance(upload, str) and names_image(upload) else ()
    if not pages and not uploaded:
        raise DataError("must name an image by a URL or path with an image ending such as .jpg")
    if len(pages) <= 1:
        return [AnnotatedImage((*uploaded, *pages.values()), tuple(results))]
    shown = _keys_of_tags(tags, tuple(dict.fromkeys(page.key for page in pages)))
    if not any(page.key in shown.values() for page in pages):
        return [_only_one(pages, uploaded, results, images)]
    on: dict[_Page, list[Json]] = {page: [] for page in pages if page.key in shown.values()}
    for result in results:
        on[_page_of(result, shown, on)].append(result)
    return [AnnotatedImage((pages[page],), tuple(drawn)) for page, drawn in on.items()]


def _pages(task: Json) -> dict[_Page, str]:
    """Return the references to images in a task's data; JSON-MIN has the keys of the data at the top."""
    data = task.get("data", task)
    pages: dict[_Page, str] = {}
    for key, value in data.items() if isinstance(data, Mapping) else ():
        if isinstance(value, str) and names_image(value) and key != "file_upload":
            pages[_Page(key, None)] = value
        elif isinstance(value, list) and value and all(isinstance(each, str) and names_image(each) for each in value):
            pages |= {_Page(key, place): each for place, each in enumerate(value)}
    return pages


def _keys_of_tags(tags: frozenset[str], keys: Sequence[str]) -> dict[str, str]:
    """Return the key of the data that each tag shows, without those tags of which it is unclear."""
    if len(keys) == 1:
        return dict.fromkeys(tags, keys[0])
    shown = {tag: tag for tag in tags if tag in keys}
    for tag in tags - shown.keys():
        of_number = [key for key in keys if key not in tags and _number(key) == _number(tag)]
        alike = [each for each in tags - set(keys) if _number(each) == _number(tag)]
        if _number(tag) is not None and len(of_number) == len(alike) == 1:
            shown[tag] = of_number[0]
    return shown


def _number(name: str) -> int | None:
    found = _NUMBER.search(name)
    return int(found[0]) if found else None


def _page_of(result: Json, shown: Mapping[str, str], pages: Mapping[_Page, object]) -> _Page:
    name = f"region {result.get('id', 'without id')}"
    key = shown.get(str(result.get("to_name")))
    of_key = [page for page in pages if page.key == key]
    if not of_key:
        raise DataError(
            f"{name} does not say which of several images it is on: its 'to_name' is {result.get('to_name')!r}, but "
            f"the images are {', '.join(dict.fromkeys(page.key for page in pages))}; name each Image tag as its key"
        )
    if of_key[0].place is None:
        return of_key[0]
    place = result.get("item_index", 0 if len(of_key) == 1 else None)
    if not isinstance(place, int) or not 0 <= place < len(of_key):
        raise DataError(f"{name} must have an 'item_index' of 0 to {len(of_key) - 1}, has {place}")
    return of_key[place]


def _only_one(
    pages: Mapping[_Page, str], uploaded: tuple[str, ...], results: Sequence[Json], images: ImageFolder
) -> AnnotatedImage:
    """Return the one image of a task that is at hand, where its regions do not say which they are on."""
    at_hand = {}
    for reference in (*uploaded, *pages.values()):
        try:
            at_hand[images.find(reference)] = reference
        except DataError:
            continue
    if len(at_hand) > 1:
        keys = ", ".join(dict.fromkeys(page.key for page in pages))
        raise DataError(
            f"names several images ({keys}), and its annotation does not say which one it is of; export as JSON, not "
            "JSON-MIN, and name each Image tag as its key"
        )
    return AnnotatedImage(tuple(at_hand.values()) or tuple(pages.values())[:1], tuple(results))


def _objects(parent: object, key: str) -> list[Json]:
    children = parent.get(key) if isinstance(parent, Mapping) else None
    return [each for each in children if isinstance(each, Mapping)] if isinstance(children, list) else []


def _results(task: Json) -> list[Json]:
    if "annotations" not in task:
        return list(_minimal_results(task))
    annotations = task["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(each, Mapping) for each in annotations):
        raise DataError("must have a list of objects as 'annotations'")
    if not annotations:
        raise DataError("is not annotated")
    kept = [each for each in annotations if not each.get("was_cancelled")]
    if not kept:
        raise DataError("was skipped by its annotator")
    chosen = next((each for each in kept if each.get("ground_truth")), None)
    # Written as ISO 8601 in one time zone, so they sort as text; of equal times the last counts.
    chosen = chosen or max(reversed(kept), key=lambda each: str(each.get("updated_at") or each.get("created_at") or ""))
    results = chosen.get("result")
    if not isinstance(results, list) or not all(isinstance(each, Mapping) for each in results):
        raise DataError("must have a list of objects as 'result' of its annotation")
    return list(_regions(results))


def _minimal_results(task: Json) -> Iterator[Json]:
    """Convert results to the form of the full export: JSON-MIN writes `value` and the size into one object."""
    if task.get("annotation_id") is None:
        raise DataError("is not annotated")
    for key, values in task.items():
        if not isinstance(values, list):
            continue
        for value in values:
            if isinstance(value, Mapping) and any(name.endswith("labels") for name in value):
                yield {**value, "type": key, "value": value}


def _regions(results: Sequence[Json]) -> Iterator[Json]:
    """Select regions with a class, without the duplicate shapes that some projects also write."""
    labelled = {each.get("id") for each in results if _has_labels(each)}
    for result in results:
        if _has_labels(result) or (result.get("type") in _REGIONS and result.get("id") not in labelled):
            yield result


def _has_labels(result: Json) -> bool:
    return str(result.get("type", "")).endswith("labels")
