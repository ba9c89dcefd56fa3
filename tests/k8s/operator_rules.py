"""What KubeRay's operator refuses in resources that the API server has admitted.

Written after ``ray-operator/controllers/ray/utils/validation.go`` of v1.7.0 (Apache-2.0), with its default gates and
RayCronJob; a rule's name says what must hold. Options that are alpha and off have one rule: they are not there.
"""

import re
import zoneinfo
from collections.abc import Iterator
from typing import Any

import yaml

from tests.k8s.rendering import Manifest, clusters

MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")
_DURATION = re.compile(r"([1-9]\d*)|(\d+(\.\d+)?(h|m|s|ms))+")
_BEHIND_GATES = ("historyServerOptions", "networkPolicy", "tlsOptions")

Fault = tuple[str, str]
"""The name of the rule, and what breaks it."""


def faults(manifest: Manifest) -> list[Fault]:
    kind, spec = manifest["kind"], manifest["spec"]
    found = list(_metadata(kind, manifest["metadata"]))
    annotations = manifest["metadata"].get("annotations", {})
    for cluster in clusters(manifest):
        found += [*_cluster(cluster), *_groups(cluster), *_autoscaling(cluster), *_state(cluster, annotations)]
        found += _auth(cluster)
    match kind:
        case "RayJob":
            found += [*_job(spec), *_job_needs(spec)]
        case "RayService":
            found += _service(spec, annotations)
        case "RayCronJob":
            found += [*_schedule(spec), *_job(spec["jobTemplate"]), *_job_needs(spec["jobTemplate"])]
    return found


def _metadata(kind: str, metadata: Manifest) -> Iterator[Fault]:
    if len(metadata["name"]) > MAX_NAME[kind]:
        yield "name is short enough for what is named after it", metadata["name"]
    if kind != "RayCronJob" and not _DNS_1035.fullmatch(metadata["name"]):
        yield "name is a DNS label that begins with a letter", metadata["name"]


def _all_groups(cluster: Manifest) -> list[tuple[str, Manifest]]:
    workers = [(group["groupName"], group) for group in cluster.get("workerGroupSpecs", [])]
    return [("head", cluster["headGroupSpec"]), *workers]


def _cluster(cluster: Manifest) -> Iterator[Fault]:
    for name, group in _all_groups(cluster):
        start = group.get("rayStartParams") or {}
        if not group["template"]["spec"].get("containers"):
            yield "a group has a container", name
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & start.keys():
            yield "resources are given once", name
        if "labels" in start:
            yield "labels are no start parameter", name
        for key, value in group.get("labels", {}).items():
            if not (_LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)):
                yield "labels of a group are labels", f"{name}: {key}={value}"
    for option in _BEHIND_GATES:
        if option in cluster:
            yield "alpha options that are off are not set", option


def _groups(cluster: Manifest) -> Iterator[Fault]:
    for group in cluster.get("workerGroupSpecs", []):
        name, least, most = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
        if not cluster.get("enableInTreeAutoscaling") and (least is None or most is None):
            yield "without autoscaling both minReplicas and maxReplicas are set", name
        if (least or 0) < 0 or (most or 0) < 0:
            yield "minReplicas and maxReplicas are not negative", name
        if least is not None and most is not None and least > most:
            yield "minReplicas is at most maxReplicas", name
        if group.get("idleTimeoutSeconds", 0) < 0:
            yield "idleTimeoutSeconds is not negative", name
        if "idleTimeoutSeconds" in group and not _is_v2(cluster):
            yield "idleTimeoutSeconds of a group needs autoscaler v2", name
        if group.get("priority") and not _is_v2(cluster):
            yield "priority of a group needs autoscaler v2", name
        if group.get("priority") and _version(cluster) < (2, 56):
            yield "priority of a group needs Ray 2.56", name
        if group.get("suspend") and cluster.get("enableInTreeAutoscaling"):
            yield "a group is not suspended with autoscaling", name


def _is_v2(cluster: Manifest) -> bool:
    return bool(cluster.get("autoscalerOptions", {}).get("version") == "v2")


def _version(cluster: Manifest) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", cluster.get("rayVersion", "")))


def _environment(group: Manifest) -> dict[str, Any]:
    containers = group["template"]["spec"].get("containers") or [{}]
    return {entry["name"]: entry.get("value") for entry in containers[0].get("env", [])}


def _autoscaling(cluster: Manifest) -> Iterator[Fault]:
    options, environment = cluster.get("autoscalerOptions", {}), _environment(cluster["headGroupSpec"])
    is_on = bool(cluster.get("enableInTreeAutoscaling"))
    if not is_on and environment.get("RAY_enable_autoscaler_v2") in ("1", "true"):
        yield "autoscaler v2 is not asked for without autoscaling", "RAY_enable_autoscaler_v2"
    if is_on and "version" in options and "RAY_enable_autoscaler_v2" in environment:
        yield "the autoscaler's version is given once", "RAY_enable_autoscaler_v2"
    if is_on and _is_v2(cluster):
        for name, group in _all_groups(cluster):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield "with autoscaler v2 pods are not restarted", name
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds is not negative", "autoscalerOptions"
    if any(entry["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for entry in options.get("env", [])):
        yield "the operator's own variables are not set", "KUBERAY_GEN_AUTOSCALER_START_CMD"


def _state(cluster: Manifest, annotations: dict[str, str]) -> Iterator[Fault]:
    options, head = cluster.get("gcsFaultToleranceOptions"), cluster["headGroupSpec"]
    environment, start = _environment(head), head.get("rayStartParams") or {}
    elsewhere = [name for name in ("redis-username", "REDIS_USERNAME") if start.get(name) or name in environment]
    if options is not None:
        names = ("ray.io/ft-enabled", "ray.io/external-storage-namespace")
        elsewhere += [name for name in names if annotations.get(name)]
        elsewhere += [name for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS") if name in environment]
        elsewhere += ["redis-password"] if start.get("redis-password") else []
    elif annotations.get("ray.io/ft-enabled") != "true" and "RAY_REDIS_ADDRESS" in environment:
        elsewhere.append("RAY_REDIS_ADDRESS")
    yield from (("Redis is given in gcsFaultToleranceOptions alone", name) for name in elsewhere)
    if options is not None and options.get("backend", "redis") != "redis":
        yield "alpha options that are off are not set", "gcsFaultToleranceOptions.backend"
    elif options is not None and "storage" in options:
        yield "storage of the head's state is not RocksDB's with Redis", "storage"


def _auth(cluster: Manifest) -> Iterator[Fault]:
    options = cluster.get("authOptions", {})
    if options.get("mode") == "token" and _version(cluster) < (2, 52):
        yield "tokens need a stated Ray of 2.52 or later", cluster.get("rayVersion", "none is stated")
    if options.get("enableK8sTokenAuth") and options.get("mode") != "token":
        yield "tokens of Kubernetes need the mode token", str(options)
    if options.get("enableK8sTokenAuth") and options.get("secretName"):
        yield "tokens are Kubernetes' or a Secret's", options["secretName"]


def _job(spec: Manifest) -> Iterator[Fault]:
    if not spec.get("shutdownAfterJobFinishes"):
        if spec.get("suspend"):
            yield "a job that can be suspended shuts its cluster down", "suspend"
        if spec.get("ttlSecondsAfterFinished", 0) > 0:
            yield "a time to live needs a cluster that is shut down", "ttlSecondsAfterFinished"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "limits of a job are positive", "ttlSecondsAfterFinished"
    for name, least in (("activeDeadlineSeconds", 1), ("preRunningDeadlineSeconds", 1), ("backoffLimit", 0)):
        if spec.get(name, least) < least:
            yield "limits of a job are positive", name
    if spec.get("deletionStrategy", {}).get("deletionRules") and spec.get("shutdownAfterJobFinishes"):
        yield "a cluster is shut down by one rule", "deletionRules"
    try:
        yaml.safe_load(spec.get("runtimeEnvYAML", ""))
    except yaml.YAMLError:
        yield "runtimeEnvYAML is YAML", spec["runtimeEnvYAML"]


def _job_needs(spec: Manifest) -> Iterator[Fault]:
    selector, mode = spec.get("clusterSelector"), spec.get("submissionMode", "K8sJobMode")
    if not selector and "rayClusterSpec" not in spec:
        yield "a job has a cluster", "neither rayClusterSpec nor clusterSelector"
    if selector:
        if not selector.get("ray.io/cluster"):
            yield "a selected cluster is named", str(selector)
        if spec.get("suspend") or spec.get("backoffLimit", 0) > 0 or mode == "SidecarMode":
            yield "a selected cluster is not suspended, retried or a sidecar's", mode
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "an interactive job is not retried", "backoffLimit"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "a sidecar has no submitter of its own", "submitterPodTemplate"
    if spec.get("rayClusterSpec", {}).get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "jobs and services have tokens of their own", "enableK8sTokenAuth"


def _service(spec: Manifest, annotations: dict[str, str]) -> Iterator[Fault]:
    cluster, strategy = spec["rayClusterConfig"], spec.get("upgradeStrategy", {})
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "jobs and services have tokens of their own", "enableK8sTokenAuth"
    if not _DURATION.fullmatch(annotations.get("ray.io/initializing-timeout", "1m")):
        yield "the time to initialise is a duration", annotations["ray.io/initializing-timeout"]
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "the head's service has no name of its own", "headService"
    if strategy.get("type", "None") not in ("None", "NewCluster", "NewClusterWithIncrementalUpgrade"):
        yield "the way of upgrading is known", strategy["type"]
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "the delay of deletion is not negative", str(spec["rayClusterDeletionDelaySeconds"])
    if strategy.get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _increments(strategy.get("clusterUpgradeOptions"), cluster)


def _increments(options: Manifest | None, cluster: Manifest) -> Iterator[Fault]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "an incremental upgrade needs autoscaling", "enableInTreeAutoscaling"
    if options is None:
        yield "an incremental upgrade says how", "clusterUpgradeOptions"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
    if not 0 <= step <= surge <= 100:
        yield "a step of an upgrade is at most its surge, and both are percentages", f"{step} of {surge}"
    if options.get("intervalSeconds", 0) <= 0:
        yield "steps of an upgrade have an interval", "intervalSeconds"
    if not options.get("gatewayClassName"):
        yield "an incremental upgrade has a gateway", "gatewayClassName"


def _schedule(spec: Manifest) -> Iterator[Fault]:
    if "TZ" in spec["schedule"]:
        yield "the time zone is not in the schedule", spec["schedule"]
    elif not _is_cron(spec["schedule"]):
        yield "the schedule is one of cron", spec["schedule"]
    if spec.get("timeZone", "UTC") not in zoneinfo.available_timezones():
        yield "the time zone exists", spec["timeZone"]


def _is_cron(schedule: str) -> bool:
    fields, ends = schedule.split(), ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    if len(fields) != len(ends):
        return False
    pairs = zip(fields, ends, strict=True)
    return all(_is_field(part, least, most) for field, (least, most) in pairs for part in field.split(","))


def _is_field(part: str, least: int, most: int) -> bool:
    match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
    return match is not None and all(
        least <= int(number) <= most for number in match.groups()[:2] if number is not None
    )
