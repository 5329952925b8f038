"""Check a built image by running it: `python -m deploy.image.check TOOL IMAGE` (see deploy/test_image.sh)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import numpy as np
import trustme
from PIL import Image

from deploy.image.containers import LIMITS, Container, expect, run, running, seconds_until
from service.proto.generated.pomona.v1 import segmentation_pb2 as messages
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationStub
from service.settings import MISCONFIGURED

_IMAGE: Final = Path(__file__).parents[2] / "docs" / "oranges.jpg"
_FRUIT: Final = (548.0, 190.0)
_FRUIT_AREA: Final = range(40_000, 48_000)
"""Of the fruit in _IMAGE, which has about 44,300 pixels."""

_READY: Final = ("python", "-m", "service.supervise", "--check")
"""Command inside a container that succeeds once the service is ready."""


def main(tool: str, image: str) -> None:
    """Run all checks, and print what was measured as JSON.

    Raises:
        CheckFailed: a check failed.
    """
    measured: dict[str, Any] = {"image": image, "size_mib": check_contents(tool, image)}
    check_refusal(tool, image)
    with running(tool, image, "--network=none") as isolated:
        # Each try starts a Python inside the container, so the time says nothing.
        seconds_until(lambda: isolated.inside(*_READY).returncode == 0, every=2)
        check_file_system(isolated)
    with running(tool, image, "--network=host") as served:
        measured["ready_s"] = seconds_until(lambda: _status(served, "/readyz") == httpx.codes.OK)
        check_answers(served)
        measured["memory_mib"] = _memory_mib(served)
        measured["stopped_after_s"] = check_shutdown(served)
    with running(tool, image, "--network=host") as crashing:
        seconds_until(lambda: _status(crashing, "/readyz") == httpx.codes.OK)
        measured["ended_after_worker_died_s"] = check_crash(crashing)
    with tls_secret() as (folder, authority), running(tool, image, "--network=host", *_with_tls(folder)) as encrypted:
        seconds_until(lambda: encrypted.inside(*_READY).returncode == 0, every=2)
        check_tls(encrypted, authority)
    sys.stdout.write(json.dumps(measured, indent=2) + "\n")


@contextlib.contextmanager
def tls_secret() -> Iterator[tuple[Path, trustme.CA]]:
    """Make a folder like a mounted TLS secret of Kubernetes; yield it with the authority that issued it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)  # the container runs as another user
        (folder / "tls.crt").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
        yield folder, authority


def _with_tls(folder: Path) -> list[str]:
    inside = "/etc/pomona/tls"
    return [
        f"--volume={folder}:{inside}:ro",
        f"--env=POMONA_TLS_CERT_FILE={inside}/tls.crt",
        f"--env=POMONA_TLS_KEY_FILE={inside}/tls.key",
    ]


def check_contents(tool: str, image: str) -> float:
    """Check user, labels, health check and packages, and return the unpacked size in MiB."""
    (inspected,) = json.loads(run(tool, "image", "inspect", image))
    config = inspected["Config"]
    expect(
        re.fullmatch(r"[1-9]\d*(:\d+)?", config["User"]), f"the user must be numeric and not root, got {config['User']}"
    )
    labels = {name.rpartition(".")[2] for name in config["Labels"] if name.startswith("org.opencontainers.image.")}
    expect(labels >= {"title", "version", "revision", "licenses"}, f"the OCI labels must be set, got {labels}")
    expect(
        "Healthcheck" in config or "Healthcheck" in inspected or "HealthCheck" in inspected,
        "the image must have a health check",
    )
    look = (
        "import json, shutil, importlib.util as u;"
        "print(json.dumps([[t for t in ('gcc', 'g++', 'make', 'git', 'pip', 'curl') if shutil.which(t)],"
        " [m for m in ('pip', 'torch', 'torchvision', 'nncf') if u.find_spec(m)],"
        " len(json.load(open('/opt/pomona/sbom.json'))['components'])]))"
    )
    tools, modules, components = json.loads(run(tool, "run", "--rm", *LIMITS, "--entrypoint=python", image, "-c", look))
    expect(not tools, f"the image must not contain build tools, got {tools}")
    expect("pip" not in modules, "the image must not contain pip")
    expect(
        "cpu" not in image.rpartition(":")[2] or not modules, f"the cpu image must not contain PyTorch, got {modules}"
    )
    expect(components > 30, f"the SBOM must list the packages, got {components}")
    return round(float(inspected["Size"]) / 2**20, 1)


def check_refusal(tool: str, image: str) -> None:
    """Check that the image by itself refuses to serve unauthenticated callers."""
    ran = subprocess.run(  # noqa: S603 (running the image is its purpose)
        [tool, "run", "--rm", "--network=none", *LIMITS, image],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expect(ran.returncode == MISCONFIGURED, f"without keys it must end with {MISCONFIGURED}, got {ran.returncode}")
    expect("POMONA_API_KEYS_FILE" in ran.stderr, f"it must say what to set, got {ran.stderr[-500:]}")


def check_file_system(container: Container) -> None:
    """Check that only /tmp is writable."""
    write = "import pathlib, sys; pathlib.Path(sys.argv[1], 'x').write_text('')"
    for folder in ("/srv/pomona", "/opt/pomona/cache", "/"):
        expect(container.inside("python", "-c", write, folder).returncode != 0, f"{folder} must be read-only")
    expect(container.inside("python", "-c", write, "/tmp").returncode == 0, "/tmp must be writable")  # noqa: S108


def check_answers(container: Container) -> None:
    """Check masks over HTTP and gRPC, fruits, and metrics that count the requests."""
    data = _IMAGE.read_bytes()
    base = f"http://127.0.0.1:{container.http}"
    fields = {"request": json.dumps({"prompts": [{"points": [_FRUIT]}]})}
    answer = httpx.post(f"{base}/v1/segment", files={"image": data}, data=fields, timeout=60)
    expect(answer.status_code == httpx.codes.OK, answer.text)
    best = answer.json()["results"][0]["masks"][0]

    with grpc.insecure_channel(f"127.0.0.1:{container.grpc}") as channel:
        x, y = _FRUIT
        prompt = messages.Prompt(points=[messages.Point(x=x, y=y)])
        opened: Any = channel  # the stub's types know asynchronous channels only
        same: Any = SegmentationStub(opened).Segment(messages.SegmentRequest(image=data, prompts=[prompt]), timeout=60)
    over_grpc = same.results[0].masks[0]
    same_mask = over_grpc.mask.rle.counts == best["mask"]["counts"]
    expect(same_mask, "the masks over HTTP and gRPC must be equal")
    expect(best["area"] in _FRUIT_AREA, f"the fruit's area must be in {_FRUIT_AREA}, got {best['area']}")

    fruits = httpx.post(f"{base}/v1/inspect", files={"image": data}, timeout=60)
    expect(
        fruits.status_code == httpx.codes.OK and fruits.json()["fruits"],
        f"fruits must be found, got {fruits.text[:500]}",
    )

    metrics = httpx.get(f"http://127.0.0.1:{container.admin}/metrics", timeout=10).text
    answered = sum(map(float, re.findall(r'^pomona_requests_total\{.*outcome="ok".*\} (\S+)$', metrics, re.MULTILINE)))
    expect(answered >= 3, f"the metrics must count three requests, got {answered}")
    expect("pomona_model_info{" in metrics, "the metrics must name the models")


def check_tls(container: Container, authority: trustme.CA) -> None:
    """Check that both endpoints answer callers that trust the authority."""
    pem = authority.cert_pem.bytes()
    trusting = ssl.create_default_context(cadata=pem.decode())
    answer = httpx.get(f"https://localhost:{container.http}/v1/models", verify=trusting, timeout=10)
    expect(answer.status_code == httpx.codes.OK, answer.text)
    with grpc.secure_channel(f"localhost:{container.grpc}", grpc.ssl_channel_credentials(pem)) as channel:
        opened: Any = channel  # the stub's types know asynchronous channels only
        listed: Any = SegmentationStub(opened).ListModels(messages.ListModelsRequest(), timeout=10)
    expect(
        len(listed.models) == len(answer.json()["models"]), f"the models over HTTP and gRPC must be equal, got {listed}"
    )


def check_shutdown(container: Container) -> float:
    """Check that SIGTERM with a request in flight leads to its answer and exit status 0; return the seconds it took."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), np.uint8)
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"pomona-{container.http}.png"  # noqa: S108
    Image.fromarray(noise).save(file)
    prompts = [{"points": [[100 * number, 400]]} for number in range(1, 16)]
    url = f"http://127.0.0.1:{container.http}/v1/segment"
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(
            httpx.post,
            url,
            files={"image": file.read_bytes()},
            data={"request": json.dumps({"prompts": prompts})},
            timeout=60,
        )
        while not _in_flight(container):
            expect(not call.done(), "the request must take long enough to be seen in flight")
        started = time.monotonic()
        run(container.tool, "kill", "--signal=TERM", container.id)
        answer = call.result(60)
        status = container.ended(60)
        took = time.monotonic() - started
    file.unlink()
    expect(answer.status_code == httpx.codes.OK, f"the request in flight must be answered, got {answer.text[:500]}")
    expect(len(answer.json()["results"]) == len(prompts), "all its prompts must be answered")
    expect(status == 0, f"the exit status must be 0, got {status}")
    return round(took, 2)


def check_crash(container: Container) -> float:
    """Check that the container ends, and not with 0, after its worker was killed; return the seconds it took."""
    kill = (
        "import os, pathlib, signal\n"
        "for each in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    number = int(each.parent.name)\n"
        "    if number != os.getpid() and b'_bentoml_impl' in each.read_bytes():\n"
        "        os.kill(number, signal.SIGKILL)\n"
    )
    started = time.monotonic()
    expect(container.inside("python", "-c", kill).returncode == 0, "the worker must be killed")
    status = container.ended(90)
    expect(status != 0, "the exit status must not be 0")
    return round(time.monotonic() - started, 2)


def _status(container: Container, path: str) -> int | None:
    try:
        return httpx.get(f"http://127.0.0.1:{container.http}{path}", timeout=5).status_code
    except httpx.HTTPError:
        return None


def _in_flight(container: Container) -> bool:
    metrics = httpx.get(f"http://127.0.0.1:{container.http}/metrics", timeout=10).text
    lines = re.findall(r"^pomona_requests_in_progress\{(.*)\} (\S+)$", metrics, re.MULTILINE)
    return any("/v1/segment" in labels and float(value) > 0 for labels, value in lines)


def _memory_mib(container: Container) -> float:
    """Return the resident memory of all its processes; pages that they share count more than once."""
    add = (
        "import pathlib, re\n"
        "print(sum(int(found[1]) for each in pathlib.Path('/proc').glob('[0-9]*/status')\n"
        "    if (found := re.search(r'VmRSS:\\s+(\\d+)', each.read_text()))))"
    )
    return round(int(container.inside("python", "-c", add).stdout) / 1024, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
