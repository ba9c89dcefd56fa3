"""A job as a RayJob of KubeRay, rendered from k8s/; applied by kubectl where that has a cluster, else written."""

import json
import re
import shlex
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from retort.errors import ConfigError, MissingRequirementError, ResourceError, StorageError
from retort.orchestration.demand import demands_of
from retort.orchestration.kubernetes_cluster import Manifest, Shape, shape_cluster
from retort.orchestration.submit import Execution, as_yaml, identity_of, project_root, rooted_config
from retort.run_config import AnyConfig

CLUSTER = Path("k8s/cluster/cluster.yaml")
EVERY_JOB = Path("k8s/jobs/every-job.yaml")
MOUNT = Path("/etc/retort/run")
RUN_FILE = "run.yaml"
SHARED = Path("/shared")
"""Where every pod has the storage that they share; run files' relative paths start there."""
MAX_RUN_FILE_BYTES = 900_000
"""A ConfigMap holds at most 1 MiB."""
_APPLY_S = 120.0
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE|_KEY(_ID)?$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\bA[KS]IA[0-9A-Z]{16}\b|://[^/@\s:]*:[^/@\s]+@|-----BEGIN [A-Z ]*PRIVATE KEY-----")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True)
class Placing:
    """Where on Kubernetes a job runs, and which store it reaches.

    Attributes:
        namespace: the base of k8s/ has been applied there.
        queue: Kueue's LocalQueue in it; the job then waits for room for its whole cluster, which keeps its size.
        node_selector: labels of the nodes that workers run on.
        s3_secret: name of the Secret whose keys the pods get as variables, and which must be there; ``None`` takes the
            one that k8s/ names if it is there.
        s3_endpoint: url of a store that is not AWS.
        s3_region: its region.
        cache_gib: of each pod's disk for what is in a store; who works on data has all of them there. ``None`` is what
            k8s/ has.
    """

    namespace: str = "retort"
    queue: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    s3_secret: str | None = None
    s3_endpoint: str | None = None
    s3_region: str | None = None
    cache_gib: int | None = None

    def check(self, execution: Execution) -> None:
        """Refuse what cannot be together, and what is no name: a value of a secret in its place is not repeated.

        Raises:
            ConfigError: names what, and the cure.
        """
        for option, name in (("--namespace", self.namespace), ("--queue", self.queue), ("--s3-secret", self.s3_secret)):
            if name is not None and not _NAME.fullmatch(name):
                raise ConfigError(f"{option}: expected the name of an object, of small letters, digits, - and .")
        for option, text in (
            ("--s3-region", self.s3_region),
            *(("--node-selector", v) for v in self.node_selector.values()),
        ):
            if text is not None and (_SECRET_VALUE.search(text) or not _LABEL_VALUE.fullmatch(text)):
                raise ConfigError(f"{option}: expected letters, digits, -, _ and ., at most 63")
        if self.queue is not None and execution.retries:
            raise ConfigError(
                f"--retries {execution.retries} with --queue {self.queue}: another cluster would take what others wait "
                "for; leave --retries out and submit again, the job goes on from what it wrote"
            )
        if self.s3_endpoint is not None:
            parts = urllib.parse.urlsplit(self.s3_endpoint)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
                raise ConfigError(  # what is given may hold a password
                    "--s3-endpoint: expected http(s)://host:port and nothing else; keys belong into the Secret that "
                    "--s3-secret names"
                )


@dataclass(frozen=True)
class KubernetesJob:
    """What to run, and where.

    Attributes:
        job: name of the job.
        config: its run file, on this machine.
        overrides: ``a.b=value``, applied here.
        placing: namespace, queue, nodes and store.
        image: what the pods run; ``None`` is the one that k8s/ names.
        root: folder that the run file's relative paths start from, below a mount of the pods.
        execution: how it is run; a retry is a new cluster.
    """

    job: str
    config: Path
    overrides: tuple[str, ...] = ()
    placing: Placing = Placing()
    image: str | None = None
    root: Path = SHARED
    execution: Execution = field(default_factory=Execution)


def render(job: KubernetesJob) -> tuple[Manifest, Manifest]:
    """The ConfigMap with the resolved run file, and the RayJob that reads it.

    Both have one name, which follows from everything in them: the same job is the same object, another is another.

    Raises:
        ConfigError: the run file is faulty, a value is a secret, or options do not fit.
        ResourceError: the run file is too large for a ConfigMap.
        MissingRequirementError: k8s/ is not there.
    """
    job.placing.check(job.execution)
    config = rooted_config(job.job, job.config, job.overrides, job.root)
    run_file = as_yaml(config)
    _refuse_secrets(run_file, job.execution.environment)
    if (size := len(run_file.encode())) > MAX_RUN_FILE_BYTES:
        raise ResourceError(
            f"{job.config}: {size} bytes as it is resolved, a ConfigMap takes {MAX_RUN_FILE_BYTES}; put it on "
            "the cluster's storage and run it there, with k8s/jobs as a pattern"
        )
    spec = _spec(job, config)
    name = identity_of(job.job, json.dumps([run_file, spec, job.placing.queue], sort_keys=True))
    labels = {"retort/job": job.job, "retort/run": name}
    metadata = {"name": name, "namespace": job.placing.namespace, "labels": labels}
    queue = {} if job.placing.queue is None else {_QUEUE_LABEL: job.placing.queue}
    for pod in _pods_of(spec["rayClusterSpec"]):
        pod["volumes"].append({"name": "run", "configMap": {"name": name}})
        pod["containers"][0]["volumeMounts"].append({"name": "run", "mountPath": str(MOUNT), "readOnly": True})
    files = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True}
    return (
        {**files, "data": {RUN_FILE: run_file}},
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {**metadata, "labels": {**labels, **queue}},
            "spec": spec,
        },
    )


def _spec(job: KubernetesJob, config: AnyConfig) -> Manifest:
    """Of the RayJob, without the run file's volume."""
    execution, placing = job.execution, job.placing
    cluster = _template(CLUSTER)["spec"]
    is_queued = placing.queue is not None
    shape_cluster(
        cluster, Shape(demands_of(config), execution.driver_cpus or 0.0, placing.node_selector, is_fixed=is_queued)
    )
    _give_store(cluster, placing)
    resume = [] if execution.resume else ["--no-resume"]
    spec: Manifest = {
        **_template(EVERY_JOB)["spec"],
        "entrypoint": shlex.join(["retort", job.job, str(MOUNT / RUN_FILE), "--json", *resume]),
        "backoffLimit": execution.retries,
        "rayClusterSpec": cluster,
    }
    if is_queued:
        spec["suspend"] = True  # until Kueue takes it away
    if execution.timeout_s is not None:
        spec["activeDeadlineSeconds"] = execution.timeout_s
    if execution.driver_cpus is not None:
        spec["entrypointNumCpus"] = execution.driver_cpus
    if execution.environment:
        spec["runtimeEnvYAML"] = yaml.safe_dump({"env_vars": dict(execution.environment)})
    if job.image is not None:
        for pod in (*_pods_of(spec["rayClusterSpec"]), spec["submitterPodTemplate"]["spec"]):
            pod["containers"][0]["image"] = job.image
    return spec


def _give_store(cluster: Manifest, placing: Placing) -> None:
    """Which Secret holds the keys, by its name alone, where the store is, and how much of it a pod holds."""
    plain = {"AWS_ENDPOINT_URL_S3": placing.s3_endpoint, "AWS_REGION": placing.s3_region}
    for pod in _pods_of(cluster):
        container = pod["containers"][0]
        container["env"] += [{"name": name, "value": value} for name, value in plain.items() if value is not None]
        if placing.s3_secret is not None:
            # Not optional: a pod that waits for its Secret is seen, a job without keys fails late.
            container["envFrom"] = [{"secretRef": {"name": placing.s3_secret}}]
        if placing.cache_gib is not None:
            (disk,) = (volume["ephemeral"] for volume in pod["volumes"] if volume["name"] == "cache")
            disk["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"] = f"{placing.cache_gib}Gi"


def _template(path: Path) -> Manifest:
    file = project_root() / path
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingRequirementError(
            f"{file}: no such file; run from a git clone of Retort that was installed with `pip install -e .`"
        ) from None
    return json.loads(json.dumps(tree))  # type: ignore[no-any-return]  # what YAML aliases share becomes copies


def _pods_of(cluster: Manifest) -> Iterator[Manifest]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def _refuse_secrets(run_file: str, environment: Mapping[str, str]) -> None:
    cure = "put it into a Secret of the namespace (retort-s3 is read by every pod), see docs/kubernetes.md"
    for name, value in environment.items():
        if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
            raise ConfigError(f"--env {name}: a secret would stand in the manifest for everybody to read; {cure}")
    if _SECRET_VALUE.search(run_file):
        raise ConfigError(f"the run file holds a key or a password, and a ConfigMap is no place for it; {cure}")


def manifest_text(job: KubernetesJob) -> str:
    """The rendered manifests, as YAML."""
    return yaml.safe_dump_all(render(job), sort_keys=False, allow_unicode=True, width=118)


def submit_to_kubernetes(job: KubernetesJob, *, folder: Path, log: Callable[[str], None]) -> int:
    """Apply the job, or write it into ``folder`` where kubectl is missing or has no cluster; returns 0.

    Nobody waits for its end here: the operator runs it, and ``log`` says how to look.

    Raises:
        ConfigError, ResourceError, MissingRequirementError: as :func:`render`.
        StorageError: the cluster does not answer or refuses the job, in kubectl's words.
    """
    text, name = manifest_text(job), render(job)[1]["metadata"]["name"]
    kubectl = shutil.which("kubectl")
    context = None if kubectl is None else _context(kubectl)
    if kubectl is None or context is None:
        why = "kubectl is not on the PATH" if kubectl is None else "kubectl has no current context"
        file = folder / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        log(f"{why}, so nothing was applied; wrote {file}; apply it with: kubectl apply -f {file}\n")
        return 0
    applied = _apply(kubectl, text, context)
    where = f"-n {job.placing.namespace}"
    log(f"{applied.rstrip()}\n{job.job} is {name} in namespace {job.placing.namespace} of {context}\n")
    if f"rayjob.ray.io/{name} unchanged" in applied:
        log(f"it was there before; to run it again: kubectl delete rayjob {where} {name}, and submit again\n")
    log(f"its state: kubectl get rayjob {where} {name}; its log: kubectl logs {where} -f job/{name}\n")
    return 0


def _context(kubectl: str) -> str | None:
    asked = subprocess.run([kubectl, "config", "current-context"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def _apply(kubectl: str, text: str, context: str) -> str:
    command = [kubectl, "--context", context, "apply", "-f", "-"]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=_APPLY_S)
    except subprocess.TimeoutExpired:
        raise StorageError(f"the cluster of {context} does not answer within {_APPLY_S:.0f} s; is it up?") from None
    if done.returncode:
        reason = " ".join(done.stderr.split())[-600:]
        raise StorageError(f"the cluster of {context} did not take the job: {reason}")
    return done.stdout
