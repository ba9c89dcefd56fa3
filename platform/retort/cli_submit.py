"""The commands that speak to clusters: ``retort submit`` and ``retort jobs``."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from retort.cli_output import echo_summary
from retort.errors import ConfigError

if TYPE_CHECKING:
    from retort.orchestration.submit import Execution

T = TypeVar("T")
_DASHBOARD = "http://127.0.0.1:8265"

AddressOption = Annotated[str, typer.Option(help="The cluster's dashboard.")]
IdentityArgument = Annotated[str, typer.Argument(metavar="ID", help="As `retort jobs list` shows it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]

jobs_app = typer.Typer(
    help="What runs on a Ray cluster: list it, read its log, wait for it, stop it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """What `retort submit` takes."""

    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's name; or the run file alone, which says it.")]
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A run file; see jobs/configs.")] = None
    address: AddressOption = _DASHBOARD
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change one value of the file; repeatable.")
    ] = None
    root: Annotated[
        Path | None,
        typer.Option(help="Folder on the cluster that the file's relative paths start from; on Kubernetes, /shared."),
    ] = None
    python: Annotated[str | None, typer.Option(help="The interpreter there; on this machine, this one.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted, do nothing.")] = False
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on where an earlier run stopped, or refuse if there is one."),
    ] = True
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the log and end with the job.")] = True
    retries: Annotated[int, typer.Option(min=0, help="Start it again so often after a failure that may pass.")] = 0
    timeout_s: Annotated[int | None, typer.Option(min=1, help="Stop it after so many seconds.")] = None
    driver_cpus: Annotated[
        float | None, typer.Option(min=0.01, help="CPUs of its entry script, which then need not run on the head.")
    ] = None
    environment: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="A variable of the job; repeatable.")
    ] = None
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="As a RayJob with a cluster of its own; KubeRay runs it.")
    ] = False
    namespace: Annotated[str, typer.Option(help="Of Kubernetes.")] = "retort"
    queue: Annotated[str | None, typer.Option(help="Kueue's LocalQueue on Kubernetes, in which the job waits.")] = None
    node_selector: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=VALUE", help="Label of the Kubernetes nodes for workers; repeatable."),
    ] = None
    s3_secret: Annotated[str | None, typer.Option(help="Secret on Kubernetes with the keys of the store.")] = None
    s3_endpoint: Annotated[str | None, typer.Option(help="Url of the store that pods on Kubernetes reach.")] = None
    s3_region: Annotated[str | None, typer.Option(help="Region of that store.")] = None
    cache_gib: Annotated[
        int | None,
        typer.Option(min=1, help="Of each pod's disk on Kubernetes, which holds what it needs of the store."),
    ] = None
    image: Annotated[str | None, typer.Option(help="What the pods run on Kubernetes.")] = None


def command_of(options: type[T], run: Callable[[T], None]) -> Callable[..., None]:
    """A command whose parameters are the fields of a dataclass; its help is the docstring of ``run``."""

    def command(**values: Any) -> None:
        run(options(**values))

    fields = dataclasses.fields(options)  # type: ignore[arg-type]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=field.type,
                default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            )
            for field in fields
        ]
    )
    command.__annotations__ = {field.name: field.type for field in fields}
    command.__doc__ = run.__doc__
    return command


def run_submit(options: SubmitOptions) -> None:
    """Run a job on a Ray cluster, show its log, and end with its exit code; or hand it to Kubernetes."""
    if options.kubernetes:
        _submit_to_kubernetes(options)
        return
    from retort.orchestration.submit import Submission, pack_plan, submit_job

    _refuse_kubernetes(options)
    submission = Submission(
        *_job_and_file(options),
        tuple(options.overrides or ()),
        options.address,
        root=options.root,
        python=options.python,
        execution=_execution(options),
    )
    if options.dry_run:
        typer.echo(pack_plan(submission))
        return
    raise typer.Exit(submit_job(submission, log=_write, wait=options.wait))


def _submit_to_kubernetes(options: SubmitOptions) -> None:
    from retort.orchestration.kubernetes import SHARED, KubernetesJob, Placing, manifest_text, submit_to_kubernetes

    if options.python is not None:
        raise ConfigError(f"--python {options.python}: on Kubernetes the image decides; choose one with --image")
    if options.address != _DASHBOARD:
        raise ConfigError(f"--address {options.address}: kubectl's context says which cluster; leave it out")
    job = KubernetesJob(
        *_job_and_file(options),
        tuple(options.overrides or ()),
        placing=Placing(
            options.namespace,
            options.queue,
            _pairs(options.node_selector, "--node-selector", "LABEL=VALUE"),
            options.s3_secret,
            options.s3_endpoint,
            options.s3_region,
            options.cache_gib,
        ),
        image=options.image,
        root=options.root or SHARED,
        execution=_execution(options),
    )
    if options.dry_run:
        typer.echo(manifest_text(job), nl=False)
        return
    raise typer.Exit(submit_to_kubernetes(job, folder=Path.cwd(), log=_write))


def _refuse_kubernetes(options: SubmitOptions) -> None:
    """Options of Kubernetes do nothing elsewhere, so they are not passed over in silence."""
    for name in ("image", "queue", "node_selector", "s3_secret", "s3_endpoint", "s3_region", "cache_gib"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for Kubernetes; add --kubernetes, or leave it out")


def _job_and_file(options: SubmitOptions) -> tuple[str, Path]:
    """The job's name and its run file; where one argument was given it is the file, which names its job."""
    from retort.config import load_tree

    if options.config is not None:
        return options.job, options.config
    file = Path(options.job)
    job = load_tree(file).get("job")
    if not isinstance(job, str):
        raise ConfigError(f"{file}: it has no `job:`; a run file says which job it describes")
    return job, file


def _execution(options: SubmitOptions) -> "Execution":
    from retort.orchestration.submit import Execution

    environment = _pairs(options.environment, "--env", "NAME=VALUE")
    return Execution(options.resume, options.retries, options.timeout_s, options.driver_cpus, environment)


def _pairs(entries: list[str] | None, option: str, form: str) -> dict[str, str]:
    pairs = {}
    for number, entry in enumerate(entries or (), start=1):
        name, sep, value = entry.partition("=")
        if not sep or not name:
            # Not repeated: a value that lost its name may be a secret.
            raise ConfigError(f"{option}, number {number} of {len(entries or ())}: expected {form}")
        pairs[name] = value
    return pairs


def _write(text: str) -> None:
    typer.echo(text, nl=False)


@jobs_app.command("list")
def list_jobs(address: AddressOption = _DASHBOARD, as_json: JsonOption = False) -> None:
    """The jobs that a cluster knows, the latest first."""
    from retort.orchestration.ray_jobs import list_jobs as listed

    rows = [dataclasses.asdict(row) for row in listed(address)]
    if as_json:
        echo_summary({"jobs": rows}, as_json=True)
        return
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        typer.echo(f"{row['identity']:44s} {row['status']:10s} {row['started'] or '':26s} {seconds}")


@jobs_app.command()
def logs(identity: IdentityArgument, address: AddressOption = _DASHBOARD) -> None:
    """What a job has written so far."""
    from retort.orchestration.ray_jobs import log_of

    _write(log_of(address, identity))


@jobs_app.command()
def attach(identity: IdentityArgument, address: AddressOption = _DASHBOARD) -> None:
    """Show a job's log as it runs, and end with its exit code."""
    from retort.orchestration.ray_jobs import attach as attached

    raise typer.Exit(attached(address, identity, log=_write))


@jobs_app.command()
def stop(identity: IdentityArgument, address: AddressOption = _DASHBOARD) -> None:
    """Ask a job to end, and wait until it has; what it wrote stays, and the same submission goes on from it."""
    from retort.orchestration.ray_jobs import stop as stopped

    row = stopped(address, identity)
    typer.echo(f"{row.identity}: {row.status}")
