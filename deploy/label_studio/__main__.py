"""Try Pomona with the real Label Studio: `make try-label-studio`.

Starts both, connects them, has whole images annotated and a click answered, exports, and reads the export back as
training data with the areas that Pomona said. With `--browser`, a click is also made in Chromium.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import httpx
import numpy as np

from deploy.label_studio.browser import annotate_in_browser
from deploy.label_studio.studio import Studio, TrialFailed, running_studio
from loadtest.server import free_port, running
from models.data.brush import decode_brush
from models.data.sources import open_dataset
from models.masks import Rle, decode_rle
from models.types import PixelClass, Size
from service.access import new_key
from service.keys import add

ROOT: Final = Path(__file__).parents[2]
CONFIG: Final = Path(__file__).with_name("config.xml")
_CLICK: Final = {"x": 36.5, "y": 58.0}
"""In percent of the image: on a fruit of docs/frame.jpg."""


def main(arguments: Sequence[str]) -> int:
    """Run the trial, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.label_studio", description=__doc__)
    parser.add_argument("--label-studio", type=Path, required=True, help="the program label-studio")
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "frame.jpg", help="to annotate")
    parser.add_argument("--browser", type=Path, help="folder for screenshots: also click in Chromium")
    parser.add_argument("--keep", action="store_true", help="leave both running until Enter is pressed")
    given = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        key, text = new_key("label-studio", ("infer",))
        add(folder / "keys.json", key)
        studio = stack.enter_context(running_studio(given.label_studio, folder, free_port()))
        _say(f"Label Studio answers at {studio.url}")
        settings = {"api_keys_file": str(folder / "keys.json"), "grpc_port": "0"}
        pomona = stack.enter_context(
            running(folder, label_studio_url=studio.url, label_studio_token=studio.token, **settings)
        )
        _say(f"Pomona answers at {pomona.address}")
        try:
            project, model = _connect(studio, f"{pomona.address}/label-studio", text, given.image)
            answer = _ask(pomona.address, text, given.image)
            predicted = _check_prediction(studio, project, answer)
            clicked = _check_click(studio, project, model)
            _check_export(studio, project, predicted, answer, given.image, folder / "export")
            if given.browser is not None:
                clicks = studio.new_project("Oranges by clicks", CONFIG.read_text(), predictions=False)
                studio.upload(clicks, given.image)
                studio.connect(clicks, f"{pomona.address}/label-studio", password=text)
                annotate_in_browser(studio, clicks, project, _CLICK, given.browser)
                _say(f"In Chromium a click gave a mask, which was accepted and submitted; see {given.browser}")
        except TrialFailed as error:
            sys.stderr.write(f"{error}\n{pomona.log()[-4000:]}\n")
            return 1
        _say(f"A click gave a mask of {clicked} pixels. All is as it must be.")
        if given.keep:
            input(f"{studio.url}/projects/{project}/data: press Enter to end ")
    return 0


def _connect(studio: Studio, url: str, key: str, image: Path) -> tuple[int, int]:
    project = studio.new_project("Oranges", CONFIG.read_text())
    studio.upload(project, image)
    model = studio.connect(project, url, password=key)
    _say(f"Project {project} is connected to {url}")
    return project, model


def _ask(address: str, key: str, image: Path) -> Any:
    """Return what Pomona itself says about the image."""
    answer = httpx.post(
        f"{address}/v1/inspect",
        content=image.read_bytes(),
        headers={"content-type": "image/jpeg", "authorization": f"Bearer {key}"},
        timeout=60,
    )
    return answer.raise_for_status().json()


def _check_prediction(studio: Studio, project: int, answer: Any) -> Any:
    """Have the whole image annotated, and return the prediction; it must have the areas that Pomona said."""
    studio.predict(project)
    (task,) = studio.tasks(project)
    prediction = studio.get("/api/predictions/", task=task["id"])[0]
    size = Size(answer["image"]["height"], answer["image"]["width"])
    areas = [
        (result["value"]["brushlabels"][0], _area(result, size))
        for result in prediction["result"]
        if result["type"] == "brushlabels"
    ]
    said = []
    for fruit in answer["fruits"]:
        said.append(("Healthy", fruit["area"]))
        if infected := _rle_area(fruit["infected_mask"]):
            said.append(("Infected", infected))
    if areas != said:
        raise TrialFailed(f"The prediction has the areas {areas}, Pomona said {said}.")
    _say(f"The prediction by {prediction['model_version']} has {len(areas)} regions with the areas that Pomona said")
    return prediction


def _check_click(studio: Studio, project: int, model: int) -> int:
    """Click as the page does, and return the area of the mask."""
    (task,) = studio.tasks(project)
    click = {
        "id": "click-1",
        "type": "keypointlabels",
        "from_name": "click",
        "to_name": "image",
        "is_positive": True,
        "value": {**_CLICK, "width": 0.5, "keypointlabels": ["Healthy"]},
    }
    answer = studio.post(
        f"/api/ml/{model}/interactive-annotating", {"task": task["id"], "context": {"result": [click]}}
    )
    if "data" not in answer:
        raise TrialFailed(f"The click was not answered: {answer}")
    (region,) = answer["data"]["result"]
    size = Size(region["original_height"], region["original_width"])
    mask = decode_brush(bytes(region["value"]["rle"]), size) > 127
    x, y = round(_CLICK["x"] * size.width / 100), round(_CLICK["y"] * size.height / 100)
    if not mask[y, x]:
        raise TrialFailed("The mask of the click does not contain the click.")
    return int(np.count_nonzero(mask))


def _check_export(studio: Studio, project: int, prediction: Any, answer: Any, image: Path, folder: Path) -> None:
    """Accept the prediction as an annotator does, export the project, and read it as training data."""
    (task,) = studio.tasks(project)
    studio.post(f"/api/tasks/{task['id']}/annotations/", {"result": prediction["result"]})
    exported = studio.get(f"/api/projects/{project}/export", exportType="JSON")
    (folder / "images").mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(exported))
    (folder / "images" / image.name).write_bytes(image.read_bytes())
    dataset = open_dataset(folder)
    if dataset.problems or len(dataset.items) != 1:
        raise TrialFailed(f"The export does not read back: {dataset.problems}")
    sample = dataset.load(next(iter(dataset.items)))
    if sample.instance_map is None:
        raise TrialFailed("The export does not tell fruits apart.")
    rotten = sample.semantic == PixelClass.INFECTED
    masks = [sample.instance_map == each.id for each in sample.instances]
    read = sorted((int(mask.sum()), int((mask & rotten).sum())) for mask in masks)
    said = sorted((fruit["area"], _rle_area(fruit["infected_mask"])) for fruit in answer["fruits"])
    if read != said:
        raise TrialFailed(f"The export has fruits with the areas {read}, Pomona said {said}.")
    _say(f"The export reads back as training data: {len(read)} fruits, {int(rotten.sum())} infected pixels")


def _area(result: Any, size: Size) -> int:
    return int(np.count_nonzero(decode_brush(bytes(result["value"]["rle"]), size) > 127))


def _rle_area(mask: Any) -> int:
    return int(np.count_nonzero(decode_rle(Rle((mask["size"][0], mask["size"][1]), mask["counts"]))))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
