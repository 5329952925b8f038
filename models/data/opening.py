"""Opens annotated images of any kind that is read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.data.coco import open_coco
from models.data.dataset import ClassMap, Dataset
from models.data.folders import open_folders
from models.data.image_files import ImageFolder
from models.data.label_studio import open_label_studio
from models.data.splits import SPLIT_FILE
from models.errors import DataError

_READ = (
    "A folder with images/ and masks/, Label Studio's JSON export or COCO's instances JSON is read; for a JSON file, "
    "the images lie beside it or in a folder that is named."
)


def open_dataset(path: Path, *, classes: ClassMap | None = None, images: Path | None = None) -> Dataset:
    """Recognise annotated images and list them; nothing is decoded yet.

    Args:
        path: a folder with `masks`, a JSON file of Label Studio or COCO, or a folder with one such file.
        classes: what the annotations' classes mean; the study's Healthy and Infected, 1 and 2, if not given.
        images: the folder of images, if they are not beside the annotations: in `images` for masks, in or below
            the JSON file's folder otherwise.

    Returns:
        The set; what is wrong with single images is in its `problems`, or is found by its `check`.

    Raises:
        DataError: nothing that is read here, or nothing in it.
    """
    classes = classes or ClassMap()
    dataset = _open(path, classes, images)
    if not dataset.items and not dataset.problems:
        raise DataError(f"{path}: there are no images in it.")
    return dataset


def _open(path: Path, classes: ClassMap, images: Path | None) -> Dataset:
    if (path / "masks").is_dir():
        folder = images or path / "images"
        if not folder.is_dir():
            raise DataError(f"{path}: there is 'masks', but no folder {folder} of images.")
        return open_folders(path, folder, classes)
    file = _annotation_file(path)
    content = _json_of(file)
    folder = images or file.parent
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder of images.")
    if isinstance(content, list):
        return open_label_studio(file, content, ImageFolder(folder), classes)
    if isinstance(content, Mapping) and {"images", "annotations"} <= content.keys():
        return open_coco(file, content, ImageFolder(folder), classes)
    raise DataError(
        f"{file}: is JSON of neither Label Studio (a list of tasks) nor COCO (images, annotations). {_READ}"
    )


def _annotation_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder. {_READ}")
    found = sorted(each for each in path.glob("*.json") if each.name != SPLIT_FILE)
    if len(found) != 1:
        names = ", ".join(each.name for each in found) or "none"
        raise DataError(f"{path}: has no folder 'masks' and not exactly one JSON file ({names}). {_READ}")
    return found[0]


def _json_of(file: Path) -> object:
    try:
        content: object = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no valid JSON: {error}. {_READ}") from error
    return content
