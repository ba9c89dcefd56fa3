"""Each rule, with a manifest that breaks it: a rule that nothing breaks is not checked."""

import ast
import inspect
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from tests.k8s import crd_schemas, operator_rules, pod_security, ray_pods
from tests.k8s.rendering import K8S, Manifest, clusters, one, overlay, pods, render

Break = Callable[[Manifest], Any]


def valid(kind: str) -> Manifest:
    """A manifest of ours that nothing is wrong with."""
    where = {"RayCluster": "gpu", "RayService": "serve", "RayCronJob": "nightly"}
    if kind == "RayJob":
        return one(render(K8S / "jobs"), "RayJob", "retort-distill")
    return one(overlay(where.get(kind, "kueue")), kind)


def cluster(manifest: Manifest) -> Manifest:
    return clusters(manifest)[0]


def group(manifest: Manifest, index: int = 0) -> Manifest:
    return cluster(manifest)["workerGroupSpecs"][index]  # type: ignore[no-any-return]


def head(manifest: Manifest) -> Manifest:
    return cluster(manifest)["headGroupSpec"]  # type: ignore[no-any-return]


def variable(manifest: Manifest, name: str, value: str = "1") -> None:
    head(manifest)["template"]["spec"]["containers"][0]["env"].append({"name": name, "value": value})


def annotate(manifest: Manifest, name: str, value: str) -> None:
    manifest["metadata"].setdefault("annotations", {})[name] = value


def v1(manifest: Manifest) -> None:
    cluster(manifest)["autoscalerOptions"]["version"] = "v1"


def fixed(manifest: Manifest) -> None:
    cluster(manifest)["enableInTreeAutoscaling"] = False


def options(manifest: Manifest) -> Manifest:
    return manifest["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]  # type: ignore[no-any-return]


def by_selector(manifest: Manifest, **changes: Any) -> None:
    manifest["spec"].pop("rayClusterSpec")
    manifest["spec"].update({"clusterSelector": {"ray.io/cluster": "other"}, **changes})


def each(*breaks: Break) -> Break:
    return lambda manifest: [broken(manifest) for broken in breaks]


OPERATOR: list[tuple[str, str, Break]] = [
    ("RayCluster", "name is short enough for what is named after it", lambda m: m["metadata"].update(name="r" * 54)),
    ("RayJob", "name is short enough for what is named after it", lambda m: m["metadata"].update(name="r" * 48)),
    ("RayService", "name is short enough for what is named after it", lambda m: m["metadata"].update(name="r" * 48)),
    ("RayCronJob", "name is short enough for what is named after it", lambda m: m["metadata"].update(name="r" * 37)),
    ("RayJob", "name is a DNS label that begins with a letter", lambda m: m["metadata"].update(name="1-job")),
    ("RayCluster", "a group has a container", lambda m: group(m)["template"]["spec"].update(containers=[])),
    ("RayCluster", "resources are given once", lambda m: head(m).update(resources={"CPU": "1"})),
    ("RayCluster", "labels are no start parameter", lambda m: group(m)["rayStartParams"].update(labels="a=b")),
    ("RayCluster", "labels of a group are labels", lambda m: group(m).update(labels={"a b": "c"})),
    ("RayCluster", "alpha options that are off are not set", lambda m: cluster(m).update(networkPolicy={})),
    ("RayCluster", "alpha options that are off are not set", lambda m: cluster(m).update(tlsOptions={"enabled": True})),
    ("RayCluster", "alpha options that are off are not set", lambda m: cluster(m).update(historyServerOptions={})),
    ("RayCluster", "alpha options that are off are not set",
     lambda m: cluster(m)["gcsFaultToleranceOptions"].update(backend="rocksdb")),
    ("RayCluster", "without autoscaling both minReplicas and maxReplicas are set",
     each(fixed, lambda m: group(m).pop("maxReplicas"))),
    ("RayCluster", "minReplicas and maxReplicas are not negative", lambda m: group(m).update(minReplicas=-1)),
    ("RayCluster", "minReplicas is at most maxReplicas", lambda m: group(m).update(minReplicas=9)),
    ("RayCluster", "idleTimeoutSeconds is not negative", lambda m: group(m).update(idleTimeoutSeconds=-1)),
    ("RayCluster", "idleTimeoutSeconds is not negative",
     lambda m: cluster(m)["autoscalerOptions"].update(idleTimeoutSeconds=-1)),
    ("RayCluster", "idleTimeoutSeconds of a group needs autoscaler v2", v1),
    ("RayCluster", "priority of a group needs autoscaler v2", each(v1, lambda m: group(m).update(priority=1))),
    ("RayCluster", "priority of a group needs Ray 2.56",
     lambda m: (group(m).update(priority=1), cluster(m).update(rayVersion="2.55.0"))),
    ("RayCluster", "a group is not suspended with autoscaling", lambda m: group(m).update(suspend=True)),
    ("RayCluster", "autoscaler v2 is not asked for without autoscaling",
     each(fixed, lambda m: variable(m, "RAY_enable_autoscaler_v2"))),
    ("RayCluster", "the autoscaler's version is given once", lambda m: variable(m, "RAY_enable_autoscaler_v2")),
    ("RayCluster", "with autoscaler v2 pods are not restarted",
     lambda m: group(m)["template"]["spec"].update(restartPolicy="Always")),
    ("RayCluster", "the operator's own variables are not set",
     lambda m: cluster(m)["autoscalerOptions"].update(env=[{"name": "KUBERAY_GEN_AUTOSCALER_START_CMD"}])),
    ("RayCluster", "Redis is given in gcsFaultToleranceOptions alone", lambda m: variable(m, "REDIS_USERNAME")),
    ("RayCluster", "Redis is given in gcsFaultToleranceOptions alone", lambda m: variable(m, "REDIS_PASSWORD")),
    ("RayCluster", "Redis is given in gcsFaultToleranceOptions alone",
     lambda m: head(m)["rayStartParams"].update({"redis-password": "x"})),
    ("RayCluster", "Redis is given in gcsFaultToleranceOptions alone",
     each(lambda m: cluster(m).pop("gcsFaultToleranceOptions"), lambda m: variable(m, "RAY_REDIS_ADDRESS"))),
    ("RayCluster", "Redis is given in gcsFaultToleranceOptions alone",
     lambda m: annotate(m, "ray.io/ft-enabled", "true")),
    ("RayCluster", "storage of the head's state is not RocksDB's with Redis",
     lambda m: cluster(m)["gcsFaultToleranceOptions"].update(storage={"size": "1Gi"})),
    ("RayCluster", "tokens need a stated Ray of 2.52 or later", lambda m: cluster(m).pop("rayVersion")),
    ("RayCluster", "tokens need a stated Ray of 2.52 or later", lambda m: cluster(m).update(rayVersion="2.51.1")),
    ("RayCluster", "tokens of Kubernetes need the mode token",
     lambda m: cluster(m).update(authOptions={"enableK8sTokenAuth": True})),
    ("RayCluster", "tokens are Kubernetes' or a Secret's",
     lambda m: cluster(m)["authOptions"].update(enableK8sTokenAuth=True, secretName="mine")),
    ("RayJob", "jobs and services have tokens of their own",
     lambda m: cluster(m)["authOptions"].update(enableK8sTokenAuth=True)),
    ("RayService", "jobs and services have tokens of their own",
     lambda m: cluster(m)["authOptions"].update(enableK8sTokenAuth=True)),
    ("RayJob", "a job that can be suspended shuts its cluster down",
     lambda m: m["spec"].update(suspend=True, shutdownAfterJobFinishes=False)),
    ("RayJob", "a time to live needs a cluster that is shut down",
     lambda m: m["spec"].update(shutdownAfterJobFinishes=False)),
    ("RayJob", "limits of a job are positive", lambda m: m["spec"].update(activeDeadlineSeconds=0)),
    ("RayJob", "limits of a job are positive", lambda m: m["spec"].update(ttlSecondsAfterFinished=-1)),
    ("RayJob", "a cluster is shut down by one rule",
     lambda m: m["spec"].update(deletionStrategy={"deletionRules": [{"policy": "DeleteCluster"}]})),
    ("RayJob", "runtimeEnvYAML is YAML", lambda m: m["spec"].update(runtimeEnvYAML="{")),
    ("RayJob", "a job has a cluster", lambda m: m["spec"].pop("rayClusterSpec")),
    ("RayJob", "a selected cluster is named", lambda m: by_selector(m, clusterSelector={"other": "x"})),
    ("RayJob", "a selected cluster is not suspended, retried or a sidecar's", by_selector),
    ("RayJob", "an interactive job is not retried", lambda m: m["spec"].update(submissionMode="InteractiveMode")),
    ("RayJob", "a sidecar has no submitter of its own", lambda m: m["spec"].update(submissionMode="SidecarMode")),
    ("RayService", "the time to initialise is a duration",
     lambda m: annotate(m, "ray.io/initializing-timeout", "soon")),
    ("RayService", "the head's service has no name of its own",
     lambda m: head(m).update(headService={"metadata": {"name": "mine"}})),
    ("RayService", "the way of upgrading is known", lambda m: m["spec"]["upgradeStrategy"].update(type="Slowly")),
    ("RayService", "the delay of deletion is not negative",
     lambda m: m["spec"].update(rayClusterDeletionDelaySeconds=-1)),
    ("RayService", "an incremental upgrade needs autoscaling", fixed),
    ("RayService", "an incremental upgrade says how",
     lambda m: m["spec"]["upgradeStrategy"].pop("clusterUpgradeOptions")),
    ("RayService", "a step of an upgrade is at most its surge, and both are percentages",
     lambda m: options(m).update(maxSurgePercent=10)),
    ("RayService", "steps of an upgrade have an interval", lambda m: options(m).update(intervalSeconds=0)),
    ("RayService", "an incremental upgrade has a gateway", lambda m: options(m).update(gatewayClassName="")),
    ("RayCronJob", "the time zone is not in the schedule", lambda m: m["spec"].update(schedule="TZ=UTC 1 1 * * *")),
    ("RayCronJob", "the schedule is one of cron", lambda m: m["spec"].update(schedule="61 1 * * *")),
    ("RayCronJob", "the schedule is one of cron", lambda m: m["spec"].update(schedule="1 1 * *")),
    ("RayCronJob", "the time zone exists", lambda m: m["spec"].update(timeZone="Mars/Olympus")),
    ("RayCronJob", "minReplicas is at most maxReplicas", lambda m: group(m).update(minReplicas=9)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rule", "broken"), OPERATOR, ids=[f"{kind}: {rule}" for kind, rule, _ in OPERATOR])
def test_operator_refuses(kind: str, rule: str, broken: Break) -> None:
    manifest = valid(kind)
    assert operator_rules.faults(manifest) == []
    broken(manifest)
    assert rule in {found for found, _ in operator_rules.faults(manifest)}


def rules_of(module: Any) -> set[str]:
    """The names of the rules that a module yields: the first item of each fault."""
    tuples = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Tuple)]
    firsts = [node.elts[0] for node in tuples if len(node.elts) == 2]
    return {node.value for node in firsts if isinstance(node, ast.Constant) and " " in str(node.value)}


def test_no_rule_of_the_operator_is_without_a_manifest_that_breaks_it() -> None:
    assert rules_of(operator_rules) == {rule for _, rule, _ in OPERATOR}
    assert len(rules_of(operator_rules)) > 40


def first_pod(manifest: Manifest) -> Manifest:
    return next(pod for _, pod in pods(manifest))


def container(pod: Manifest) -> Manifest:
    return pod["containers"][0]  # type: ignore[no-any-return]


PODS: list[tuple[str, Break]] = [
    ("nothing of the host", lambda p: p.update(hostNetwork=True)),
    ("nothing of the host", lambda p: container(p)["ports"][0].update(hostPort=80)),
    ("volumes of the allowed kinds", lambda p: p["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    ("no privilege escalation", lambda p: container(p)["securityContext"].pop("allowPrivilegeEscalation")),
    ("no privilege escalation", lambda p: container(p)["securityContext"].update(privileged=True)),
    ("all capabilities dropped", lambda p: container(p)["securityContext"].pop("capabilities")),
    ("all capabilities dropped",
     lambda p: container(p)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
    ("not root", lambda p: p["securityContext"].pop("runAsNonRoot")),
    ("not root", lambda p: container(p)["securityContext"].update(runAsUser=0)),
    ("seccomp", lambda p: p["securityContext"].update(seccompProfile={"type": "Unconfined"})),
    ("an identity of its own, without a token", lambda p: p.pop("serviceAccountName")),
    ("an identity of its own, without a token", lambda p: p.update(automountServiceAccountToken=True)),
    ("temporary folders have a limit", lambda p: p["volumes"].append({"name": "x", "emptyDir": {}})),
    ("a read-only root", lambda p: container(p)["securityContext"].update(readOnlyRootFilesystem=False)),
    ("an image with a version", lambda p: container(p).update(image="registry.example:5000/retort")),
    ("an image with a version", lambda p: container(p).update(image="retort:latest")),
    ("no secrets in a manifest", lambda p: container(p)["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"})),
    ("requests and limits", lambda p: container(p)["resources"]["limits"].pop("memory")),
    ("no more is requested than the limit", lambda p: container(p)["resources"]["requests"].update(memory="17Gi")),
    ("mounted volumes exist", lambda p: p.update(volumes=[])),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "broken"), PODS, ids=[rule for rule, _ in PODS])
def test_pods_that_are_refused(rule: str, broken: Break) -> None:
    pod = first_pod(valid("RayCluster"))
    assert [*pod_security.restricted(pod), *pod_security.careful(pod)] == []
    broken(pod)
    assert rule in {found for found, _ in [*pod_security.restricted(pod), *pod_security.careful(pod)]}


def test_no_rule_of_pods_is_without_a_pod_that_breaks_it() -> None:
    named = {rule for rule, _ in PODS} - {"seccomp"}
    assert {rule for rule in rules_of(pod_security) if rule[0].islower()} == named


def environment(pod: Manifest, **changes: str | None) -> None:
    """Give the pod's container other variables, and take away those of ``None``."""
    kept = {**{entry["name"]: entry["value"] for entry in container(pod)["env"]}, **changes}
    container(pod)["env"] = [{"name": name, "value": value} for name, value in kept.items() if value is not None]


def volume(pod: Manifest, name: str) -> Manifest:
    return next(found for found in pod["volumes"] if found["name"] == name)  # type: ignore[no-any-return]


DISK = "what is in a store has a disk of its own on each node"
DRAIN = "Ray drains for a stated time, and the pod's grace is longer"
RAY_PODS: list[tuple[str, Break]] = [
    (DRAIN, lambda p: environment(p, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=None)),
    (DRAIN, lambda p: environment(p, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0")),
    (DRAIN, lambda p: environment(p, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="180")),
    (DRAIN, lambda p: p.pop("terminationGracePeriodSeconds")),
    (DISK, lambda p: environment(p, XDG_CACHE_HOME=None)),
    (DISK, lambda p: environment(p, XDG_CACHE_HOME="/home/retort/.cache")),
    (DISK, lambda p: container(p).update(volumeMounts=[])),
    (DISK, lambda p: volume(p, "cache").update(emptyDir=volume(p, "cache").pop("ephemeral"))),
    ("the disk for what is in a store holds checkpoints", lambda p: volume(p, "cache").update(ephemeral={
        "volumeClaimTemplate": {"spec": {"resources": {"requests": {"storage": "15Gi"}}}}})),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "broken"), RAY_PODS)
def test_pods_of_ray_that_would_lose_work(rule: str, broken: Break) -> None:
    pod = next(ray_pods.pods_of_ray(valid("RayCluster")))
    assert list(ray_pods.faults(pod)) == []
    broken(pod)
    assert rule in {found for found, _ in ray_pods.faults(pod)}


EVICTED = "a drain evicts no head, of however many clusters"


@pytest.mark.parametrize("spec", [{"minAvailable": 1}, {"minAvailable": "100%"}, {"maxUnavailable": 0}])
def test_budgets_that_have_a_head_to_spare_or_cannot_be_counted(spec: Manifest) -> None:
    budget = one(overlay("gpu"), "PodDisruptionBudget", "retort-heads")
    assert list(ray_pods.budget_faults(budget)) == []
    del budget["spec"]["minAvailable"]
    budget["spec"] |= spec
    assert [rule for rule, _ in ray_pods.budget_faults(budget)] == [EVICTED]


def test_no_rule_of_pods_of_ray_is_without_a_pod_that_breaks_it() -> None:
    assert rules_of(ray_pods) == {EVICTED, *(rule for rule, _ in RAY_PODS)}


DEFINITIONS: list[tuple[str, Break, str]] = [
    ("RayCluster", lambda m: m["spec"].update(rayversion="2.60.0"), "rayversion"),
    ("RayCluster", lambda m: container(first_pod(m)).update(imagePullPolicies="Always"), "imagePullPolicies"),
    ("RayCluster", lambda m: group(m).update(maxReplicas="8"), "not of type 'integer'"),
    ("RayCluster", lambda m: head(m)["rayStartParams"].update({"num-cpus": 0}), "not of type 'string'"),
    ("RayCluster", lambda m: cluster(m).pop("headGroupSpec"), "'headGroupSpec' is a required property"),
    ("RayCluster", lambda m: cluster(m)["autoscalerOptions"].update(version="v3"), "is not one of"),
    ("RayCluster", lambda m: container(first_pod(m))["ports"].append({"containerPort": 8265}), "is there twice"),
    ("RayJob", lambda m: m["spec"].update(backoffLimits=1), "backoffLimits"),
    ("RayService", lambda m: m["spec"].update(serveConfigV2={}), "not of type 'string'"),
    ("RayCronJob", lambda m: m["spec"].pop("schedule"), "'schedule' is a required property"),
    ("LocalQueue", lambda m: m["spec"].update(clusterQueue="Not_A_Name"), "does not match"),
    ("ClusterQueue", lambda m: m["spec"].update(queueingStrategy="Random"), "is not one of"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "broken", "told"), DEFINITIONS)
def test_definitions_refuse(kind: str, broken: Break, told: str) -> None:
    manifest = valid(kind)
    assert crd_schemas.faults(manifest) == []
    broken(manifest)
    assert told in " ".join(crd_schemas.faults(manifest))


def rule_of_deletion(**condition: str) -> Break:
    rules = {"deletionRules": [{"policy": "DeleteCluster", "condition": condition}]}
    return lambda m: m["spec"].update(deletionStrategy=rules)


def tolerate(**toleration: Any) -> Break:
    return lambda m: m["spec"].update(tolerations=[toleration])


def quota(**changes: Any) -> Break:
    def broken(manifest: Manifest) -> None:
        (resources,) = manifest["spec"]["resourceGroups"]
        resources["flavors"][0]["resources"][0].update(changes)

    return broken


BOTH = {"deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]}
POLICY = {"policy": "DeleteCluster"}
WITH_CEL: list[tuple[str, str, Break]] = [
    ("RayCluster", "self in ['ray.io/kuberay-operator', ", lambda m: m["spec"].update(managedBy="somebody")),
    ("RayJob", "!(has(self.jobStatus) && has(", rule_of_deletion(jobStatus="FAILED", jobDeploymentStatus="Failed")),
    ("RayJob", "has(self.jobStatus) || has(", rule_of_deletion()),
    ("RayJob", "!((has(self.onSuccess) || has(self.onFailure)) && has(",
     lambda m: m["spec"].update(deletionStrategy={**BOTH, "onSuccess": POLICY, "onFailure": POLICY})),
    ("RayJob", "((has(self.onSuccess) && has(self.onFailure)) || has(",
     lambda m: m["spec"].update(deletionStrategy={"onSuccess": POLICY})),
    ("ClusterQueue", "!has(self.cohortName) && has(self.resourceGroups)", quota(borrowingLimit="1")),
    ("ClusterQueue", "!has(self.preference) ||", lambda m: m["spec"].update(flavorFungibility={
        "preference": "BorrowingOverPreemption", "whenCanBorrow": "MayStopSearch", "whenCanPreempt": "TryNextFlavor"})),
    ("ClusterQueue", "!(self.reclaimWithinCohort == 'Never'", lambda m: m["spec"].update(preemption={
        "reclaimWithinCohort": "Never", "borrowWithinCohort": {"policy": "LowerPriority"}})),
    ("ClusterQueue", "self.flavors.all(x, size(x.resources) ==",
     lambda m: m["spec"]["resourceGroups"][0]["coveredResources"].pop()),
    ("ResourceFlavor", "!has(self.topologyName) || self.nodeLabels.size()",
     lambda m: m.update(spec={"topologyName": "rack", "nodeLabels": {}})),
    ("ResourceFlavor", "self.all(x, x.effect in [", lambda m: m.update(spec={"nodeTaints": [
        {"key": "a", "value": "b", "effect": "Explode"}]})),
    ("ResourceFlavor", "self.all(x, !has(x.key) ?",
     each(lambda m: m.update(spec={}), tolerate(operator="Equal"))),
    ("ResourceFlavor", "self.all(x, has(x.tolerationSeconds) ?",
     each(lambda m: m.update(spec={}), tolerate(key="a", effect="NoSchedule", tolerationSeconds=1))),
    ("ResourceFlavor", "self.all(x, !has(x.operator) ||",
     each(lambda m: m.update(spec={}), tolerate(key="a", operator="Roughly"))),
    ("ResourceFlavor", "self.all(x, has(x.operator) && x.operator == 'Exists'",
     each(lambda m: m.update(spec={}), tolerate(key="a", operator="Exists", value="b"))),
    ("ResourceFlavor", "self.all(x, !has(x.effect) ||",
     each(lambda m: m.update(spec={}), tolerate(key="a", effect="Explode"))),
]  # fmt: skip


def messages(kind: str, rule: str) -> set[str]:
    """What the rules of a kind that begin so say."""
    schema = crd_schemas.schemas()[crd_schemas.key_of(valid(kind))]["schema"]
    return {message for _, text, message in crd_schemas.cel_rules(schema) if text.startswith(rule)}


@pytest.mark.parametrize(("kind", "rule", "broken"), WITH_CEL, ids=[f"{kind} {rule}" for kind, rule, _ in WITH_CEL])
def test_rules_in_cel_refuse(kind: str, rule: str, broken: Break) -> None:
    manifest = valid(kind)
    assert crd_schemas.faults(manifest) == []
    broken(manifest)
    said = {fault.partition(": ")[2] for fault in crd_schemas.faults(manifest)}
    assert said & messages(kind, rule), said


def test_rules_of_changes_compare_with_what_is_there() -> None:
    old, new = valid("RayCluster"), valid("RayCluster")
    cluster(old)["gcsFaultToleranceOptions"]["backend"] = "redis"
    cluster(new)["gcsFaultToleranceOptions"]["backend"] = "rocksdb"
    assert crd_schemas.faults(new) == []
    assert crd_schemas.faults(new, old) != []
    assert crd_schemas.faults(old, old) == []
    before, after = valid("ResourceFlavor"), valid("ResourceFlavor")
    before["spec"] = {"topologyName": "rack", "nodeLabels": {"a": "b"}}
    after["spec"] = {"topologyName": "row", "nodeLabels": {"a": "b"}}
    assert crd_schemas.faults(after) == []
    assert crd_schemas.faults(after, before) != []


def test_no_rule_in_cel_is_without_a_manifest_that_breaks_it() -> None:
    every = {text for entry in crd_schemas.schemas().values() for _, text, _ in crd_schemas.cel_rules(entry["schema"])}
    of_changes = {text for text in every if "oldSelf" in text}
    untried = {text for text in every - of_changes if not any(text.startswith(rule) for _, rule, _ in WITH_CEL)}
    assert untried == set()
    assert len(every) >= 15


@pytest.mark.parametrize(
    ("kind", "name", "broken"),
    [
        ("NetworkPolicy", "retort-head", lambda m: m["spec"].update(policytypes=["Ingress"])),
        ("PodDisruptionBudget", "retort-heads", lambda m: m["spec"].update(minAvailable=[1])),
        ("StatefulSet", "retort-redis", lambda m: m["spec"].pop("selector")),
        ("PersistentVolumeClaim", "retort-shared", lambda m: m["spec"].update(accessModes="ReadWriteMany")),
    ],
)
def test_kubernetes_refuses(kind: str, name: str, broken: Break) -> None:
    manifest = one(overlay("gpu"), kind, name)
    kubernetes_validate.validate(manifest, "1.37.0", strict=True)
    broken(manifest)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.37.0", strict=True)
