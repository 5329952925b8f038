"""The script that tries the chart on a cluster, with a `kubectl` that has none."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from helm_python.chart import Chart
from helm_python.config import Config

from deploy.cluster import __main__ as script
from deploy.cluster import load, trials
from deploy.cluster.__main__ import main
from deploy.cluster.kubectl import ClusterError, Kubectl, require_context, seconds_until
from deploy.cluster.trials import TRIALS, Bench, lost
from deploy.manifests import CHART
from tests.charts import ANYBODY

CONTEXT: Final = "kind-pomona"
COUNTS: Final = {"sent": 375, "ok": 375, "refused": 0, "lost": 0, "reasons": {}}


class FakeCluster:
    """What the fake `kubectl` reads and writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tool = str(folder / "kubectl")
        script = Path(__file__).with_name("fake_kubectl.py").read_text().split("\n", 1)[1]
        Path(self.tool).write_text(f"#!{sys.executable} -IS\n{script}")
        Path(self.tool).chmod(0o755)
        self.set(context=CONTEXT, nodes=["n1", "n2"], restarts=0, counts=COUNTS)

    def set(self, **changes: Any) -> None:
        path = self.folder / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(state | changes))

    def calls(self, verb: str) -> list[list[str]]:
        lines = (self.folder / "calls").read_text().splitlines()
        called = [json.loads(line)[4:] for line in lines]
        return [each for each in called if each[:1] == [verb]]


class FakeHelm:
    """Notes what it is asked for."""

    def __init__(self, cluster: FakeCluster, asked: list[tuple[str, Mapping[str, Any]]]) -> None:
        self._cluster = cluster
        self._asked = asked

    def install(self, values: Mapping[str, Any]) -> None:
        self._asked.append(("install", values))

    def upgrade(self, values: Mapping[str, Any]) -> None:
        self._asked.append(("upgrade", values))
        self._cluster.set(split=not values.get("roles", {}).get("both", {}).get("enabled", True))

    def rollback(self) -> None:
        self._asked.append(("rollback", {}))

    def test(self) -> str:
        return "POD LOGS: pomona-test\nboth: a mask of 11075 pixels over HTTP, the same over gRPC\n"

    def uninstall(self) -> None:
        self._asked.append(("uninstall", {}))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    monkeypatch.setenv("FAKE_CLUSTER", str(tmp_path))
    monkeypatch.setattr(trials, "_SETTLED_S", 0.0)
    return FakeCluster(tmp_path)


@pytest.fixture
def asked() -> list[tuple[str, Mapping[str, Any]]]:
    return []


def run(cluster: FakeCluster, asked: list[tuple[str, Mapping[str, Any]]], context: str = CONTEXT) -> int:
    arguments = ["--context", context, "--kubectl", cluster.tool]
    return main(arguments, lambda _context, _namespace: FakeHelm(cluster, asked))


@pytest.mark.parametrize("name", ["", "prod", "kind-pomon"])
def test_a_context_that_is_not_named_is_not_touched(
    cluster: FakeCluster, asked: list[tuple[str, Mapping[str, Any]]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError):
        require_context(name, cluster.tool)
    assert run(cluster, asked, name) == 1
    assert not asked
    assert "context" in capsys.readouterr().err
    calls = (cluster.folder / "calls").read_text() if name else ""
    assert "namespace" not in calls


def test_a_kubectl_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="is not installed"):
        require_context(CONTEXT, str(tmp_path / "kubectl"))


def test_every_trial_is_in_the_table_and_nothing_is_left(
    cluster: FakeCluster, asked: list[tuple[str, Mapping[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cluster, asked) == 0
    table = capsys.readouterr().out
    for name in TRIALS:
        assert f"| {name} | " in table
    assert "FAILED" not in table
    assert "| rolling update under load | 0 of 375 requests lost |" in table
    assert "| spread after it | pods per node: 1, 1 |" in table
    assert "ended by OOMKilled" in table
    assert "| autoscaling turned on | 3 pods before, 3 after |" in table
    (made,), (removed,) = cluster.calls("create"), cluster.calls("delete")[-1:]
    assert removed[1:3] == made[1:3] == ["namespace", made[2]]
    assert made[2].startswith("pomona-test-")
    assert cluster.calls("uncordon") == [["uncordon", "n1"]]
    assert asked[-1][0] == "uninstall"
    kinds = [kind for kind, _ in asked]
    assert kinds.count("install") == 1
    split = asked[kinds.index("uninstall") - 1][1]
    assert split["service"] == {"aliases": {"pomona-both": "unet"}}


def test_a_trial_that_fails_is_told_and_the_others_are_tried(
    cluster: FakeCluster,
    asked: list[tuple[str, Mapping[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.set(fails=["drain"], left=["pomona-both"])
    tried = ("install, PodSecurity restricted", "a node drained under load", "uninstall")
    monkeypatch.setattr(script, "TRIALS", {name: TRIALS[name] for name in tried})
    assert run(cluster, asked) == 1
    table = capsys.readouterr().out
    assert "| a node drained under load | FAILED: " in table
    assert "| uninstall | FAILED: left behind: pomona-both |" in table
    assert cluster.calls("uncordon"), "the node must be opened again"
    assert cluster.calls("delete")[-1][1] == "namespace"


def test_without_an_installed_release_nothing_more_is_tried(
    cluster: FakeCluster, asked: list[tuple[str, Mapping[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.set(fails=["rollout"])
    assert run(cluster, asked) == 1
    assert capsys.readouterr().out.count("FAILED") == 1
    assert cluster.calls("delete")[-1][1] == "namespace"


def test_a_single_node_is_not_drained(cluster: FakeCluster, asked: list[tuple[str, Mapping[str, Any]]]) -> None:
    cluster.set(nodes=["n1"])
    bench = Bench(Kubectl(CONTEXT, "n", cluster.tool), FakeHelm(cluster, asked), {}, "pomona:0.1.0-cpu")
    assert trials.drain(bench) == "not tried: one node"
    assert not cluster.calls("drain")


def test_what_the_load_lost_is_told_with_its_reasons() -> None:
    counts = {"sent": 10, "ok": 6, "refused": 2, "lost": 2, "reasons": {"ConnectionResetError": 2}}
    assert lost(f"sending\n{json.dumps(counts)}\n") == "2 of 10 requests lost (2 ConnectionResetError), 2 refused"
    with pytest.raises(ClusterError, match="instead of counts"):
        lost("sending\nTraceback")


def test_waiting_ends_with_an_error() -> None:
    with pytest.raises(ClusterError, match="the pod is ready: not within 0 s"):
        seconds_until(lambda: False, "the pod is ready", within=0, every=0)


class Service(BaseHTTPRequestHandler):
    """Answers, refuses, fails and hangs up in turn."""

    protocol_version = "HTTP/1.1"
    statuses: Iterator[int] = iter(())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status = next(self.statuses, 200)
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name of the base class)
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_load_counts_what_is_answered_refused_and_lost(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_PAUSE_S", 0.0)
    Service.statuses = iter([200, 429, 503, 0, 200, 200])
    left = iter([False] * 6)
    counts = load.run(service, lambda: next(left, True), image=b"an image", callers=1)
    assert counts == {
        "sent": 6,
        "ok": 3,
        "refused": 1,
        "lost": 2,
        "reasons": {"status 503": 1, "RemoteDisconnected": 1},
    }


def test_load_keeps_connections_of_half_of_the_callers(service: str) -> None:
    for keeps in (True, False):
        caller = load.Caller(service, keeps=keeps, image=b"an image")
        assert [caller.send() for _ in range(2)] == ["ok", "ok"]
        assert (caller._connection is not None) == keeps
        caller.close()


def test_load_loses_all_where_nothing_listens() -> None:
    assert load.Caller("http://127.0.0.1:9", keeps=True, image=b"").send() == "ConnectionRefusedError"


# What Helm sees of a cluster: `lookup`, asked of a server that answers as Kubernetes' own does.


class ApiServer(BaseHTTPRequestHandler):
    """Has one Deployment and one Secret, in the namespace vision."""

    def do_GET(self) -> None:
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "pomona-both", "namespace": "vision"},
            "spec": {"replicas": 5},
        }
        resources = {
            "/api/v1": ("v1", [("configmaps", "ConfigMap"), ("secrets", "Secret")]),
            "/apis/apps/v1": ("apps/v1", [("deployments", "Deployment")]),
        }
        path = self.path.partition("?")[0]
        if path in resources:
            group, kinds = resources[path]
            listed = [{"name": name, "kind": kind, "namespaced": True, "verbs": ["get"]} for name, kind in kinds]
            self._answer(200, {"kind": "APIResourceList", "groupVersion": group, "resources": listed})
        elif path == "/apis/apps/v1/namespaces/vision/deployments/pomona-both":
            self._answer(200, deployment)
        elif path == "/api/v1/namespaces/vision/secrets/line-7":
            metadata = {"name": "line-7", "namespace": "vision"}
            self._answer(200, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"A": "MQ=="}})
        else:
            self._answer(404, {"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404})

    def _answer(self, status: int, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name of the base class)
        """Say nothing."""


@pytest.fixture
def kubeconfig() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ApiServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "fake",
                "clusters": [{"name": "fake", "cluster": {"server": address}}],
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": "vision"}}],
                "users": [{"name": "fake", "user": {}}],
            }
        )
        server.shutdown()
        thread.join()


def test_helm_looks_up_what_is_live(kubeconfig: str) -> None:
    values = {**ANYBODY, "autoscaling": {"kind": "hpa"}, "secrets": ["line-7"], "configMaps": ["none"]}
    with Config(kubeconfig_content=kubeconfig, namespace="vision") as config, Chart.load(CHART) as chart:
        rendered = config.render(chart, values, name="pomona", namespace="vision", is_upgrade=True)
    deployment = yaml.safe_load(rendered["pomona/templates/deployment.yaml"])
    assert deployment["spec"]["replicas"] == 5
    assert "checksum/objects" in deployment["spec"]["template"]["metadata"]["annotations"]
