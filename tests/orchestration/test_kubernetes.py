"""A run file as a RayJob: what is rendered is what the operator takes, it has a name of its own, and no secrets."""

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from retort import cli
from retort.config import validate
from retort.errors import ConfigError, MissingRequirementError, ResourceError, StorageError
from retort.orchestration import kubernetes
from retort.orchestration.jobs import JOBS, load_job
from retort.orchestration.kubernetes import KubernetesJob, Placing, render, submit_to_kubernetes
from retort.orchestration.submit import Execution
from retort.run_config import RunConfig
from tests.k8s import crd_schemas, operator_rules, ray_pods
from tests.k8s.pod_security import careful, restricted
from tests.k8s.rendering import K8S, KUBECTL, ROOT, pods
from tests.orchestration import kube_api
from tests.patience import HANG_S

RUNS = sorted((K8S / "jobs" / "runs").glob("*.yaml"))


def job_of(file: Path) -> KubernetesJob:
    return KubernetesJob(yaml.safe_load(file.read_text())["job"], file)


def test_there_is_a_run_file_of_each_job() -> None:
    assert {file.stem for file in RUNS} == set(JOBS)


@pytest.mark.parametrize("file", RUNS, ids=lambda file: file.stem)
def test_any_run_file_becomes_a_job_that_the_operator_takes(file: Path) -> None:
    config_map, ray_job = render(job_of(file))
    assert crd_schemas.faults(ray_job) == []
    assert operator_rules.faults(ray_job) == []
    for place, pod in pods(ray_job):
        assert [*restricted(pod), *careful(pod)] == [], place
    assert [told for pod in ray_pods.pods_of_ray(ray_job) for told in ray_pods.faults(pod)] == []
    # What the driver is told to read is mounted where it looks, and is the run file.
    program, job, path, *rest = ray_job["spec"]["entrypoint"].split()
    assert (program, job, rest) == ("retort", file.stem, ["--json"])
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mount = next(m for m in head["containers"][0]["volumeMounts"] if m["mountPath"] == str(Path(path).parent))
    volume = next(v for v in head["volumes"] if v["name"] == mount["name"])
    assert volume["configMap"]["name"] == config_map["metadata"]["name"] == ray_job["metadata"]["name"]
    tree = yaml.safe_load(config_map["data"][Path(path).name])
    assert validate(tree, RunConfig, where="the ConfigMap") == load_job(file, expected=job)  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path) -> KubernetesJob:
    file = tmp_path / "report.yaml"
    file.write_text("job: report\nevaluation: runs/evaluation\noutput: runs/report\n")
    return KubernetesJob("report", file)


def name_of(job: KubernetesJob) -> str:
    return str(render(job)[1]["metadata"]["name"])


def test_the_name_follows_from_everything_that_is_run(job: KubernetesJob) -> None:
    others = [
        replace(job, overrides=("output=runs/other",)),
        replace(job, image="registry.example/retort:0.2.0"),
        replace(job, root=Path("/elsewhere")),
        replace(job, execution=Execution(resume=False)),
        replace(job, execution=Execution(environment={"A": "b"})),
        replace(job, placing=Placing(queue="one")),
        replace(job, placing=Placing(queue="two")),
        replace(job, placing=Placing(s3_secret="other")),
        replace(job, placing=Placing(s3_endpoint="https://store.example:9000")),
    ]
    names = {name_of(job), *map(name_of, others)}
    assert len(names) == 1 + len(others)
    assert name_of(job) == name_of(replace(job))
    assert all(len(name) <= operator_rules.MAX_NAME["RayJob"] for name in names)


def test_options_reach_the_job(job: KubernetesJob) -> None:
    execution = Execution(resume=False, retries=3, timeout_s=60, driver_cpus=2.0, environment={"LANG": "C"})
    image = "registry.example/retort:0.2.0"
    config_map, ray_job = render(replace(job, placing=Placing(namespace="mine"), image=image, execution=execution))
    spec = ray_job["spec"]
    assert config_map["metadata"]["namespace"] == ray_job["metadata"]["namespace"] == "mine"
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["entrypointNumCpus"]) == (3, 60, 2.0)
    assert spec["entrypoint"].endswith(" --no-resume")
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {"LANG": "C"}}
    assert {container["image"] for _, pod in pods(ray_job) for container in pod["containers"]} == {image}
    assert crd_schemas.faults(ray_job) == []
    assert operator_rules.faults(ray_job) == []
    tree = yaml.safe_load(config_map["data"]["run.yaml"])
    assert tree["output"] == "/shared/runs/report"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_SESSION_TOKEN", "x"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("DB_PASSWORD", "x"),
        ("PLACE", "https://me:hunter2@store.example/bucket"),
        ("ANY", "AKIA" + "A" * 16),
    ],
)
def test_secrets_are_refused_and_stand_in_no_manifest(job: KubernetesJob, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match="Secret of the namespace") as error:
        render(replace(job, execution=Execution(environment={name: value})))
    assert value == "x" or value not in str(error.value)


def test_secrets_of_the_run_file_are_refused(job: KubernetesJob) -> None:
    with pytest.raises(ConfigError, match="holds a key or a password"):
        render(replace(job, overrides=(f"output=/shared/AKIA{'B' * 16}",)))


def test_a_secret_of_this_machine_is_not_carried_along(job: KubernetesJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-seen")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-to-be-seen")
    assert "not-to-be-seen" not in kubernetes.manifest_text(job)


def test_a_run_file_that_no_config_map_holds_is_refused(job: KubernetesJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "MAX_RUN_FILE_BYTES", 10)
    with pytest.raises(ResourceError, match="bytes as it is resolved, a ConfigMap takes 10"):
        render(job)


def test_without_the_manifests_it_says_what_to_do(
    job: KubernetesJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "project_root", lambda: tmp_path)
    with pytest.raises(MissingRequirementError, match="git clone of Retort"):
        render(job)


def with_kubectl(monkeypatch: pytest.MonkeyPatch, home: Path, server: str | None = None) -> None:
    """The real kubectl, with a cluster at ``server`` or without one."""
    monkeypatch.setenv("PATH", str(KUBECTL.parent), prepend=os.pathsep)
    monkeypatch.setenv("HOME", str(home))  # where it keeps what it discovers
    monkeypatch.setenv("KUBECONFIG", str(home / "kubeconfig"))
    if server is None:
        return
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "ours",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "ours", "context": {"cluster": "c", "user": "u"}}],
    }
    (home / "kubeconfig").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("has_kubectl", [True, False])
def test_where_there_is_no_cluster_the_manifest_is_written(
    job: KubernetesJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_kubectl: bool,
) -> None:
    with_kubectl(monkeypatch, tmp_path)
    if not has_kubectl:
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.run(["submit", "report", str(job.config), "--kubernetes"]) == 0
    said = capsys.readouterr().out
    assert ("has no current context" if has_kubectl else "is not on the PATH") in said
    written = tmp_path / f"{name_of(job)}.yaml"
    assert str(written) in said
    assert tuple(yaml.safe_load_all(written.read_text())) == render(job)


def test_a_cluster_that_does_not_answer_is_told(
    job: KubernetesJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kubectl(monkeypatch, tmp_path, "http://127.0.0.1:1")
    with pytest.raises(StorageError, match=r"the cluster of ours did not take the job: .*refused"):
        submit_to_kubernetes(job, folder=tmp_path, log=lambda _: None)
    assert list(tmp_path.glob("retort-*")) == []


def test_kubectl_applies_both_objects_once(
    job: KubernetesJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real kubectl; the server is a stand-in, so this says nothing of what a cluster does with them."""
    name = name_of(job)
    with kube_api.serving() as api:
        with_kubectl(monkeypatch, tmp_path, api.address)
        assert cli.run(["submit", "report", str(job.config), "--kubernetes"]) == 0
        first = capsys.readouterr().out
        assert cli.run(["submit", "report", str(job.config), "--kubernetes"]) == 0
        second = capsys.readouterr().out
    assert f"report is {name} in namespace retort of ours" in first
    assert "it was there before" not in first
    assert f"kubectl delete rayjob -n retort {name}" in second
    sent = {kind["kind"]: kind for kind in api.objects.values()}
    assert len(api.objects) == 2
    for manifest in render(job):
        assert {key: sent[manifest["kind"]][key] for key in manifest if key != "metadata"} == {
            key: value for key, value in manifest.items() if key != "metadata"
        }


def test_one_example_is_applied_with_the_run_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command at the head of k8s/jobs/jobs.yaml."""
    command = next(line for line in (K8S / "jobs" / "jobs.yaml").read_text().splitlines() if "kubectl apply" in line)
    with kube_api.serving() as api:
        with_kubectl(monkeypatch, tmp_path, api.address)
        subprocess.run(shlex.split(command.lstrip("# ")), cwd=ROOT, check=True, capture_output=True, timeout=HANG_S)
    assert {(m["kind"], m["metadata"]["name"]) for m in api.objects.values()} == {
        ("ConfigMap", "retort-runs"),
        ("RayJob", "retort-prepare"),
    }


def test_what_a_cluster_refuses_is_told_in_its_words(
    job: KubernetesJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kube_api.serving() as api:
        api.refusal = 'strict decoding error: unknown field "spec.x"'
        with_kubectl(monkeypatch, tmp_path, api.address)
        with pytest.raises(StorageError, match=r"of ours did not take the job: .*unknown field \"spec\.x\""):
            submit_to_kubernetes(job, folder=tmp_path, log=lambda _: None)
    assert api.objects == {}


@pytest.mark.parametrize("option", [("--python", "/opt/python"), ("--address", "http://10.0.0.1:8265")])
def test_options_of_the_other_way_are_refused(
    job: KubernetesJob, capsys: pytest.CaptureFixture[str], option: tuple[str, str]
) -> None:
    assert cli.run(["submit", "report", str(job.config), "--kubernetes", *option]) == ConfigError.exit_code
    assert option[1] in capsys.readouterr().err


def test_dry_run_shows_what_would_be_applied(job: KubernetesJob, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", "report", str(job.config), "--kubernetes", "--dry-run"]) == 0
    assert tuple(yaml.safe_load_all(capsys.readouterr().out)) == render(job)


def test_the_run_file_alone_says_which_job_it_is(job: KubernetesJob, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["submit", str(job.config), "--kubernetes", "--dry-run"]) == 0
    assert tuple(yaml.safe_load_all(capsys.readouterr().out)) == render(job)
    job.config.write_text("output: out\n")
    assert cli.run(["submit", str(job.config), "--kubernetes", "--dry-run"]) == ConfigError.exit_code
    assert "it has no `job:`" in capsys.readouterr().err
    assert cli.run(["submit", "report"]) == ConfigError.exit_code
    assert "report: no such file" in capsys.readouterr().err


def test_the_manifests_that_it_reads_are_in_the_clone() -> None:
    assert (ROOT / kubernetes.CLUSTER).is_file()
    assert (ROOT / kubernetes.EVERY_JOB).is_file()
