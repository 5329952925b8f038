"""Tests of the Helm chart, rendered by Helm's own engine: `deploy/rendered`, and what Kubernetes accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from helm_python.chart import lint
from helm_python.errors import HelmError, HelmValuesError

from deploy import chart_readme
from deploy.manifests import CHART, RENDERED, notes, render, rendered, variants
from service.access import is_loopback
from service.settings import Settings, refuse_strangers
from tests.charts import environment
from tests.identity import Identity

VERSIONS: Final = ("1.35", "1.36", "1.37")
CUSTOM: Final = {
    "ServiceMonitor",
    "PrometheusRule",
    "ScaledObject",
    "HTTPRoute",
    "GRPCRoute",
    "BackendTrafficPolicy",
}
"""Kinds that operators define: Kubernetes has no schema for them."""

DERIVED: Final = {
    "http_port",
    "grpc_port",
    "admin_port",
    "tls_cert_file",
    "tls_key_file",
    "tls_client_ca_file",
    "api_keys_file",
    "allow_anonymous",
    "models",
    "models_file",
    "weights_dir",
    "cache_dir",
    "backend",
    "device",
} | {"drain_timeout_s"}
"""Settings that the chart derives from its own values."""

SECRET: Final = {"label_studio_token"}
"""Settings that belong into a Secret, which `secrets` names."""

NAMES: Final = tuple(variants())


@cache
def documents(variant: str) -> tuple[dict[str, Any], ...]:
    return tuple(yaml.load_all(rendered(variants()[variant]), Loader=yaml.CSafeLoader))


def of_kind(variant: str, kind: str) -> list[dict[str, Any]]:
    return [document for document in documents(variant) if document["kind"] == kind]


def pods(variant: str) -> Iterator[dict[str, Any]]:
    yield from (deployment["spec"]["template"]["spec"] for deployment in of_kind(variant, "Deployment"))


def server(pod: dict[str, Any]) -> dict[str, Any]:
    return next(container for container in pod["containers"] if container["name"] == "pomona")


@pytest.mark.parametrize("variant", NAMES)
def test_the_rendered_files_are_up_to_date(variant: str) -> None:
    golden = (RENDERED / f"{variant}.yaml").read_text()
    assert rendered(variants()[variant]) == golden, "run `make manifests`"


def test_every_variant_has_a_rendered_file() -> None:
    assert {path.stem for path in RENDERED.iterdir()} == set(NAMES)
    assert set(NAMES) == {"minimal", "cpu", "gpu", "mixed", "canary", "canary.next", "all"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", NAMES)
def test_kubernetes_accepts_every_field(variant: str, version: str) -> None:
    native = [document for document in documents(variant) if document["kind"] not in CUSTOM]
    assert {document["kind"] for document in native} >= {"Deployment", "Service", "ServiceAccount"}
    for document in native:
        kubernetes_validate.validate(document, version, strict=True)


def test_the_newest_known_version_of_kubernetes_is_tested() -> None:
    newest = kubernetes_validate.latest_version()
    assert newest.startswith(f"{VERSIONS[-1]}.")


def test_a_misspelt_field_is_detected() -> None:
    service = of_kind("minimal", "Service")[0]
    misspelt = {**service, "spec": {**service["spec"], "selektor": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, VERSIONS[0], strict=True)


def test_references_between_objects_resolve() -> None:
    for variant in NAMES:
        deployments = {one["metadata"]["name"]: one["spec"]["template"] for one in of_kind(variant, "Deployment")}
        services = {service["metadata"]["name"]: service for service in of_kind(variant, "Service")}
        assert deployments.keys() <= services.keys()
        for service in services.values():
            (template,) = (
                each
                for each in deployments.values()
                if service["spec"]["selector"].items() <= each["metadata"]["labels"].items()
            )
            opened = {port["name"] for port in server(template["spec"])["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= opened
        for budget in of_kind(variant, "PodDisruptionBudget"):
            template = deployments[budget["metadata"]["name"]]
            assert budget["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        for scaler in of_kind(variant, "HorizontalPodAutoscaler") + of_kind(variant, "ScaledObject"):
            assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
        for template in [*deployments.values(), *(job["spec"]["template"] for job in of_kind(variant, "Job"))]:
            volumes = {volume["name"] for volume in template["spec"]["volumes"]}
            containers = template["spec"]["containers"] + template["spec"].get("initContainers", [])
            assert {mount["name"] for each in containers for mount in each["volumeMounts"]} <= volumes
            (account,) = of_kind(variant, "ServiceAccount")
            assert template["spec"]["serviceAccountName"] == account["metadata"]["name"]


@pytest.mark.parametrize("variant", NAMES)
def test_pods_are_restricted(variant: str) -> None:
    for pod in pods(variant):
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("variant", NAMES)
def test_the_grace_period_covers_pre_stop_and_drain(variant: str) -> None:
    for pod in pods(variant):
        container = server(pod)
        waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drains = float(environment(container)["POMONA_DRAIN_TIMEOUT_S"])
        assert pod["terminationGracePeriodSeconds"] >= waits + drains + 5


@pytest.mark.parametrize("variant", NAMES)
def test_the_three_probes_differ(variant: str) -> None:
    for pod in pods(variant):
        container = server(pod)
        probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
        assert [probe["httpGet"]["path"] for probe in probes] == ["/livez", "/readyz", "/livez"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {ports[probe["httpGet"]["port"]] for probe in probes} == {
            int(environment(container)["POMONA_ADMIN_PORT"])
        }
        startup, readiness, liveness = (probe["periodSeconds"] * probe["failureThreshold"] for probe in probes)
        assert startup > liveness > readiness
        assert probes[2]["terminationGracePeriodSeconds"] < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("variant", NAMES)
def test_every_variable_is_a_valid_setting_of_the_service(variant: str, identity: Identity, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": []}')
    configs = {config["metadata"]["name"]: config.get("data", {}) for config in of_kind(variant, "ConfigMap")}
    for deployment in of_kind(variant, "Deployment"):
        container = server(deployment["spec"]["template"]["spec"])
        given = configs.get(deployment["metadata"]["name"], {}) | environment(container)
        ours = {
            name.removeprefix("POMONA_").lower(): text for name, text in given.items() if name.startswith("POMONA_")
        }
        assert ours.keys() <= Settings.model_fields.keys()
        files = {
            "tls_cert_file": identity.tls.certificate,
            "tls_key_file": identity.tls.key,
            "tls_client_ca_file": identity.authority,
            "api_keys_file": keys,
        }
        settings = Settings(**ours | {name: files[name] for name in ours.keys() & files})
        refuse_strangers(settings, settings.http_host)
        assert not is_loopback(settings.http_host)


def test_the_chart_accepts_every_setting_that_it_does_not_derive() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    taken = set(schema["$defs"]["settings"]["propertyNames"]["enum"])
    assert taken == Settings.model_fields.keys() - DERIVED - SECRET


def test_the_chart_loads_the_default_models_of_the_service() -> None:
    (pod,) = pods("minimal")
    models = environment(server(pod))["POMONA_MODELS"].split(",")
    assert tuple(models) == Settings.model_fields["models"].default


def test_a_gpu_pod_requests_one_device_on_a_gpu_node() -> None:
    (pod,) = pods("gpu")
    container = server(pod)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith("-gpu")
    assert environment(container)["POMONA_BACKEND"] == "torch"
    assert pod["runtimeClassName"] == "nvidia"
    assert "nvidia.com/gpu.present" in pod["nodeSelector"]
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]


def test_with_tls_the_certificate_is_mounted_and_named() -> None:
    for pod in pods("all"):
        container = server(pod)
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        for name in (
            "POMONA_TLS_CERT_FILE",
            "POMONA_TLS_KEY_FILE",
            "POMONA_TLS_CLIENT_CA_FILE",
            "POMONA_API_KEYS_FILE",
        ):
            assert str(PurePosixPath(environment(container)[name]).parent) in mounts
            assert not [other for other in pod.get("initContainers", []) if name in environment(other)]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "name a Secret with API keys"),
        ({"access": {"clientCaSecret": "pomona-client-ca"}}, "needs tls.secretName"),
    ],
)
def test_the_chart_does_not_leave_open_who_may_call(values: dict[str, Any], says: str) -> None:
    with pytest.raises(HelmError, match=says):
        render(values)


def test_everybody_is_let_in_where_that_is_said() -> None:
    text = render({"access": {"anonymous": True}})
    (deployment,) = (one for one in yaml.safe_load_all(text) if one["kind"] == "Deployment")
    container = server(deployment["spec"]["template"]["spec"])
    assert environment(container)["POMONA_ALLOW_ANONYMOUS"] == "true"
    assert "POMONA_API_KEYS_FILE" not in environment(container)


def test_dashboards_and_rules_are_those_of_the_observability_folder() -> None:
    source = CHART.parent / "observability"
    (rules,) = of_kind("all", "PrometheusRule")
    ours = yaml.safe_load((source / "rules.yaml").read_text())
    scope = re.compile(r'namespace="vision",job=~"[^"]*",?')
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            rule["expr"] = scope.sub("", rule["expr"]).replace("{}", "")
    assert rules["spec"] == ours
    (dashboards,) = (each for each in of_kind("all", "ConfigMap") if each["metadata"]["name"] == "pomona-dashboards")
    assert json.loads(dashboards["data"]["pomona.json"]) == json.loads((source / "dashboard.json").read_text())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"settings": {"embeding_cache_mib": 1}}, "embeding_cache_mib"),
        ({"settings": {"http_port": 80}}, "http_port"),
        ({"roles": {"sam": {"replica": 2}}}, "roles/sam"),
        ({"gateway": {"http": {"enabled": True}}}, "gateway/http/parentRefs"),
        ({"strategy": {"maxSurge": "some"}}, "strategy/maxSurge"),
        ({"image": {"digest": "latest"}}, "image/digest"),
        ({"drain": {"preStopSeconds": 0}}, "drain/preStopSeconds"),
        ({"autoscaling": {"kind": "cpu"}}, "autoscaling/kind"),
    ],
)
def test_unknown_values_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmValuesError, match=named):
        render(values)


def test_the_notes_show_how_to_reach_every_service() -> None:
    for variant in set(NAMES) - {"canary.next"}:  # of a release of another name
        printed = notes(yaml.safe_load(variants()[variant].read_text()))
        assert all(f"service/{each['metadata']['name']}" in printed for each in of_kind(variant, "Deployment"))


def test_a_packaged_chart_has_all_its_files(tmp_path: Path) -> None:
    from helm_python.chart import Chart, package

    with Chart.load(package(CHART, destination=tmp_path)) as packed:
        assert {file["name"] for file in packed.files} >= {
            "files/rules.yaml",
            "files/pomona.json",
            "files/check.py",
            "files/oranges.jpg",
            "README.md",
            "CHANGELOG.md",
        }
        assert not [file["name"] for file in packed.files if file["name"].startswith("examples/")]


def test_the_readme_of_the_chart_is_up_to_date_and_describes_every_value() -> None:
    assert chart_readme.PAGE.read_text("utf-8") == chart_readme.render(), "run `make manifests`"
    for group in chart_readme.read((CHART / "values.yaml").read_text()):
        for value in group.values:
            assert value.description, f"{value.path} has no comment in values.yaml"


def test_the_readme_reads_values_as_yaml_does() -> None:
    def flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            yield f"{above}{key}", value
            if isinstance(value, dict):
                yield from flat(value, f"{above}{key}.")

    values = dict(flat(yaml.safe_load((CHART / "values.yaml").read_text())))
    found = [value for group in chart_readme.read((CHART / "values.yaml").read_text()) for value in group.values]
    assert len({value.path for value in found}) == len(found) > 100
    for value in found:
        assert yaml.safe_load(value.default) == values[value.path]


def test_the_changelog_of_the_chart_begins_with_its_version() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    headings = re.findall(r"^## (\S+)", (CHART / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version


def test_nothing_of_the_chart_is_found_at_fault_by_helms_own_linter() -> None:
    report = lint(CHART, {"access": {"anonymous": True}}, strict=True)
    assert not report["errors"], report
    assert not [message for message in report["messages"] if message["severity"] > 1], report


GUIDE: Final = (CHART.parents[1] / "docs" / "kubernetes.md").read_text()


def test_the_documented_commands_wait_for_what_they_need() -> None:
    commands = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    (forwards,) = [each for each in commands if "port-forward" in each]
    assert "--retry-connrefused" in forwards.partition("port-forward")[2]
    applied = GUIDE.index("kubectl apply --filename deploy/rendered")
    assert "kubectl create namespace vision &&" in GUIDE[applied - 60 : applied]


def test_the_example_for_kserve_is_admitted_where_pods_must_be_restricted() -> None:
    (example,) = [
        yaml.safe_load(block)
        for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
        if "kind: InferenceService" in block
    ]
    for container in example["spec"]["predictor"]["containers"]:
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_the_examples_of_weights_in_the_guide_render() -> None:
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL) if block.startswith("weights:")]
    render({"access": {"anonymous": True}, **yaml.safe_load(example)})
