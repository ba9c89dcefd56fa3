"""The command line: one thin command per job. It imports the heavy parts only inside the commands that need them."""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort import __version__
from retort.cli_output import echo_summary, explain_failure, job_streams
from retort.cli_submit import SubmitOptions, command_of, jobs_app, run_submit
from retort.errors import ConfigError, DataError, QualityGateError
from retort.location import parse_location
from retort.sigterm import preempted_by_sigterm

if TYPE_CHECKING:
    from retort.audio.provenance import ProvenanceConfig

SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Change one value of the file; repeatable.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Validate, show the resolved plan, do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="End standard output with one JSON object.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on where an earlier run stopped, or refuse if there is one.")
]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A run file; see jobs/configs.")]

RegistryOption = Annotated[
    Path, typer.Option(parser=parse_location, help="The registry: a folder, or s3://bucket/key.")
]

_DEMO = Path("jobs/configs/demo.yaml")
_REGISTRY = Path("runs/registry")
_INTERRUPTED = 130
_HELP = {
    "prepare": "Corpus → token set: read, check, encode; bad rows are set aside with a reason.",
    "align": "Corpus → durations of its phones, by an aligner that is trained on it.",
    "pretrain": "Token set → teacher, on Ray Train and DeepSpeed.",
    "import": "Llama or Qwen2 checkpoint in Hugging Face layout → teacher.",
    "generate": "Teacher → synthetic data: logits and tokens, mels, or recordings of a black box; on Ray Data.",
    "prune": "Teacher → what each layer is worth, and a model without the least of them, on Ray Data.",
    "distill": "Teacher → student, on Ray Train and DeepSpeed.",
    "tune": "Many trials with different settings → Pareto front of quality, speed and size, on Ray Tune.",
    "evaluate": "Systems → results with confidence intervals and one HTML report with audio.",
    "export": "Imported model, or a student of one → checkpoint in Hugging Face layout; zero-shot model → ONNX bundle.",
}

app = typer.Typer(
    help="Turn a large text-to-speech teacher into small, fast students; prove that they are as good.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def configure_logging(*, verbose: bool) -> None:
    """Logs go to standard error: warnings, and with ``verbose`` what Retort itself does."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("retort").setLevel(logging.DEBUG if verbose else logging.INFO)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"retort {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version
    configure_logging(verbose=verbose)


def _job_command(job: str) -> Callable[..., None]:
    def command(
        config: ConfigArgument,
        overrides: SetOption = None,
        dry_run: DryRunOption = False,
        as_json: JsonOption = False,
        resume: ResumeOption = True,
    ) -> None:
        _run(job, config, overrides or (), dry_run=dry_run, as_json=as_json, resume=resume)

    return command


for _name, _help in _HELP.items():
    app.command(_name, help=_help)(_job_command(_name))


@app.command()
def report(
    config: ConfigArgument,
    votes: Annotated[
        list[Path] | None,
        typer.Option("--votes", metavar="FILE", help="What a listener saved on the listening page; repeatable."),
    ] = None,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    resume: ResumeOption = True,
) -> None:
    """Write the report of an evaluation again, with what listeners voted."""
    said = [f"votes={json.dumps([str(path) for path in votes])}"] if votes else []
    _run("report", config, [*(overrides or ()), *said], dry_run=dry_run, as_json=as_json, resume=resume)


@app.command()
def demo(
    argument: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A tour's run file.")] = None,
    config: Annotated[Path, typer.Option("--config", help="The same, as an option.")] = _DEMO,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    resume: ResumeOption = True,
) -> None:
    """Take the whole tour: corpus, teacher, synthetic data, students, evaluation, report."""
    if argument is not None and config != _DEMO:
        raise ConfigError(f"two run files were given, {argument} and --config {config}; give one")
    _run("demo", argument or config, overrides or (), dry_run=dry_run, as_json=as_json, resume=resume)


def _run(job: str, path: Path, overrides: Sequence[str], *, dry_run: bool, as_json: bool, resume: bool) -> None:
    from retort.orchestration.jobs import load_job, plan_of, refuse_existing_output, run_job
    from retort.orchestration.progress import terminal_progress

    config = load_job(path, expected=job, overrides=overrides)
    if not resume:
        refuse_existing_output(config)
    if dry_run:
        echo_summary(config.model_dump(mode="json"), as_json=True) if as_json else typer.echo(plan_of(config))
        return
    with preempted_by_sigterm():
        with job_streams(as_json=as_json), terminal_progress() as progress:
            summary = run_job(config, progress)
        echo_summary(summary, as_json=as_json)


@app.command()
def say(
    text: Annotated[str, typer.Argument(help="What to say.")],
    model: Annotated[
        Path, typer.Option("--model", "-m", parser=parse_location, help="Output folder of the job that trained it.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The WAV file to write.")],
    speaker: Annotated[str | None, typer.Option(help="One of the model's voices; the first one if left out.")] = None,
    guidance_scale: Annotated[
        float, typer.Option(help="1.0 is none; a distilled student refuses any other that it was not trained for.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed says it in the same way.")] = 0,
    provenance: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="A serving file, whose `provenance` marks the speech.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say one sentence, in this process."""
    from retort.orchestration.say import say as speak

    marks = None if provenance is None else _provenance_of(provenance)
    with job_streams(as_json=as_json):
        summary = speak(
            text, model, output, speaker=speaker, guidance_scale=guidance_scale, seed=seed, provenance=marks
        )  # fmt: skip
    echo_summary(summary, as_json=as_json)


def _provenance_of(path: Path) -> "ProvenanceConfig":
    from retort.config import load_config
    from retort.serving.settings import ServeConfig

    found = load_config(path, ServeConfig).provenance
    if found is None:
        raise ConfigError(f"{path}: it has no `provenance`; see docs/security.md for what it says")
    return found


@app.command()
def detect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="WAV, FLAC, Ogg, MP3 or AAC; or raw PCM, as .pcm.")],
    config: Annotated[Path, typer.Option(metavar="CONFIG", help="The serving file whose marks are looked for.")],
    statement: Annotated[
        str | None, typer.Option(help="The X-Provenance header that came with the sound, as of raw PCM.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for the marks of speech in a file: exit code 0 if it is proved to be marked, 7 if nothing is proved."""
    from retort.orchestration.detect import detect as find

    findings = find(file, _provenance_of(config), statement=statement)
    echo_summary(findings.as_dict(), as_json=True) if as_json else typer.echo(findings.line())
    raise typer.Exit(0 if findings.is_marked else QualityGateError.exit_code)


@app.command("ls")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where outputs lie; folders in it are searched.")] = Path("runs"),
    prometheus: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a text file for node-exporter's collector, too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the outputs of jobs: what ran, how far it is, its last figures. Nothing has to run for that."""
    from retort.orchestration.outputs_seen import outputs_in, table

    seen = outputs_in(folder)
    if prometheus is not None:
        from retort.orchestration.job_metrics import exposition
        from retort.store.commit import write_bytes_atomic

        write_bytes_atomic(prometheus, exposition(seen))
    echo_summary({"outputs": [one.as_dict() for one in seen]}, as_json=True) if as_json else typer.echo(table(seen))


@app.command()
def show(
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Output folder of a job.")],
    as_json: JsonOption = False,
) -> None:
    """Show one output: state, figures, fingerprints of what went in and came out, and what looks wrong."""
    from retort.orchestration.outputs_seen import look_at

    seen = look_at(output)
    echo_summary(seen.as_dict(), as_json=True) if as_json else typer.echo(seen.text())


@app.command()
def promote(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", parser=parse_location, help="Output of a sweep, or of the job that trained."),
    ],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Under which it is served.")],
    best: Annotated[str | None, typer.Option(help="Which trial of a sweep: 'wer<=0.2, fastest'.")] = None,
    gate: Annotated[
        str | None, typer.Option(help="Such as 'wer<=0.3, failure_rate<=0.1'; left out: the sweep's.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(parser=parse_location, help="The evaluation whose figures count.")
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(help="Its name there, if the model stands under several; NAME@best is at its best temperature."),
    ] = None,
    registry: RegistryOption = _REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Take a model through the quality gate into the registry, from where `retort serve` takes it."""
    from retort.orchestration.promote import promote as run

    with job_streams(as_json=as_json):
        summary = run(source, name, best=best, gate=gate, evaluation=evaluation, system=system, registry=registry)
    echo_summary(summary, as_json=as_json)


@app.command()
def serve(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="See serve/local.yaml; left out: what was promoted, or the demo."),
    ] = None,
    registry: RegistryOption = _REGISTRY,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Serve models on this machine, as the OpenAI speech API and a page to try them, until interrupted."""
    from retort.config import load_config
    from retort.serving.local import Follower, demo_config, registry_config, serving, wait_for_the_end
    from retort.serving.settings import ServeConfig

    if config is not None and registry != _REGISTRY:
        raise ConfigError(f"{config} says which models are served: leave it out, or --registry {registry}")
    changes = overrides or ()
    promoted = registry_config(registry, changes) if config is None else None
    if config is not None:
        settings = load_config(config, ServeConfig, overrides=changes)
    elif promoted is None and registry != _REGISTRY:
        raise DataError(f"{registry} holds no model; put one there: retort promote … --registry {registry}")
    else:
        settings = promoted or demo_config(Path("runs/demo"), changes)
    if dry_run:
        echo_summary(settings.model_dump(mode="json"), as_json=True)
        return
    with serving(settings) as address:
        ready = f"{', '.join(model.name for model in settings.models)} at {address} (stop with Ctrl-C)"
        follower = None if promoted is None else Follower(registry, settings, typer.echo, changes)
        wait_for_the_end(follower, announce=lambda: typer.echo(ready))
        typer.echo("finishing what has begun (Ctrl-C again stops at once)")


@app.command()
def doctor(
    folder: Annotated[Path, typer.Option(help="Where runs are written; it is tried.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Try what the jobs need on this machine; one line each, with the cure."""
    from retort.orchestration.doctor import examine, exit_code_of

    with job_streams(as_json=as_json):
        findings = []
        for finding in examine(folder):
            findings.append(finding)
            typer.echo(finding.line(), err=as_json)
    code = exit_code_of(findings)
    if as_json:
        echo_summary({"exit_code": code, "findings": [finding.as_dict() for finding in findings]}, as_json=True)
    raise typer.Exit(code)


app.command("submit")(command_of(SubmitOptions, run_submit))
app.add_typer(jobs_app, name="jobs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code; a RetortError is one message, no traceback."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line on ``arguments`` (without the program's name); returns the exit code."""
    try:
        app(args=list(arguments), prog_name="retort")
    except SystemExit as end:  # typer has shown usage errors and help, and turned Ctrl-C into this code
        if end.code == _INTERRUPTED:
            typer.echo("interrupted; run the same command again to continue", err=True)
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        failure = explain_failure(error)
        if failure is None:
            raise
        typer.echo(f"retort: {failure.message}", err=True)
        return failure.exit_code
    return 0


if __name__ == "__main__":
    main()
