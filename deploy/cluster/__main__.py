"""Try the chart on a real cluster: `make kind-test CONTEXT=kind-pomona`.

It works on the cluster that `kubectl` points at, and only if that context is named. All happens in a namespace of its
own, which is deleted at the end, whatever happened; a node that is drained is opened again. Helm is a library here.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from helm_python.chart import Chart
from helm_python.config import Config
from helm_python.errors import HelmError

from deploy.cluster.kubectl import ClusterError, Kubectl, require_context
from deploy.cluster.trials import DEPLOYMENT, RELEASE, TRIALS, Bench, Helm
from deploy.manifests import CHART

_WITHIN_S: Final = 600


class HelmRelease:
    """The release, by Helm's library.

    Args:
        context: of kubectl.
        namespace: of the release.
    """

    def __init__(self, context: str, namespace: str) -> None:
        self._config = Config(kube_context=context, namespace=namespace)
        self._chart = Chart.load(CHART)
        self._namespace = namespace

    def install(self, values: Mapping[str, Any]) -> None:
        """Install the release."""
        self._config.install(self._chart, RELEASE, dict(values), namespace=self._namespace, timeout=_WITHIN_S)

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Upgrade it."""
        self._config.upgrade(
            self._chart, RELEASE, dict(values), namespace=self._namespace, timeout=_WITHIN_S, reset_values=True
        )

    def rollback(self) -> None:
        """Return to the revision before."""
        self._config.rollback(RELEASE, timeout=_WITHIN_S)

    def test(self) -> str:
        """Run its tests, and return their log."""
        return str(self._config.test(RELEASE, timeout=_WITHIN_S, logs=True)["logs"])

    def uninstall(self) -> None:
        """Remove it, if it is there."""
        self._config.uninstall(RELEASE, ignore_not_found=True, timeout=_WITHIN_S)


@contextlib.contextmanager
def own_namespace(kubectl: Kubectl, helm: Helm) -> Iterator[None]:
    """Make the namespace, which admits restricted pods only; at the end nothing is left of it."""
    kubectl.run("create", "namespace", kubectl.namespace)
    try:
        kubectl.run("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=restricted")
        yield
    finally:
        with contextlib.suppress(HelmError, ClusterError):
            helm.uninstall()
        kubectl.run("delete", "namespace", kubectl.namespace, "--wait")


def try_all(bench: Bench, report: Callable[[str, str], None]) -> int:
    """Run all trials.

    Args:
        bench: of the release.
        report: takes each trial and what it showed.

    Returns:
        How many failed.
    """
    failed = 0
    for number, (name, trial) in enumerate(TRIALS.items()):
        try:
            shown = trial(bench)
        except (ClusterError, HelmError) as error:
            failed += 1
            shown = f"FAILED: {error}"
        report(name, shown)
        if failed and not number:
            break  # nothing is installed
    return failed


def main(arguments: Sequence[str], helm: Callable[[str, str], Helm] = HelmRelease) -> int:
    """Try everything, and print a table; return 0 where nothing failed.

    Args:
        arguments: of the command line.
        helm: makes the release of a context and a namespace.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.cluster", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--context", required=True, help="of kubectl; refused unless it is the current one")
    parser.add_argument("--repository", default="pomona", help="the image's, which the nodes must have or can pull")
    parser.add_argument("--tag", default="0.1.0-cpu", help="of the image")
    parser.add_argument("--values", type=Path, help="further values of the chart, such as smaller resources")
    parser.add_argument("--kubectl", default="kubectl", help="the command")
    options = parser.parse_args(arguments)
    values: dict[str, Any] = {
        "image": {"repository": options.repository, "tag": options.tag},
        "access": {"anonymous": True},
        **(yaml.safe_load(options.values.read_text()) if options.values else {}),
    }
    try:
        require_context(options.context, options.kubectl)
        namespace = f"pomona-test-{secrets.token_hex(3)}"
        kubectl, release = Kubectl(options.context, namespace, options.kubectl), helm(options.context, namespace)
        with own_namespace(kubectl, release):
            sys.stdout.write(f"| {DEPLOYMENT} in {namespace} | |\n|---|---|\n")
            bench = Bench(kubectl, release, values, f"{options.repository}:{options.tag}")
            return 1 if try_all(bench, _print_row) else 0
    except ClusterError as error:
        sys.stderr.write(f"kind-test: {error}\n")
        return 1


def _print_row(name: str, shown: str) -> None:
    sys.stdout.write(f"| {name} | {' '.join(shown.split())} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
