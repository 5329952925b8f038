"""The commands of `kubectl`, for one context and one namespace."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

TOOL: Final = "kubectl"
_WITHIN_S: Final = 600.0


class ClusterError(Exception):
    """The cluster, or the way to it, is not as it must be; the message says what."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the cluster reports it.

    Attributes:
        name: its name.
        node: on which it is, or "".
        ready: whether it gets requests.
        going: whether it is being deleted.
        restarts: of its first container.
        last_end: why that ended last, or "".
    """

    name: str
    node: str
    ready: bool
    going: bool
    restarts: int
    last_end: str


def require_context(name: str, tool: str = TOOL) -> None:
    """Check that `kubectl` points at the cluster that was named.

    Args:
        name: of the context.
        tool: the command.

    Raises:
        ClusterError: no name was given, or `kubectl` points elsewhere.
    """
    if not name:
        raise ClusterError("name the context to use (CONTEXT=…): kubectl config get-contexts lists them")
    current = _run([tool, "config", "current-context"]).strip()
    if current != name:
        raise ClusterError(
            f"kubectl points at {current!r}, not at {name!r}, and no other cluster is touched: "
            f"kubectl config use-context {name}"
        )


class Kubectl:
    """See the module.

    Args:
        context: every command names it.
        namespace: every command names it too.
        tool: the command.
    """

    def __init__(self, context: str, namespace: str, tool: str = TOOL) -> None:
        self.context = context
        self.namespace = namespace
        self._command = [tool, "--context", context, "--namespace", namespace]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command and return what it printed.

        Raises:
            ClusterError: it failed or took too long.
        """
        return _run([*self._command, *arguments], stdin)

    def tries(self, *arguments: str) -> bool:
        """Run a command, and return whether it succeeded."""
        try:
            self.run(*arguments)
        except ClusterError:
            return False
        return True

    def get(self, *arguments: str) -> Any:
        """Return what `get` says, as JSON."""
        return json.loads(self.run("get", *arguments, "--output=json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Make objects."""
        self.run("apply", "--filename=-", stdin="\n---\n".join(map(json.dumps, objects)))

    def pods(self, role: str) -> list[Pod]:
        """Return the pods of a role."""
        return [_pod(each) for each in self.get("pods", f"--selector=app.kubernetes.io/component={role}")["items"]]

    def rolled_out(self, deployment: str) -> None:
        """Wait until a rollout is done."""
        self.run("rollout", "status", f"deployment/{deployment}", f"--timeout={_WITHIN_S:.0f}s")


def seconds_until(condition: Callable[[], bool], what: str, *, within: float = _WITHIN_S, every: float = 0.5) -> float:
    """Wait until `condition()` holds.

    Args:
        condition: tried again and again.
        what: it is waited for, for the error.
        within: most seconds.
        every: seconds between two tries.

    Returns:
        The seconds that it took.

    Raises:
        ClusterError: it took too long.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within:
            raise ClusterError(f"{what}: not within {within:.0f} s")
        time.sleep(every)
    return time.monotonic() - began


def _pod(described: dict[str, Any]) -> Pod:
    status = described.get("status", {})
    container: dict[str, Any] = next(iter(status.get("containerStatuses", [])), {})
    return Pod(
        name=described["metadata"]["name"],
        node=described["spec"].get("nodeName", ""),
        ready=any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", [])),
        going="deletionTimestamp" in described["metadata"],
        restarts=container.get("restartCount", 0),
        last_end=container.get("lastState", {}).get("terminated", {}).get("reason", ""),
    )


def _run(command: list[str], stdin: str | None = None) -> str:
    try:
        ran = subprocess.run(  # noqa: S603 (running kubectl is its purpose)
            command, input=stdin, capture_output=True, text=True, timeout=_WITHIN_S + 60, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{' '.join(command)} did not end") from error
    if ran.returncode:
        raise ClusterError(f"{' '.join(command)}: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout
