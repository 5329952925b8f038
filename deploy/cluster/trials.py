"""What is tried on a cluster: each trial does something to a release, mostly under load, and returns figures."""

from __future__ import annotations

import base64
import collections
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from deploy.cluster.kubectl import ClusterError, Kubectl, Pod, seconds_until
from deploy.manifests import CHART

RELEASE: Final = "pomona"
ROLE: Final = "both"
DEPLOYMENT: Final = f"{RELEASE}-{ROLE}"

_LOAD: Final = "pomona-load"
_SCRIPT: Final = Path(__file__).with_name("load.py")
_SETTLED_S: Final = 3.0
"""Of load before something is done, and after."""

_SCALED: Final = 3
_OFTEN_S: Final = 0.2

_SIGNAL_WORKERS: Final = (
    "import os, pathlib, sys\n"
    "for each in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
    "    number = int(each.parent.name)\n"
    "    if number != os.getpid() and b'_bentoml_impl' in each.read_bytes():\n"
    "        os.kill(number, int(sys.argv[1]))\n"
)
_FILL_MEMORY: Final = "kept = []\nwhile True:\n    kept.append(b'x' * (64 << 20))\n"
_KILL, _STOP = "9", "19"


class Helm(Protocol):
    """What the trials need of Helm."""

    def install(self, values: Mapping[str, Any]) -> None:
        """Install the release."""

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Upgrade it."""

    def rollback(self) -> None:
        """Return to the revision before."""

    def test(self) -> str:
        """Run its tests, and return their log."""

    def uninstall(self) -> None:
        """Remove it, if it is there."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A release in a namespace of its own.

    Attributes:
        kubectl: of that namespace.
        helm: of the same.
        values: of the release.
        image: with Python, for the pod that makes load.
        rest: waits for so many seconds.
    """

    kubectl: Kubectl
    helm: Helm
    values: Mapping[str, Any]
    image: str
    rest: Callable[[float], None] = time.sleep

    def under_load(self, act: Callable[[], None]) -> str:
        """Do something while requests are sent, and say what was lost."""
        kubectl, address = self.kubectl, f"http://{DEPLOYMENT}:3000"
        kubectl.apply(*_load_objects(self.image, address))
        try:
            kubectl.run("wait", f"pod/{_LOAD}", "--for=condition=Ready", "--timeout=120s")
            seconds_until(lambda: "sending" in kubectl.run("logs", _LOAD), "the load begins", every=_OFTEN_S)
            self.rest(_SETTLED_S)
            act()
            self.rest(_SETTLED_S)
            kubectl.run("exec", _LOAD, "--", "touch", "/tmp/stop")  # noqa: S108 (the pod's)
            kubectl.run("wait", f"pod/{_LOAD}", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
            return lost(kubectl.run("logs", _LOAD))
        finally:
            kubectl.run("delete", f"pod/{_LOAD}", "--ignore-not-found", "--now")

    def one_pod(self) -> Pod:
        """Return a pod that is ready."""
        for pod in self.kubectl.pods(ROLE):
            if pod.ready and not pod.going:
                return pod
        raise ClusterError("no pod is ready")

    def back(self, before: Pod) -> float:
        """Wait until a pod that was harmed is ready again, restarted; return the seconds."""

        def restarted() -> bool:
            return any(
                pod.name == before.name and pod.ready and pod.restarts > before.restarts
                for pod in self.kubectl.pods(ROLE)
            )

        return seconds_until(restarted, f"{before.name} is ready again", every=_OFTEN_S)

    def harm(self, *command: str) -> tuple[str, float, Pod]:
        """Run a command in a pod under load; return what was lost, the seconds until it is back, and it afterwards."""
        pod, took = self.one_pod(), [0.0]

        def act() -> None:
            self.kubectl.tries("exec", pod.name, "--container=pomona", "--", *command)
            took[0] = self.back(pod)

        said = self.under_load(act)
        after = next(each for each in self.kubectl.pods(ROLE) if each.name == pod.name)
        return said, took[0], after


def install(bench: Bench) -> str:
    """Install a release into a namespace that admits restricted pods only."""
    began = time.monotonic()
    bench.helm.install(bench.values)
    bench.kubectl.rolled_out(DEPLOYMENT)
    return f"ready after {time.monotonic() - began:.0f} s"


def answers(bench: Bench) -> str:
    """Segment and inspect over HTTP and gRPC, from inside the cluster."""
    log = bench.helm.test()
    for line in log.splitlines():
        if line.startswith(f"{ROLE}: "):
            return line
    raise ClusterError(f"the test's log has no line of {ROLE}: {log}")


def rolling_update(bench: Bench) -> str:
    """Replace all pods."""

    def act() -> None:
        bench.helm.upgrade({**bench.values, "podAnnotations": {"pomona.test/round": "2"}})
        bench.kubectl.rolled_out(DEPLOYMENT)

    return bench.under_load(act)


def spread(bench: Bench) -> str:
    """Say on how many nodes the pods of the last rollout are."""
    nodes = collections.Counter(pod.node for pod in bench.kubectl.pods(ROLE) if not pod.going)
    return f"pods per node: {', '.join(str(count) for _, count in sorted(nodes.items()))}"


def rollback(bench: Bench) -> str:
    """Return to the revision before."""

    def act() -> None:
        bench.helm.rollback()
        bench.kubectl.rolled_out(DEPLOYMENT)

    return bench.under_load(act)


def delete(bench: Bench) -> str:
    """Delete one pod."""

    def act() -> None:
        bench.kubectl.run("delete", f"pod/{bench.one_pod().name}")
        bench.kubectl.rolled_out(DEPLOYMENT)

    return bench.under_load(act)


def drain(bench: Bench) -> str:
    """Drain a node of the release's pods, and open it again."""
    kubectl = bench.kubectl
    open_nodes = [
        node["metadata"]["name"] for node in kubectl.get("nodes")["items"] if not node["spec"].get("unschedulable")
    ]
    node = bench.one_pod().node
    if len(open_nodes) < 2:
        return "not tried: one node"

    def act() -> None:
        try:
            kubectl.run(
                "drain",
                node,
                "--ignore-daemonsets",
                "--delete-emptydir-data",
                f"--pod-selector=app.kubernetes.io/instance={RELEASE}",
                "--timeout=300s",
            )
        finally:
            kubectl.run("uncordon", node)
        kubectl.rolled_out(DEPLOYMENT)

    return bench.under_load(act)


def kill_worker(bench: Bench) -> str:
    """Kill the worker, as the kernel would."""
    said, took, _ = bench.harm("python", "-c", _SIGNAL_WORKERS, _KILL)
    return f"{said}; the pod is back after {took:.0f} s"


def hang(bench: Bench) -> str:
    """Stop the worker, which then answers nothing."""
    said, took, _ = bench.harm("python", "-c", _SIGNAL_WORKERS, _STOP)
    return f"{said}; the pod is back after {took:.0f} s"


def fill_memory(bench: Bench) -> str:
    """Fill a pod's memory until the kernel kills it."""
    said, took, after = bench.harm("python", "-c", _FILL_MEMORY)
    return f"{said}; ended by {after.last_end or 'nothing'}, back after {took:.0f} s"


def scale(bench: Bench) -> str:
    """Turn autoscaling on for three live pods, of which none may go."""
    kubectl = bench.kubectl
    kubectl.run("scale", f"deployment/{DEPLOYMENT}", f"--replicas={_SCALED}")
    kubectl.rolled_out(DEPLOYMENT)
    bench.helm.upgrade({**bench.values, "autoscaling": {"kind": "hpa"}})
    kept = kubectl.get("deployment", DEPLOYMENT)["spec"]["replicas"]
    bench.helm.upgrade(bench.values)
    kubectl.rolled_out(DEPLOYMENT)
    return f"{_SCALED} pods before, {kept} after"


def split(bench: Bench) -> str:
    """Replace the role by two, whose callers keep its Service."""
    roles = {
        **bench.values.get("roles", {}),
        "sam": {"enabled": True, "replicas": 1},
        "unet": {"enabled": True, "replicas": 1},
    }

    def act() -> None:
        bench.helm.upgrade({**bench.values, "roles": roles})
        for role in ("sam", "unet"):
            bench.kubectl.rolled_out(f"{RELEASE}-{role}")
        alone = {**roles, ROLE: {"enabled": False}}
        bench.helm.upgrade({**bench.values, "roles": alone, "service": {"aliases": {DEPLOYMENT: "unet"}}})
        seconds_until(lambda: not bench.kubectl.pods(ROLE), f"the pods of {ROLE} go")

    return bench.under_load(act)


def uninstall(bench: Bench) -> str:
    """Remove the release; nothing of it may be left."""
    bench.helm.uninstall()
    selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
    kinds = "deployments,replicasets,services,configmaps,serviceaccounts,networkpolicies,poddisruptionbudgets,jobs,hpa"
    left = bench.kubectl.get(kinds, selector)["items"]
    if left:
        raise ClusterError(f"left behind: {', '.join(each['metadata']['name'] for each in left)}")
    return "nothing left"


TRIALS: Final[Mapping[str, Callable[[Bench], str]]] = {
    "install, PodSecurity restricted": install,
    "masks over HTTP and gRPC": answers,
    "rolling update under load": rolling_update,
    "spread after it": spread,
    "rollback under load": rollback,
    "a pod deleted under load": delete,
    "a node drained under load": drain,
    "a worker killed (-9)": kill_worker,
    "a worker stopped (hung pod)": hang,
    "memory filled": fill_memory,
    "autoscaling turned on": scale,
    "role split in two under load": split,
    "uninstall": uninstall,
}
"""In their order: each needs the release as the one before left it."""


def lost(log: str) -> str:
    """Say what the log of the load reports.

    Raises:
        ClusterError: it has no counts.
    """
    last = (log.strip().splitlines() or [""])[-1]
    try:
        counts = json.loads(last)
        said = f"{counts['lost']} of {counts['sent']} requests lost"
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"the load reported {last!r} instead of counts") from error
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts["reasons"].items())
    refused = f", {counts['refused']} refused" if counts["refused"] else ""
    return f"{said}{f' ({reasons})' if reasons else ''}{refused}"


def _load_objects(image: str, address: str) -> tuple[dict[str, Any], dict[str, Any]]:
    example = base64.b64encode((CHART / "files" / "oranges.jpg").read_bytes()).decode()
    files = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _LOAD},
        "data": {"load.py": _SCRIPT.read_text()},
        "binaryData": {"oranges.jpg": example},
    }
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "load",
        "image": image,
        "command": ["python", "/opt/load/load.py", address, "/tmp/stop"],  # noqa: S108 (the pod's)
        "resources": {"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": security,
        "volumeMounts": [{"name": "files", "mountPath": "/opt/load"}, {"name": "scratch", "mountPath": "/tmp"}],  # noqa: S108
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _LOAD},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [{"name": "files", "configMap": {"name": _LOAD}}, {"name": "scratch", "emptyDir": {}}],
        },
    }
    return files, pod
