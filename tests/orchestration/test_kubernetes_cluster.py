"""The cluster that a run file asks for: pods that hold its workers, as many as hold all, in a queue or growing."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from retort import cli
from retort.config import validate
from retort.errors import ConfigError
from retort.orchestration.demand import ACCELERATOR_LABEL, Demand, Node, demands_of, room
from retort.orchestration.jobs import JOBS, load_job
from retort.orchestration.kubernetes import CLUSTER, KubernetesJob, Placing, render
from retort.orchestration.kubernetes_cluster import GPU, Shape, shape_cluster
from retort.orchestration.submit import Execution
from retort.run_config import PoolConfig, WorkersConfig
from tests.k8s import crd_schemas, operator_rules, ray_pods
from tests.k8s.pod_security import careful, restricted
from tests.k8s.rendering import K8S, ROOT, pods

CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
Manifest = dict[str, Any]


def template() -> Manifest:
    return yaml.safe_load((ROOT / CLUSTER).read_text())["spec"]  # type: ignore[no-any-return]


def groups_of(cluster: Manifest) -> dict[str, Manifest]:
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def limits_of(group: Manifest) -> dict[str, str]:
    resources = group["template"]["spec"]["containers"][0]["resources"]
    amounts = ("cpu", "memory", GPU)
    assert {name: resources["requests"].get(name) for name in amounts} == {
        name: resources["limits"].get(name) for name in amounts
    }
    return resources["limits"]  # type: ignore[no-any-return]


def nodes_of(cluster: Manifest) -> list[Node]:
    """What Ray would have if the cluster had all its pods: 70 % of a pod's memory, the rest is its object store."""
    return [
        Node(f"{name}-{number}", name, True, float(limits["cpu"]), float(limits.get(GPU, 0)), "",
             0.7 * float(limits["memory"].removesuffix("Gi")), group.get("labels", {}))
        for name, group in groups_of(cluster).items() for limits in [limits_of(group)]
        for number in range(group["maxReplicas"])
    ]  # fmt: skip


DEMANDS = st.builds(
    lambda count, cpus, gpus, memory, labels: Demand("workers", count, 1, cpus, gpus, 0.0, memory, labels),
    st.integers(1, 40),
    st.sampled_from([0.5, 1.0, 3.0, 8.0, 17.0]),
    st.sampled_from([0.0, 0.25, 1.0, 4.0]),
    st.sampled_from([0.0, 2.0, 100.0]),
    st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}]),
)


@settings(max_examples=200)
@given(st.lists(DEMANDS, min_size=1, max_size=4), st.booleans())
def test_the_whole_cluster_holds_all_workers_of_each_job_and_the_operator_takes_it(
    demands: list[Demand], is_fixed: bool
) -> None:
    cluster = template()
    shape_cluster(cluster, Shape(demands, is_fixed=is_fixed))
    for demand in demands:
        # CPU workers would also fit on GPU pods; they are not counted on.
        kind = "gpu" if demand.gpus else "cpu"
        nodes = [node for node in nodes_of(cluster) if node.node_id.startswith(kind)]
        assert room(nodes, demand) == demand.count
    groups = groups_of(cluster)
    assert len(groups) == len({(demand.gpus > 0, tuple(demand.labels.items())) for demand in demands})
    for group in groups.values():
        assert group["minReplicas"] == group["replicas"] == (group["maxReplicas"] if is_fixed else 0)
    found = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "c"}, "spec": cluster}
    assert operator_rules.faults(found) == []


def test_a_cluster_is_not_larger_than_its_job() -> None:
    cluster = template()
    shape_cluster(cluster, Shape([Demand("workers", 20, 1, 1.0, 0.0, 0.0)]))
    (group,) = cluster["workerGroupSpecs"]
    assert (group["groupName"], group["maxReplicas"]) == ("cpu", math.ceil(20 / 8))
    assert limits_of(group) == {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "40Gi"}


def test_a_job_of_its_driver_alone_has_a_cluster_too() -> None:
    cluster = template()
    shape_cluster(cluster, Shape([]))
    assert [(g["groupName"], g["minReplicas"], g["maxReplicas"]) for g in cluster["workerGroupSpecs"]] == [
        ("cpu", 0, 1)
    ]


def test_the_driver_has_a_pod_of_its_own_where_it_needs_one() -> None:
    cluster = template()
    shape_cluster(cluster, Shape([Demand("workers", 2, 2, 1.0, 1.0, 0.0)], driver_cpus=12.0))
    groups = groups_of(cluster)
    assert (groups["cpu"]["maxReplicas"], limits_of(groups["cpu"])["cpu"]) == (1, "12")
    assert groups["gpu"]["maxReplicas"] == 2


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_run_file_states_its_demand(file: Path) -> None:
    config = load_job(file, expected=yaml.safe_load(file.read_text())["job"])
    demands = demands_of(config)
    has_workers = any(
        f"\n  {name}:" in file.read_text() or f"\n{name}:" in file.read_text() for name in ("pool", "workers")
    )
    assert bool(demands) == has_workers


def test_trials_of_a_sweep_run_side_by_side() -> None:
    config = load_job(ROOT / "tune_configs" / "demo.yaml", expected="tune")
    assert {d.count % config.max_concurrent for d in demands_of(config)} == {0}  # type: ignore[union-attr]
    assert len(demands_of(config)) == len([job for job in config.trial])  # type: ignore[union-attr]  # noqa: C416


DISTILL = """
job: distill
output: s3://bucket/student
teacher: s3://bucket/teacher
data: s3://bucket/data
student: {kind: teacher}
method: {kind: cfg_distill, guidance: {kind: two_term, scale: 1.5}}
training:
  steps: 10
  batch: {max_utterances: 4, max_frames: 100}
  optimizer: {learning_rate: 0.001}
  workers: {num_workers: 3, use_gpu: true, gpus_per_worker: 2, cpus_per_worker: 12, memory_gib_per_worker: 140,
            accelerator: H100, labels: {zone: a}}
"""


@pytest.fixture
def distill(tmp_path: Path) -> KubernetesJob:
    file = tmp_path / "distill.yaml"
    file.write_text(DISTILL)
    return KubernetesJob("distill", file)


def with_placing(job: KubernetesJob, **changes: Any) -> KubernetesJob:
    return KubernetesJob(job.job, job.config, placing=Placing(**changes))


def test_workers_of_the_run_file_become_groups_pods_and_labels(distill: KubernetesJob) -> None:
    selector = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    _, ray_job = render(with_placing(distill, node_selector=selector))
    (group,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["labels"] == {ACCELERATOR_LABEL: "H100", "zone": "a"}
    assert group["template"]["spec"]["nodeSelector"] == selector
    assert {name: limits_of(group)[name] for name in ("cpu", "memory", GPU)} == {
        "cpu": "12",
        "memory": "200Gi",
        GPU: "2",
    }
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 3)
    assert crd_schemas.faults(ray_job) == []
    assert operator_rules.faults(ray_job) == []
    for place, pod in pods(ray_job):
        assert [*restricted(pod), *careful(pod)] == [], place
    assert [told for pod in ray_pods.pods_of_ray(ray_job) for told in ray_pods.faults(pod)] == []


def test_an_accelerator_without_its_nodes_is_refused(distill: KubernetesJob) -> None:
    with pytest.raises(ConfigError, match=r"accelerator H100 .* --node-selector nvidia\.com/gpu\.product="):
        render(distill)


def test_a_queue_gets_a_cluster_of_a_fixed_size_that_waits(distill: KubernetesJob) -> None:
    _, ray_job = render(with_placing(distill, queue="team", node_selector={"a": "b"}))
    spec = ray_job["spec"]
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert (spec["suspend"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (True, 0, True)
    cluster = spec["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster
    assert "autoscalerOptions" not in cluster
    assert [(g["replicas"], g["minReplicas"], g["maxReplicas"]) for g in cluster["workerGroupSpecs"]] == [(3, 3, 3)]
    assert crd_schemas.faults(ray_job) == []
    assert operator_rules.faults(ray_job) == []
    # The same as the overlay does to the examples.
    overlay = yaml.safe_load((K8S / "overlays" / "kueue" / "jobs.yaml").read_text())
    for patch in overlay[:3]:
        value: Any = ray_job
        for step in patch["path"].strip("/").split("/"):
            value = value[step.replace("~1", "/")]
        assert value == patch["value"] or value == "team"
    again = KubernetesJob("distill", distill.config, placing=Placing(queue="team"), execution=Execution(retries=1))
    with pytest.raises(ConfigError, match="--retries 1 with --queue team"):
        render(again)


@pytest.mark.parametrize("name", sorted(JOBS))
def test_every_job_fits_into_a_queue(name: str) -> None:
    _, ray_job = render(KubernetesJob(name, K8S / "jobs" / "runs" / f"{name}.yaml", placing=Placing(queue="team")))
    assert crd_schemas.faults(ray_job) == []
    assert operator_rules.faults(ray_job) == []


def test_the_store_is_named_and_its_keys_are_not(distill: KubernetesJob) -> None:
    placing = {"s3_secret": "mine", "s3_endpoint": "https://store.example:9000", "s3_region": "eu-1", "cache_gib": 700}
    _, ray_job = render(with_placing(distill, node_selector={"a": "b"}, **placing))
    cluster = ray_job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 2
    assert [told for pod in ray_pods.pods_of_ray(ray_job) for told in ray_pods.faults(pod)] == []
    for group in groups:
        container = group["template"]["spec"]["containers"][0]
        disks = [volume for volume in group["template"]["spec"]["volumes"] if "ephemeral" in volume]
        assert [disk["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"] for disk in disks] == [
            {"storage": "700Gi"}
        ]
        assert container["envFrom"] == [{"secretRef": {"name": "mine"}}]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["AWS_ENDPOINT_URL_S3"] == "https://store.example:9000"
        assert environment["AWS_REGION"] == "eu-1"
        assert [name for name in environment if "SECRET" in name or "ACCESS_KEY" in name or "TOKEN" in name] == []
    submitter = ray_job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    assert "envFrom" not in submitter, "it reaches the dashboard only"
    assert crd_schemas.faults(ray_job) == []


def test_without_a_name_the_secret_of_the_base_is_read_if_it_is_there(distill: KubernetesJob) -> None:
    _, ray_job = render(with_placing(distill, node_selector={"a": "b"}))
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "retort-s3", "optional": True}}]
    assert [entry["name"] for entry in head["env"] if entry["name"].startswith("AWS_")] == []


@pytest.mark.parametrize(
    "endpoint",
    ["https://me:hunter2@store.example", "ftp://store.example", "store.example", "https://s.example/?k=hunter2"],
)
def test_an_endpoint_that_is_none_or_holds_a_password_is_refused_and_not_repeated(
    distill: KubernetesJob, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["submit", "distill", str(distill.config), "--kubernetes", "--dry-run", "--s3-endpoint", endpoint]
    assert cli.run(asked) == ConfigError.exit_code
    told = capsys.readouterr()
    assert "--s3-secret" in told.err
    assert "hunter2" not in told.out + told.err


def test_options_of_kubernetes_are_refused_elsewhere(
    distill: KubernetesJob, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (
        ["--queue", "q"],
        ["--node-selector", "a=b"],
        ["--s3-secret", "s"],
        ["--cache-gib", "9"],
        ["--image", "i"],
    ):
        assert cli.run(["submit", "distill", str(distill.config), "--dry-run", *option]) == ConfigError.exit_code
        assert f"{option[0]} is for Kubernetes" in capsys.readouterr().err


def test_the_command_line_reaches_the_manifest(distill: KubernetesJob, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--queue", "team", "--node-selector", "a=b", "--node-selector", "c=d", "--s3-secret", "mine"]
    options += [
        "--s3-endpoint",
        "http://store:9000",
        "--s3-region",
        "eu-1",
        "--namespace",
        "ours",
        "--cache-gib",
        "700",
    ]
    assert cli.run(["submit", str(distill.config), "--kubernetes", "--dry-run", *options]) == 0
    placing = Placing("ours", "team", {"a": "b", "c": "d"}, "mine", "http://store:9000", "eu-1", 700)
    assert tuple(yaml.safe_load_all(capsys.readouterr().out)) == render(
        KubernetesJob("distill", distill.config, placing=placing)
    )


def test_labels_and_memory_reach_ray_by_the_same_demand() -> None:
    tree = {"memory_gib_per_worker": 2, "accelerator": "A100", "labels": {"zone": "a"}}
    labels = {ACCELERATOR_LABEL: "A100", "zone": "a"}
    pool = Demand.of_pool(validate({**tree, "gpus_per_worker": 0.5}, PoolConfig, where="t"))
    assert pool.options == {"num_cpus": 1.0, "num_gpus": 0.5, "memory": 2 << 30, "label_selector": labels}
    training = Demand.of_training(validate({**tree, "use_gpu": True}, WorkersConfig, where="t"))
    assert training.resources == {"CPU": 1.0, "GPU": 1.0, "memory": 2 << 30}
    assert training.labels == labels
    assert str(pool) == f"2 workers of 1 CPU and 0.5 GPUs and 2 GiB each on nodes with {ACCELERATOR_LABEL}=A100, zone=a"
    entry = {"NodeID": "n", "Alive": True, "Resources": {"CPU": 4.0, "GPU": 4.0, "memory": 3.0 * (1 << 30)}}
    assert Node.from_ray({**entry, "Labels": labels}).room(pool) == 1, "memory for one alone"
    assert Node.from_ray({**entry, "Labels": {"zone": "a"}}).room(pool) == 0, "another accelerator"
    for wrong in ({"labels": {"a b": "c"}}, {"labels": {"a": "b c"}}, {"accelerator": "no such/thing"}):
        with pytest.raises(ConfigError):
            validate(wrong, PoolConfig, where="t")
