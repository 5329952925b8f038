"""What the chart makes of values: each test is something that a real cluster, or who runs one, asks for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from helm_python.errors import HelmError

from deploy.manifests import CHART, notes, render
from service.settings import Settings
from tests.charts import ANYBODY, LiveChart, Object, Rendered, chart, environment

HPA = {"autoscaling": {"kind": "hpa"}}
GPU = {"gpu": {"enabled": True}}
SPLIT = {"sam": {"enabled": True}, "unet": {"enabled": True}}


@pytest.fixture
def live_chart(tmp_path: Path) -> LiveChart:
    return LiveChart(tmp_path)


def deployment(replicas: int, name: str = "pomona-both") -> Object:
    return {"kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas}}


def refuses(values: dict[str, Any]) -> str:
    with pytest.raises(HelmError) as refused:
        chart(values)
    return str(refused.value)


# How many pods.


def test_a_fresh_release_that_scales_begins_with_the_least_number_of_pods() -> None:
    assert chart(HPA).one("Deployment")["spec"]["replicas"] == 2
    assert chart({"autoscaling": {"kind": "keda"}}).one("Deployment")["spec"]["replicas"] == 2


@pytest.mark.parametrize(("live", "kept"), [(1, 2), (2, 2), (3, 3), (7, 7)])
def test_turning_autoscaling_on_keeps_the_pods_that_are_live(live_chart: LiveChart, live: int, kept: int) -> None:
    assert live_chart(HPA, deployment(live)).one("Deployment")["spec"]["replicas"] == kept


def test_without_autoscaling_the_values_decide_how_many_pods_there_are(live_chart: LiveChart) -> None:
    assert live_chart({}, deployment(7)).one("Deployment")["spec"]["replicas"] == 2


def test_where_nothing_live_is_seen_replicas_can_be_left_out() -> None:
    values = {"autoscaling": {"kind": "hpa", "setReplicas": False}}
    assert "replicas" not in chart(values).one("Deployment")["spec"]
    assert chart({"autoscaling": {"setReplicas": False}}).one("Deployment")["spec"]["replicas"] == 2


def test_the_chart_asks_the_cluster_by_kind_and_name_of_its_deployment() -> None:
    live = (CHART / "templates" / "_live.tpl").read_text()
    assert "lookup .apiVersion .kind .root.Release.Namespace .name" in live
    assert chart(HPA, release="line").one("Deployment", "line-pomona-both")


def test_fewer_pods_at_most_than_at_least_are_refused() -> None:
    assert "maxReplicas must be at least minReplicas" in refuses({"roles": {"both": {"maxReplicas": 1}}})


# Rollouts.


def test_pods_are_spread_among_those_of_their_own_rollout() -> None:
    spread = chart().pod()["topologySpreadConstraints"]
    assert [each["matchLabelKeys"] for each in spread] == [["pod-template-hash"]] * 2
    labels = chart().one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert all(each["labelSelector"]["matchLabels"].items() <= labels.items() for each in spread)


@pytest.mark.parametrize(
    ("values", "surge", "unavailable"),
    [
        ({}, 1, 0),
        (GPU, 0, 1),
        ({"strategy": {"maxSurge": "25%"}}, "25%", 0),
        ({**GPU, "strategy": {"maxSurge": 1, "maxUnavailable": 0}}, 1, 0),
    ],
)
def test_a_rollout_asks_for_one_more_pod_unless_it_may_need_one_more_card(
    values: dict[str, Any], surge: int | str, unavailable: int | str
) -> None:
    rolling = chart(values).one("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_a_rollout_that_could_never_change_a_pod_is_refused() -> None:
    assert "must not both be 0" in refuses({"strategy": {"maxSurge": 0}})


def test_pods_outlive_a_new_version_of_the_chart() -> None:
    rendered = chart().one("Deployment")
    pod, own = rendered["spec"]["template"]["metadata"], rendered["metadata"]["labels"]
    changes = {"helm.sh/chart", "app.kubernetes.io/version"}
    assert changes <= own.keys()
    assert not changes & pod["labels"].keys()
    assert rendered["spec"]["selector"]["matchLabels"].items() <= pod["labels"].items()


def config_map(**data: str) -> Object:
    return {"kind": "ConfigMap", "metadata": {"name": "line-7", "resourceVersion": "1"}, "data": data}


def secret(**data: str) -> Object:
    return {"kind": "Secret", "metadata": {"name": "line-7-secrets"}, "data": data}


def start_annotations(rendered: Rendered) -> dict[str, str]:
    found: dict[str, str] = rendered.one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    return found


def test_changed_config_maps_and_secrets_start_new_pods(live_chart: LiveChart) -> None:
    values = {"configMaps": ["line-7"], "secrets": ["line-7-secrets"]}
    before = start_annotations(live_chart(values, config_map(A="1"), secret(B="1")))
    renamed = {**config_map(A="1"), "metadata": {"name": "line-7", "resourceVersion": "2"}}
    assert start_annotations(live_chart(values, renamed, secret(B="1"))) == before
    assert start_annotations(live_chart(values, config_map(A="2"), secret(B="1"))) != before
    assert start_annotations(live_chart(values, config_map(A="1"), secret(B="2"))) != before
    assert "checksum/objects" not in start_annotations(chart(values)), "nothing is seen without a cluster"


def test_a_changed_file_of_models_starts_new_pods(live_chart: LiveChart) -> None:
    weights = {"source": "init", "initImage": "pomona:gpu", "modelsFile": {"configMap": "line-7"}}
    one, two = (start_annotations(live_chart({"weights": weights}, config_map(models=text))) for text in ("1", "2"))
    assert one != two


def test_renewed_certificates_and_keys_start_no_new_pods_as_they_are_read_again(live_chart: LiveChart) -> None:
    values = {"tls": {"secretName": "line-7-secrets"}, "access": {"keysSecret": "line-7-secrets"}}
    assert start_annotations(live_chart(values, secret(x="1"))) == start_annotations(live_chart(values, secret(x="2")))


# Devices.


def test_pods_with_gpus_do_not_start_without_and_others_use_none() -> None:
    assert environment(chart(GPU).server())["POMONA_DEVICE"] == "cuda"
    assert environment(chart().server())["POMONA_DEVICE"] == "cpu"


def test_one_release_has_gpus_for_one_role_and_cpus_for_another() -> None:
    sam = {"enabled": True, "gpu": {"enabled": True}, "nodeSelector": {"zone": "hall-2"}}
    rendered = chart({"roles": {"both": {"enabled": False}, "sam": sam, "unet": {"enabled": True}}})
    on_gpu, on_cpu = rendered.server("pomona-sam"), rendered.server("pomona-unet")
    assert on_gpu["image"] == "pomona:0.1.0-gpu"
    assert on_cpu["image"] == "pomona:0.1.0-cpu"
    assert on_gpu["resources"]["limits"] == {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": 1}
    assert "nvidia.com/gpu" not in on_cpu["resources"]["limits"]
    assert rendered.pod("pomona-sam")["nodeSelector"] == {"nvidia.com/gpu.present": "true", "zone": "hall-2"}
    assert "nodeSelector" not in rendered.pod("pomona-unet")


def test_a_role_may_be_without_the_gpus_of_the_others() -> None:
    roles = {"both": {"enabled": False}, "sam": {"enabled": True}, "unet": {"enabled": True, "gpu": {"enabled": False}}}
    rendered = chart({**GPU, "roles": roles})
    assert environment(rendered.server("pomona-sam"))["POMONA_BACKEND"] == "torch"
    assert environment(rendered.server("pomona-unet"))["POMONA_BACKEND"] == "openvino"


# Roles.


def test_roles_have_names_of_their_own_and_override_what_the_release_sets() -> None:
    own = {
        "models": ["unet-mobilenetv2-citrus"],
        "settings": {"max_upload_mib": 4},
        "resources": {"limits": {"cpu": "4"}},
        "podLabels": {"line": "7"},
    }
    rendered = chart({"roles": {"line-7": own}, "settings": {"log_level": "WARNING", "max_upload_mib": 8}})
    assert rendered.all("Deployment").keys() == {"pomona-both", "pomona-line-7"}
    assert rendered.one("Deployment", "pomona-line-7")["spec"]["replicas"] == 2
    assert rendered.one("ConfigMap", "pomona-line-7")["data"] == {
        "POMONA_LOG_LEVEL": "WARNING",
        "POMONA_MAX_UPLOAD_MIB": "4",
    }
    assert rendered.one("ConfigMap", "pomona-both")["data"]["POMONA_MAX_UPLOAD_MIB"] == "8"
    assert rendered.one("Deployment", "pomona-line-7")["spec"]["template"]["metadata"]["labels"]["line"] == "7"


def test_a_role_may_have_an_image_of_its_own() -> None:
    own = {"repository": "other", "digest": f"sha256:{'0' * 64}", "pullPolicy": "Always", "pullSecrets": ["own"]}
    rendered = chart({"roles": {"both": {"image": own}}, "weights": {"source": "init", "initImage": "pomona:gpu"}})
    assert rendered.server()["image"] == f"other@sha256:{'0' * 64}"
    containers = rendered.pod()["containers"] + rendered.pod()["initContainers"]
    assert {each["imagePullPolicy"] for each in containers} == {"Always"}
    assert rendered.pod()["imagePullSecrets"] == [{"name": "own"}]


def test_a_roles_resources_keep_what_they_do_not_name() -> None:
    rendered = chart({"roles": {"both": {"resources": {"limits": {"cpu": "4"}, "requests": {"cpu": "4"}}}}})
    assert rendered.server()["resources"] == {
        "limits": {"cpu": "4", "memory": "3Gi"},
        "requests": {"cpu": "4", "memory": "2Gi", "ephemeral-storage": "256Mi"},
    }


def test_a_release_without_roles_is_refused() -> None:
    assert "enable at least one" in refuses({"roles": {"both": {"enabled": False}}})


def test_a_role_without_models_is_refused() -> None:
    assert "roles.line-7.models" in refuses({"roles": {"line-7": {}}})


@pytest.mark.parametrize("name", ["Line", "line_7", "7", "a" * 21, "test", "prepare"])
def test_a_role_that_could_not_be_named_so_is_refused(name: str) -> None:
    assert name in refuses({"roles": {name: {"models": ["mobile-sam"]}}})


@pytest.mark.parametrize("release", ["pomona", "a-rather-long-name-of-a-release-in-hall-twelve-of", "l" * 53])
@pytest.mark.parametrize("role", ["both", "a-role-with-20-chars"])
def test_names_are_short_enough_for_the_names_of_pods(release: str, role: str) -> None:
    rendered = chart({"roles": {role: {"models": ["mobile-sam"]}}, "autoscaling": {"kind": "keda"}}, release=release)
    name = next(name for name in rendered.all("Deployment") if name.endswith(f"-{role}"))
    assert len(name) <= 46
    # What Kubernetes makes of it: the ReplicaSet's hash, and 58 characters at most before the pod's own five.
    pod = f"{name}-5d8f7c9b6d-"[:58] + "x7k2p"
    query = rendered.one("ScaledObject", name)["spec"]["triggers"][0]["metadata"]["query"]
    (pattern,) = set(re.findall(r'pod=~"([^"]*)"', query))
    assert re.fullmatch(pattern, pod)
    promql_parser.parse(query)


def test_long_names_that_begin_alike_stay_apart() -> None:
    one, two = (next(iter(chart(release="l" * 48 + end).all("Deployment"))) for end in ("a", "b"))
    assert one != two


# Settings.


@pytest.mark.parametrize(
    ("value", "text"),
    [(5_000_000, "5000000"), (1e6, "1000000"), (0.05, "0.05"), (2.0, "2"), ("1e6", "1e6"), (True, "true")],
)
def test_numbers_are_written_as_the_settings_read_them(value: object, text: str) -> None:
    data = chart({"settings": {"embedding_max_age_s": value}}).one("ConfigMap")["data"]
    assert data["POMONA_EMBEDDING_MAX_AGE_S"] == text


def test_no_number_of_the_manifests_is_in_scientific_notation() -> None:
    big = 5_000_000
    values = {
        "settings": {"max_queued": big, "max_connections": big},
        "drain": {"timeoutSeconds": big},
        "probes": {"startupSeconds": big, "livenessSeconds": big, "readinessSeconds": big},
        "autoscaling": {"kind": "keda", "scaleDownSeconds": big, "queueWaitSeconds": big},
        "progressDeadlineSeconds": big,
        "roles": {"both": {"minReplicas": big, "maxReplicas": big}},
    }
    text = chart(values).text
    assert "e+0" not in text
    Settings(max_queued=chart(values).one("ConfigMap")["data"]["POMONA_MAX_QUEUED"])


def test_pods_listen_for_ipv6_and_ipv4_unless_an_address_is_chosen() -> None:
    assert environment(chart().server())["POMONA_HTTP_HOST"] == "::"
    chosen = chart({"settings": {"http_host": "0.0.0.0"}})  # noqa: S104 (what may be chosen)
    assert environment(chosen.server())["POMONA_HTTP_HOST"] == "0.0.0.0"  # noqa: S104


def test_services_take_the_families_of_addresses() -> None:
    rendered = chart({"service": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]}})
    for service in rendered.all("Service").values():
        assert service["spec"]["ipFamilyPolicy"] == "PreferDualStack"
        assert service["spec"]["ipFamilies"] == ["IPv6", "IPv4"]


# Probes.


def test_a_pod_that_hangs_is_killed_soon_and_an_ordinary_start_has_no_failed_probe() -> None:
    server = chart().server()
    assert server["livenessProbe"]["terminationGracePeriodSeconds"] == 10
    assert server["startupProbe"]["terminationGracePeriodSeconds"] == 10
    assert "terminationGracePeriodSeconds" not in server["readinessProbe"], "Kubernetes refuses it there"
    assert server["startupProbe"]["initialDelaySeconds"] == 8


def test_probes_can_be_overridden_field_by_field_or_altogether() -> None:
    probes = {
        "readiness": {"periodSeconds": 1},
        "startup": {"initialDelaySeconds": 0},
        "liveness": {"exec": {"command": ["x"]}},
    }
    server = chart({"probes": probes}).server()
    assert server["readinessProbe"]["periodSeconds"] == 1
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["startupProbe"]["initialDelaySeconds"] == 0
    assert server["livenessProbe"]["exec"] == {"command": ["x"]}
    assert "httpGet" not in server["livenessProbe"]


# Services.


def test_grpc_clients_find_all_pods_by_a_headless_service_that_is_not_scraped() -> None:
    rendered = chart()
    headless = rendered.one("Service", "pomona-both-headless")["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["selector"] == rendered.one("Service", "pomona-both")["spec"]["selector"]
    with_admin = [
        name
        for name, service in rendered.all("Service").items()
        if "admin" in {port["name"] for port in service["spec"]["ports"]}
    ]
    assert with_admin == ["pomona-both"], "a ServiceMonitor would scrape each pod twice"
    assert chart({"service": {"headless": False}}).all("Service").keys() == {"pomona-both"}


def test_a_role_can_be_split_without_taking_its_service_away_before_callers_have_moved() -> None:
    before, beside = chart(), chart({"roles": SPLIT})
    for kind in ("Deployment", "Service"):
        assert beside.one(kind, "pomona-both") == before.one(kind, "pomona-both")
    after = chart({"roles": {"both": {"enabled": False}, **SPLIT}, "service": {"aliases": {"pomona-both": "sam"}}})
    alias = after.one("Service", "pomona-both")
    assert alias["spec"]["selector"] == after.one("Service", "pomona-sam")["spec"]["selector"]
    assert {port["name"] for port in alias["spec"]["ports"]} == {"http", "grpc"}
    assert "must be an enabled role" in refuses({"service": {"aliases": {"old": "sam"}}})
    assert "has a Service of this name" in refuses({"service": {"aliases": {"pomona-both": "both"}}})


# Weights.

CLAIM = {"source": "volume", "claim": "weights"}
JOB = {"source": "job", "initImage": "pomona:gpu", "cacheClaim": "models"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"weights": CLAIM}, "the cpu image cannot convert"),
        ({"weights": {"source": "init"}}, "needs weights.initImage"),
        ({"weights": {"source": "job", "cacheClaim": "models"}}, "needs weights.initImage"),
        ({"weights": {"source": "job", "initImage": "pomona:gpu"}}, "needs weights.cacheClaim"),
        ({**GPU, "weights": {"source": "volume"}}, "needs weights.claim"),
        ({"weights": {"claim": "weights"}}, "not used with weights.source image"),
        ({"weights": {"fetch": {"image": "models:1"}}}, "weights.fetch needs weights.source init or job"),
        ({"weights": {**JOB, "claim": "weights", "fetch": {"image": "models:1"}}}, "exclude each other"),
        ({"roles": {"sam": {"enabled": True, "weights": CLAIM}}}, "roles.sam: the cpu image cannot convert"),
    ],
)
def test_models_that_no_pod_could_load_are_refused(values: dict[str, Any], says: str) -> None:
    assert says in refuses(values)


def test_checkpoints_on_a_volume_are_taken_as_they_are_on_gpus() -> None:
    rendered = chart({**GPU, "weights": CLAIM})
    assert "initContainers" not in rendered.pod()
    assert environment(rendered.server())["POMONA_WEIGHTS_DIR"] == "/var/lib/pomona/weights"


def test_converted_models_on_a_volume_are_taken_as_they_are_on_cpus() -> None:
    rendered = chart({"weights": {"source": "volume", "cacheClaim": "models"}})
    assert "initContainers" not in rendered.pod()
    assert environment(rendered.server())["POMONA_CACHE_DIR"] == "/var/cache/pomona"
    assert {"name": "cache", "mountPath": "/var/cache/pomona", "readOnly": True} in rendered.server()["volumeMounts"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in rendered.pod()["volumes"]


def test_an_init_step_converts_with_the_image_that_can() -> None:
    on_cpu = chart({"weights": {"source": "init", "initImage": "pomona:gpu"}}).pod()["initContainers"]
    assert [(step["name"], step["image"]) for step in on_cpu] == [("weights", "pomona:gpu")]
    on_gpu = chart({**GPU, "weights": {"source": "init"}}).pod()["initContainers"]
    assert [(step["name"], step["image"]) for step in on_gpu] == [("weights", "pomona:0.1.0-gpu")]
    assert "nvidia.com/gpu" not in on_gpu[0]["resources"]["limits"], "fetching needs no device"


@pytest.mark.parametrize("source", ["init", "job"])
def test_checkpoints_come_out_of_an_image_or_object_storage_by_a_step_of_its_own(source: str) -> None:
    fetch = {"image": "orchard-models:3", "command": ["cp", "-r", "/weights/.", "."]}
    rendered = chart({"weights": {**JOB, "source": source, "fetch": fetch}})
    holder = rendered.pod() if source == "init" else rendered.one("Job")["spec"]["template"]["spec"]
    step = holder["initContainers"][0]
    assert (step["name"], step["image"], step["command"]) == ("fetch", fetch["image"], fetch["command"])
    (mount,) = [each for each in step["volumeMounts"] if each["name"] == "cache"]
    prepare = (holder["initContainers"] + holder["containers"])[1]
    assert mount["mountPath"] == step["workingDir"] == environment(prepare)["POMONA_WEIGHTS_DIR"]
    assert mount["mountPath"] == f"{environment(prepare)['POMONA_CACHE_DIR']}/{mount['subPath']}"


def test_one_job_converts_for_all_pods_which_wait_for_it_with_their_own_small_image() -> None:
    rendered = chart({"weights": JOB})
    job = rendered.one("Job")["spec"]["template"]
    (converting,) = job["spec"]["containers"]
    assert converting["image"] == "pomona:gpu"
    assert converting["command"] == ["python", "-m", "service.prepare"]
    (waiting,) = rendered.pod()["initContainers"]
    assert waiting["image"] == rendered.server()["image"] == "pomona:0.1.0-cpu"
    assert "until python -m service.prepare" in waiting["command"][-1]
    cache = [{each["name"]: each for each in step["volumeMounts"]}["cache"] for step in (converting, waiting)]
    assert [mount.get("readOnly", False) for mount in cache] == [False, True]
    for service in rendered.all("Service").values():
        assert not service["spec"]["selector"].items() <= job["metadata"]["labels"].items()


def test_a_job_has_another_name_where_it_does_something_else() -> None:
    def name(**roles: Any) -> str:
        return str(chart({"weights": JOB, "roles": {"both": roles}}).one("Job")["metadata"]["name"])

    assert name() == name(replicas=3)
    assert name() != name(models=["mobile-sam"])
    assert len(name()) <= 63


def test_only_what_a_pod_uses_is_mounted() -> None:
    assert [volume["name"] for volume in chart().pod()["volumes"]] == ["scratch"]
    for values in ({"weights": JOB}, {**GPU, "weights": CLAIM}, {"tls": {"secretName": "tls"}}):
        pod = chart(values).pod()
        steps = pod["containers"] + pod.get("initContainers", [])
        assert {volume["name"] for volume in pod["volumes"]} == {
            mount["name"] for step in steps for mount in step["volumeMounts"]
        }


# What else may be added.


def test_a_pod_takes_what_its_users_add() -> None:
    values = {
        "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "line-7"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "extraContainers": [{"name": "beside", "image": "beside:1"}],
        "extraInitContainers": [{"name": "before", "image": "before:1"}],
        "podLabels": {"team": "vision"},
        "podAnnotations": {"line": "7"},
        "deploymentLabels": {"owner": "vision"},
        "deploymentAnnotations": {"reloader": "true"},
        "serviceAccount": {"annotations": {"role": "reader"}},
        "priorityClassName": "line-critical",
        "progressDeadlineSeconds": 120,
    }
    rendered = chart(values)
    made, pod, server = rendered.one("Deployment"), rendered.pod(), rendered.server()
    assert environment(server)["OTEL_SERVICE_NAME"] == "line-7"
    assert [volume["name"] for volume in pod["volumes"]] == ["scratch", "more"]
    assert server["volumeMounts"][-1] == {"name": "more", "mountPath": "/more"}
    assert [each["name"] for each in pod["containers"]] == ["pomona", "beside"]
    assert [each["name"] for each in pod["initContainers"]] == ["before"]
    assert made["spec"]["template"]["metadata"]["labels"]["team"] == "vision"
    assert made["spec"]["template"]["metadata"]["annotations"]["line"] == "7"
    assert (made["metadata"]["labels"]["owner"], made["metadata"]["annotations"]["reloader"]) == ("vision", "true")
    assert rendered.one("ServiceAccount")["metadata"]["annotations"] == {"role": "reader"}
    assert (pod["priorityClassName"], made["spec"]["progressDeadlineSeconds"]) == ("line-critical", 120)


@pytest.mark.parametrize("name", ["POMONA_MODELS", "POMONA_ALLOW_ANONYMOUS"])
def test_a_variable_that_the_chart_sets_cannot_be_set_beside_it(name: str) -> None:
    assert f"the chart sets {name} itself" in refuses({"extraEnv": [{"name": name, "value": "x"}]})


def test_a_service_account_of_the_users_is_used_and_not_made() -> None:
    rendered = chart({"serviceAccount": {"create": False, "name": "models-reader"}})
    assert not rendered.all("ServiceAccount")
    assert rendered.pod()["serviceAccountName"] == "models-reader"


# Routes.

PARENTS = [{"name": "public", "namespace": "gateways"}]
ROUTES = {
    "http": {"enabled": True, "parentRefs": PARENTS, "hostnames": ["pomona.example.com"]},
    "grpc": {"enabled": True, "parentRefs": PARENTS, "hostnames": ["grpc.pomona.example.com"]},
}
SPLIT_ROLES = {"both": {"enabled": False}, **SPLIT}


def backends(route: Object) -> dict[str, list[tuple[str, int, int | None]]]:
    found = {}
    for rule in route["spec"]["rules"]:
        (match,) = rule.get("matches", [{}])
        key = match.get("path", {}).get("value") or match.get("method", {}).get("method", "")
        found[key] = [(each["name"], each["port"], each.get("weight")) for each in rule["backendRefs"]]
    return found


def test_one_route_sends_each_operation_to_the_role_that_has_its_model() -> None:
    rendered = chart({"gateway": ROUTES, "roles": SPLIT_ROLES})
    assert backends(rendered.one("HTTPRoute")) == {
        "/": [("pomona-sam", 3000, None)],
        "/v1/inspect": [("pomona-unet", 3000, None)],
        "/v1/semantic": [("pomona-unet", 3000, None)],
    }
    assert backends(rendered.one("GRPCRoute")) == {
        "": [("pomona-sam", 3001, None)],
        "Inspect": [("pomona-unet", 3001, None)],
        "InspectStream": [("pomona-unet", 3001, None)],
        "Semantic": [("pomona-unet", 3001, None)],
    }


def test_two_roles_that_answer_the_same_paths_are_refused() -> None:
    assert "both answer /" in refuses({"gateway": ROUTES, "roles": {"sam": {"enabled": True}}})
    hidden = {"sam": {"enabled": True, "routes": {"paths": []}}}
    assert set(backends(chart({"gateway": ROUTES, "roles": hidden}).one("GRPCRoute"))) == {""}


@pytest.mark.parametrize("hostnames", [[], ["pomona.example.com"]])
def test_two_kinds_of_route_for_one_name_on_one_listener_are_refused(hostnames: list[str]) -> None:
    assert "host names of their own" in refuses(
        {"gateway": {**ROUTES, "grpc": {**ROUTES["grpc"], "hostnames": hostnames}}}
    )


def test_a_canary_gets_its_share_of_both_routes() -> None:
    rendered = chart({"gateway": {**ROUTES, "canary": {"release": "pomona-next", "weight": 10}}})
    assert backends(rendered.one("HTTPRoute")) == {"/": [("pomona-both", 3000, 90), ("pomona-next-both", 3000, 10)]}
    assert backends(rendered.one("GRPCRoute")) == {"": [("pomona-both", 3001, 90), ("pomona-next-both", 3001, 10)]}
    assert "pomona-next-both" in chart(release="pomona-next").all("Service")
    long = "n" * 48
    named = backends(chart({"gateway": {**ROUTES, "canary": {"release": long, "weight": 1}}}).one("HTTPRoute"))["/"][1][
        0
    ]
    assert named in chart(release=long).all("Service")


def test_envoy_gateway_hashes_by_image_on_both_routes() -> None:
    policy = chart({"gateway": {**ROUTES, "imageAffinity": "envoyGateway"}}).one("BackendTrafficPolicy")["spec"]
    assert [(each["kind"], each["name"]) for each in policy["targetRefs"]] == [
        ("HTTPRoute", "pomona"),
        ("GRPCRoute", "pomona"),
    ]
    assert policy["loadBalancer"]["consistentHash"] == {"type": "Header", "header": {"name": "X-Image-Id"}}


def test_istio_hashes_by_image_for_each_role() -> None:
    rules = chart({"gateway": {**ROUTES, "imageAffinity": "istio"}, "roles": SPLIT_ROLES}).all("DestinationRule")
    assert {rule["spec"]["host"].partition(".")[0] for rule in rules.values()} == {"pomona-sam", "pomona-unet"}
    for rule in rules.values():
        assert rule["spec"]["trafficPolicy"]["loadBalancer"]["consistentHash"] == {"httpHeaderName": "X-Image-Id"}
    assert "needs gateway" in refuses({"gateway": {"imageAffinity": "istio"}})


def test_an_ingress_has_one_host_for_http_and_one_for_grpc() -> None:
    ingress = {
        "enabled": True,
        "host": "pomona.example.com",
        "grpcHost": "grpc.pomona.example.com",
        "tlsSecret": "front",
        "annotations": {"a": "1"},
        "imageAffinity": "nginx",
    }
    found = chart({"ingress": ingress, "roles": SPLIT_ROLES}).all("Ingress")
    assert found.keys() == {"pomona", "pomona-grpc"}
    for name, host, port in (("pomona", ingress["host"], "http"), ("pomona-grpc", ingress["grpcHost"], "grpc")):
        (rule,) = found[name]["spec"]["rules"]
        assert rule["host"] == host
        assert {each["backend"]["service"]["port"]["name"] for each in rule["http"]["paths"]} == {port}
        assert found[name]["spec"]["tls"] == [{"secretName": "front", "hosts": [host]}]
        hashed = found[name]["metadata"]["annotations"]["nginx.ingress.kubernetes.io/upstream-hash-by"]
        assert hashed == "$http_x_image_id"
    paths = {each["path"] for each in found["pomona-grpc"]["spec"]["rules"][0]["http"]["paths"]}
    assert "/pomona.v1.Segmentation/Inspect" in paths
    assert not chart().all("Ingress")


def test_an_ingress_without_a_host_is_for_all() -> None:
    (rule,) = chart({"ingress": {"enabled": True}}).one("Ingress")["spec"]["rules"]
    assert rule.keys() == {"http"}


# Monitoring.


def metrics(expression: str) -> list[Any]:
    """Return the selectors of a PromQL expression."""
    found, open_nodes = [], [promql_parser.parse(expression)]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        for name in ("lhs", "rhs", "expr", "vector_selector", "args", "param"):
            inner = getattr(node, name, None)
            open_nodes += inner if isinstance(inner, list) else [inner] if inner is not None else []
    return found


def test_rules_are_of_this_release_alone() -> None:
    rendered = chart({"monitoring": {"rules": True}, "roles": SPLIT_ROLES}).one("PrometheusRule")
    rules = [rule for group in rendered["spec"]["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    for rule in rules:
        selectors = metrics(rule["expr"])
        assert selectors, rule["expr"]
        for selector in selectors:
            labels = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
            assert labels["namespace"] == "vision", rule["expr"]
            assert labels["job"] == "pomona-sam|pomona-unet", rule["expr"]


# What the chart comes with.


def test_helm_test_checks_every_role_with_the_smaller_image() -> None:
    roles = {"both": {"enabled": False}, "sam": {"enabled": True, "gpu": {"enabled": True}}, "unet": {"enabled": True}}
    rendered = chart({"roles": roles}, tests=True)
    pod = rendered.one("Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "pomona:0.1.0-cpu"
    assert [each["role"] for each in json.loads(environment(container)["POMONA_TARGETS"])] == ["sam", "unet"]
    files = rendered.one("ConfigMap")
    assert files["data"]["check.py"].strip() == (CHART / "files" / "check.py").read_text().strip()
    assert not chart({"test": {"enabled": False}}, tests=True).text
    assert "Pod" not in {each["kind"] for each in chart()}


def test_the_pod_of_helm_test_may_call() -> None:
    callers = [{"namespaceSelector": {"matchLabels": {"team": "lines"}}}]
    allowed = chart({"networkPolicy": {"callers": callers}}).one("NetworkPolicy")["spec"]["ingress"][0]["from"]
    labels = chart(tests=True).one("Pod")["metadata"]["labels"]
    assert any(
        each["podSelector"]["matchLabels"].items() <= labels.items() for each in allowed if "podSelector" in each
    )


def test_the_notes_wait_for_the_port_before_they_ask_it() -> None:
    printed = notes(ANYBODY)
    (asks,) = [line for line in printed.splitlines() if line.strip().startswith("curl")]
    assert "--retry-connrefused" in asks


EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_examples_have_as_many_pods_as_the_guide_says(example: Path) -> None:
    cameras = int(example.stem.removeprefix("cameras-"))
    guide = (CHART.parents[1] / "docs" / "production.md").read_text()
    found = re.search(r"\| inspect, `fast` \| ([\d.]+) \|", guide)
    assert found is not None
    needed = -(-cameras * 2 // (float(found[1]) * 0.7)) + 1
    rendered = Rendered(render(yaml.safe_load(example.read_text())))
    assert rendered.one("Deployment", "pomona-unet")["spec"]["replicas"] == needed


def test_there_are_examples_for_one_eight_and_forty_cameras() -> None:
    assert {path.stem for path in EXAMPLES} == {"cameras-1", "cameras-8", "cameras-40"}
