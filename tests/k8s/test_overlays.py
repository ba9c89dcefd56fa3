"""Every overlay, rendered by kustomize, is what API server, operator and Pod Security "restricted" would take."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import retort
from retort.config import Config, validate
from retort.orchestration.jobs import JOBS
from retort.run_config import RunConfig
from retort.serving.settings import ServeConfig
from tests.k8s import crd_schemas, operator_rules, ray_pods
from tests.k8s.pod_security import amount, careful, confined, restricted
from tests.k8s.policies import Pod, lets_through
from tests.k8s.rendering import K8S, OVERLAYS, RAY_KINDS, ROOT, Manifest, clusters, named, one, overlay, pods, render

KUBERNETES = "1.37.0"
CLUSTER_WIDE = {"Namespace", "ClusterQueue", "ResourceFlavor"}
MADE_BY_KUBERNETES = {"kube-root-ca.crt"}
EVERYWHERE = pytest.mark.parametrize("name", OVERLAYS)


def test_there_is_an_overlay_for_each_use() -> None:
    assert set(OVERLAYS) == {"cpu-dev", "gpu", "kueue", "nightly", "serve"}


@EVERYWHERE
def test_custom_resources_are_what_their_definitions_ask_for(name: str) -> None:
    custom = [m for m in overlay(name) if crd_schemas.key_of(m) in crd_schemas.schemas()]
    assert custom
    assert {named(m): found for m in custom if (found := crd_schemas.faults(m))} == {}


@EVERYWHERE
def test_everything_else_is_what_kubernetes_asks_for(name: str) -> None:
    core = [m for m in overlay(name) if crd_schemas.key_of(m) not in crd_schemas.schemas()]
    assert len(core) > 10
    for manifest in core:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@EVERYWHERE
def test_the_operator_refuses_nothing(name: str) -> None:
    ours = [m for m in overlay(name) if m["kind"] in RAY_KINDS]
    assert ours
    assert {named(m): found for m in ours if (found := operator_rules.faults(m))} == {}


@EVERYWHERE
def test_pods_satisfy_pod_security_restricted_and_more(name: str) -> None:
    seen = 0
    for manifest in overlay(name):
        claims = [claim["metadata"]["name"] for claim in manifest.get("spec", {}).get("volumeClaimTemplates", [])]
        for place, pod in pods(manifest):
            seen += 1
            assert [*restricted(pod), *careful(pod, claims)] == [], f"{named(manifest)} {place}"
    assert seen >= 3
    labels = one(overlay(name), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@EVERYWHERE
def test_the_autoscaler_beside_the_head_is_confined_too(name: str) -> None:
    for manifest in overlay(name):
        for cluster in clusters(manifest):
            if not cluster.get("enableInTreeAutoscaling"):
                continue
            options, head = cluster["autoscalerOptions"], cluster["headGroupSpec"]["template"]["spec"]
            assert list(confined("autoscaler", options["securityContext"], head["securityContext"])) == []
            assert options["securityContext"]["readOnlyRootFilesystem"]
            assert options["resources"].keys() == {"requests", "limits"}
            assert {mount["name"] for mount in options["volumeMounts"]} <= {
                volume["name"] for volume in head["volumes"]
            }
            # It alone has a token of the API server.
            mounted = [mount["name"] for mount in head["containers"][0]["volumeMounts"]]
            assert "api-token" in {mount["name"] for mount in options["volumeMounts"]} - set(mounted)


@EVERYWHERE
def test_what_needs_a_namespace_has_it_and_nothing_else_does(name: str) -> None:
    for manifest in overlay(name):
        has = "namespace" in manifest["metadata"]
        assert has == (manifest["kind"] not in CLUSTER_WIDE), named(manifest)
    for key, definition in crd_schemas.schemas().items():
        assert (definition["scope"] == "Cluster") == (key.split("/")[-1] in CLUSTER_WIDE)


@EVERYWHERE
def test_ray_is_the_one_of_the_package_with_tokens_state_and_probes(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = next(m[1] for entry in project["dependencies"] if (m := re.fullmatch(r"ray\[.*\]==(.*)", entry)))
    for manifest in overlay(name):
        for cluster in clusters(manifest):
            assert cluster["rayVersion"] == pinned
            assert cluster["authOptions"] == {"mode": "token"}
            assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
            groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
            for container in (group["template"]["spec"]["containers"][0] for group in groups):
                probes = {key: value["httpGet"] for key, value in container.items() if key.endswith("Probe")}
                readiness_is_the_operators = manifest["kind"] == "RayService" and container["name"] == "ray-worker"
                assert len(probes) == (2 if readiness_is_the_operators else 3)
                assert all(probe == {"path": "/api/healthz", "port": 52365} for probe in probes.values())


@EVERYWHERE
def test_pods_of_ray_end_without_losing_work(name: str) -> None:
    found = [(named(manifest), pod) for manifest in overlay(name) for pod in ray_pods.pods_of_ray(manifest)]
    assert len(found) >= 2
    assert [(place, told) for place, pod in found if (told := list(ray_pods.faults(pod)))] == []
    from ray._private import ray_constants

    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S == 30, "the name of the variable is still Ray's"


@EVERYWHERE
def test_images_are_ours_at_this_version_or_redis(name: str) -> None:
    found = {c["image"] for m in overlay(name) for _, pod in pods(m) for c in pod["containers"]}
    ours = {image for image in found if "redis:" not in image}
    assert ours
    assert {image.rsplit("/", 1)[-1] for image in ours} == {f"retort:{retort.__version__}"}
    assert len(found - ours) == 1


def references(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What a manifest's pods refer to, as kind and name."""
    for _, pod in pods(manifest):
        yield "ServiceAccount", pod["serviceAccountName"]
        for volume in pod.get("volumes", []):
            for source in (volume, *volume.get("projected", {}).get("sources", [])):
                if "configMap" in source:
                    yield "ConfigMap", source["configMap"]["name"]
            if "secret" in volume:
                yield "Secret", volume["secret"]["secretName"]
            if "persistentVolumeClaim" in volume:
                yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    yield from (("Secret", key["name"]) for key in _found(manifest, ("secretKeyRef", "secretRef")))


def _found(value: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key in keys:
                yield item
            yield from _found(item, keys)
    elif isinstance(value, list):
        for item in value:
            yield from _found(item, keys)


@EVERYWHERE
def test_what_is_referred_to_is_there_or_the_guide_says_how_to_make_it(name: str) -> None:
    manifests = overlay(name)
    there = {(m["kind"], m["metadata"]["name"]) for m in manifests}
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    there |= {("Secret", made) for made in re.findall(r"create secret generic ([\w-]+)", guide)}
    asked = {reference for m in manifests for reference in references(m)}
    assert len(asked) >= 5
    assert {(kind, made) for kind, made in asked - there if made not in MADE_BY_KUBERNETES} == set()


@EVERYWHERE
def test_no_manifest_holds_a_secret(name: str) -> None:
    assert [named(m) for m in overlay(name) if m["kind"] == "Secret"] == []


@EVERYWHERE
def test_policies_and_budgets_select_labels_that_pods_get(name: str) -> None:
    manifests = overlay(name)
    known = {"ray.io/is-ray-node", "ray.io/node-type"}  # set by the operator on every pod of a cluster
    own = {
        f"{key}={value}"
        for m in manifests
        for template in _found(m, ("template", "submitterPodTemplate"))
        for key, value in template.get("metadata", {}).get("labels", {}).items()
    }
    later = {"app.kubernetes.io/component=retort-submitter"}  # of jobs, which are made beside a cluster at any time
    for manifest in (m for m in manifests if m["kind"] in ("NetworkPolicy", "PodDisruptionBudget")):
        for selector in _found(manifest["spec"], ("podSelector", "selector")):
            for key, value in selector.get("matchLabels", {}).items():
                assert key in known or f"{key}={value}" in own | later, named(manifest)
    budgets = [m["spec"] for m in manifests if m["kind"] == "PodDisruptionBudget"]
    assert budgets
    # A RayCluster has no scale subresource, without which a budget can only count.
    assert crd_schemas.schemas()["ray.io/v1/RayCluster"]["subresources"] == ["status"]
    assert all(isinstance(spec["minAvailable"], int) for spec in budgets)
    assert list(ray_pods.budget_faults(one(manifests, "PodDisruptionBudget", "retort-heads"))) == []


@EVERYWHERE
def test_ports_of_policies_and_services_are_listened_on(name: str) -> None:
    manifests = overlay(name)
    listened = {port["containerPort"] for m in manifests for ports in _found(m, ("ports",)) for port in ports
                if "containerPort" in port}  # fmt: skip
    outside = {53, 80, 443, 6443, 15012}
    policies = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    assert "retort-deny-all" in {m["metadata"]["name"] for m in policies}
    asked = {port["port"] for m in policies for ports in _found(m, ("ports",)) for port in ports}
    assert asked - outside <= listened
    assert asked >= {6379, 8265, 8000}


def test_each_job_has_an_example_whose_run_file_is_valid_and_on_shared_storage() -> None:
    manifests = render(K8S / "jobs")
    runs = one(manifests, "ConfigMap", "retort-runs")["data"]
    jobs = {m["metadata"]["labels"]["retort/job"]: m for m in manifests if m["kind"] == "RayJob"}
    assert set(jobs) == set(JOBS)
    # One job is applied with the run files by this label; see the head of jobs.yaml.
    assert one(manifests, "ConfigMap")["metadata"]["labels"] == {"retort/job": "run-files"}
    for job, manifest in jobs.items():
        assert_entrypoint_runs(job, manifest["spec"]["entrypoint"], manifest["spec"]["rayClusterSpec"], runs)


def test_the_nightly_evaluation_is_the_example_with_an_output_of_its_own() -> None:
    manifests = overlay("nightly")
    runs = one(manifests, "ConfigMap", "retort-runs")["data"]
    assert [m for m in manifests if m["kind"] == "RayJob"] == []
    template = one(manifests, "RayCronJob")["spec"]["jobTemplate"]
    assert_entrypoint_runs("evaluate", template["entrypoint"], template["rayClusterSpec"], runs)
    assert "output=/shared/runs/nightly/$(date" in template["entrypoint"]


def assert_entrypoint_runs(job: str, entrypoint: str, cluster: Manifest, runs: dict[str, str]) -> None:
    program, verb, file, *_ = shlex.split(entrypoint.replace("$(date -u +%Y-%m-%d)", "2026-11-28"))
    assert (program, verb) == ("retort", job)
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounts = {mount["mountPath"] for mount in head["volumeMounts"]}
    assert str(Path(file).parent) in mounts
    config: Config = validate(yaml.safe_load(runs[Path(file).name]), RunConfig, where=file)  # type: ignore[arg-type]
    assert config.job == job  # type: ignore[attr-defined]
    assert "/shared" in mounts
    assert [path for path in paths_of(config) if not path.is_relative_to("/shared")] == []


def paths_of(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Config):
        for field in type(value).model_fields:
            yield from paths_of(getattr(value, field))
    elif isinstance(value, tuple):
        for item in value:
            yield from paths_of(item)


def test_the_service_is_one_that_the_package_can_build() -> None:
    manifest = one(overlay("serve"), "RayService")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    from ray.serve.schema import ServeDeploySchema

    assert ServeDeploySchema.model_validate(config).http_options.port == 8000
    (application,) = config["applications"]
    module, _, function = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    settings = ServeConfig.model_validate(application["args"])
    groups = [
        manifest["spec"]["rayClusterConfig"]["headGroupSpec"],
        *manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"],
    ]
    for template in (group["template"]["spec"] for group in groups):
        container = template["containers"][0]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for path in paths_of(settings):
            assert any(path.is_relative_to(mount) for mount in mounts if mount != "/tmp"), path
        assert {"name": "serve", "containerPort": 8000} in container["ports"]
    for template in (group["template"]["spec"] for group in groups[1:]):
        environment = {entry["name"]: entry["value"] for entry in template["containers"][0]["env"]}
        drain = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert settings.drain_s < drain < template["terminationGracePeriodSeconds"]
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > settings.drain_s
    largest = max((model.cpus, model.gpus) for model in settings.models)
    limits = groups[2]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert largest[0] <= amount(limits["cpu"])
    assert largest[1] <= amount(limits["nvidia.com/gpu"])


def test_the_service_is_reached_through_its_gateway_and_by_nobody_else() -> None:
    """Labels of pods as Istio's template and KubeRay give them; the operator names the Gateway after the service."""
    manifests = overlay("serve")
    name = one(manifests, "RayService")["metadata"]["name"]
    gateway = Pod({"gateway.networking.k8s.io/gateway-name": f"{name}-gateway"})
    speaker = Pod({"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker"})
    client, stranger = Pod({}, {"retort/clients": "true"}), Pod({}, {"kubernetes.io/metadata.name": "default"})
    istiod = Pod({"app": "istiod"}, {"kubernetes.io/metadata.name": "istio-system"})
    redis = Pod({"app.kubernetes.io/name": "retort-redis"})
    ways = [(client, gateway, 80), (gateway, speaker, 8000), (gateway, istiod, 15012), (client, speaker, 8000)]
    assert [way for way in ways if not lets_through(manifests, *way)] == []
    closed = [(stranger, gateway, 80), (stranger, speaker, 8000), (redis, speaker, 8000), (redis, gateway, 80),
              (gateway, redis, 6379), (gateway, speaker, 8265), (gateway, stranger, 443)]  # fmt: skip
    assert [way for way in closed if lets_through(manifests, *way)] == []


def test_kueue_admits_jobs_of_a_fixed_size_that_fit_its_quota() -> None:
    manifests = overlay("kueue")
    queue, flavour = one(manifests, "ClusterQueue"), one(manifests, "ResourceFlavor")
    (group,) = queue["spec"]["resourceGroups"]
    quota = {entry["name"]: amount(entry["nominalQuota"]) for entry in group["flavors"][0]["resources"]}
    assert group["flavors"][0]["name"] == flavour["metadata"]["name"]
    local = one(manifests, "LocalQueue")
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    jobs = [m for m in manifests if m["kind"] == "RayJob"]
    assert len(jobs) == len(JOBS)
    for job in jobs:
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
        assert job["metadata"]["namespace"] == local["metadata"]["namespace"]
        cluster = job["spec"]["rayClusterSpec"]
        assert job["spec"]["suspend"] is job["spec"]["shutdownAfterJobFinishes"] is True
        assert "enableInTreeAutoscaling" not in cluster
        need: dict[str, float] = {}
        templates = [(1, cluster["headGroupSpec"]["template"]), (1, job["spec"]["submitterPodTemplate"])]
        templates += [(group["replicas"], group["template"]) for group in cluster["workerGroupSpecs"]]
        assert all(
            group["replicas"] == group["minReplicas"] == group["maxReplicas"] for group in cluster["workerGroupSpecs"]
        )
        for replicas, template in templates:
            for key, value in template["spec"]["containers"][0]["resources"]["requests"].items():
                need[key] = need.get(key, 0.0) + replicas * amount(value)
        assert need.keys() <= quota.keys()
        assert {key for key, value in need.items() if value > quota[key]} == set()
