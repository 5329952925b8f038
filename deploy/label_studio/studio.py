"""A Label Studio of its own for a trial: started on SQLite in a new folder, and used over its API."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

_READY_WITHIN_S: Final = 300
_EMAIL: Final = "annotator@example.com"


class TrialFailed(Exception):
    """Something is not as it must be."""


class Studio:
    """A running Label Studio, as its first user.

    Args:
        url: of its first page.
        password: of the user.

    Attributes:
        client: has the user's session.
        token: personal access token, for Pomona.
    """

    def __init__(self, url: str, password: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, follow_redirects=True, timeout=120)
        self.client.get("/user/login/").raise_for_status()
        form = {"email": _EMAIL, "password": password, "csrfmiddlewaretoken": self.client.cookies["csrftoken"]}
        self.client.post("/user/login/", data=form, headers={"referer": url}).raise_for_status()
        self.token: str = self.post("/api/token/")["token"]

    def post(self, path: str, json: Any = None, **options: Any) -> Any:
        """Send JSON as the page does, and return the answer's.

        Raises:
            TrialFailed: the answer is an error.
        """
        headers = {"x-csrftoken": self.client.cookies["csrftoken"], "referer": self.url}
        return _answered(self.client.post(path, json=json, headers=headers, **options))

    def get(self, path: str, **query: str | int) -> Any:
        """Return the JSON at a path.

        Raises:
            TrialFailed: the answer is an error.
        """
        return _answered(self.client.get(path, params=query))

    def cookies(self) -> list[dict[str, str]]:
        """Return the session's cookies, for a browser."""
        return [{"name": name, "value": value, "url": self.url} for name, value in self.client.cookies.items()]

    def new_project(self, title: str, config: str, *, predictions: bool = True) -> int:
        """Make a project, and return its id.

        Args:
            title: of the project.
            config: the labelling configuration.
            predictions: whether tasks are shown with what a model predicts for them.
        """
        options = {"show_collab_predictions": predictions, "evaluate_predictions_automatically": predictions}
        return int(self.post("/api/projects/", {"title": title, "label_config": config, **options})["id"])

    def upload(self, project: int, image: Path) -> None:
        """Import an image into a project as a task."""
        self.post(f"/api/projects/{project}/import", files={"file": (image.name, image.read_bytes())})

    def tasks(self, project: int) -> list[Any]:
        """Return the tasks of a project, with annotations and predictions."""
        listed: list[Any] = self.get("/api/tasks/", project=project, fields="all")["tasks"]
        return listed

    def connect(self, project: int, url: str, *, password: str | None = None) -> int:
        """Connect a model to a project, and return its id.

        Raises:
            TrialFailed: Label Studio says that it is not connected.
        """
        access = {} if password is None else {"auth_method": "BASIC_AUTH", "basic_auth_user": "pomona"}
        model = {"url": url, "project": project, "title": "Pomona", "is_interactive": True, **access}
        if password is not None:
            model["basic_auth_pass"] = password
        made = self.post("/api/ml/", model)
        state = self.get("/api/ml/", project=project)[0]
        if state["state"] != "CO":
            raise TrialFailed(f"Label Studio is not connected to {url}: {state}")
        return int(made["id"])

    def predict(self, project: int) -> None:
        """Ask for predictions for all tasks of a project, as its menu of actions does."""
        everything = {"selectedItems": {"all": True, "excluded": []}}
        self.post("/api/dm/actions/", everything, params={"id": "retrieve_tasks_predictions", "project": project})


@contextlib.contextmanager
def running_studio(program: Path, folder: Path, port: int) -> Iterator[Studio]:
    """Start a Label Studio, and end it at the end.

    Args:
        program: `label-studio` of the environment it is installed in.
        folder: for its database and files, and for what it prints.
        port: on this machine.

    Raises:
        TrialFailed: it ends, or is not ready in time.
    """
    password, url = secrets.token_urlsafe(16), f"http://127.0.0.1:{port}"
    data = folder / "label-studio"
    data.mkdir()
    output = folder / "label-studio.txt"
    with output.open("wb") as printed:
        process = subprocess.Popen(  # noqa: S603 (the program that make installed)
            [program, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **_environment(data, password, url)},
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + _READY_WITHIN_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > until:
                raise TrialFailed(f"Label Studio is not ready:\n{output.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)
        yield Studio(url, password)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _environment(data: Path, password: str, url: str) -> Mapping[str, str]:
    return {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_USERNAME": _EMAIL,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_HOST": url,
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LATEST_VERSION_CHECK": "false",
    }


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _answered(response: httpx.Response) -> Any:
    if response.is_error:
        raise TrialFailed(f"{response.request.url} answered {response.status_code}: {response.text[:1000]}")
    return response.json() if response.content else None
