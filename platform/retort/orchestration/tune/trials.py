"""What Ray Tune calls while a sweep runs. Its own records are never read back: a sweep goes on from its ledger."""

import contextlib
import io
from pathlib import Path
from typing import Any, Protocol

from retort.orchestration.failures import error_of
from retort.orchestration.tune.trial import run_trial

_DRIVER_CPUS = 0.01
"""Of a trial's own process, which waits: what works are the workers and actors that its jobs start."""


class Desk(Protocol):
    """Where trials are handed out and taken back."""

    def next(self) -> int | None:
        """Number of the next trial, which is on record by then; None if there are no more."""
        ...

    def goes_on(self, number: int, figures: dict[str, float]) -> bool:
        """Whether a training trial goes on after these figures."""
        ...

    def ended(self, number: int) -> None:
        """A trial has ended, with an outcome on record."""
        ...

    def broke(self, number: int, error: Exception) -> None:
        """A trial's process failed for the last time."""
        ...


def _numbers(desk: Desk) -> Any:
    """What hands out the trials."""
    from ray.tune.search import Searcher

    class Numbers(Searcher):  # type: ignore[misc]
        def suggest(self, trial_id: str) -> dict[str, int] | str:
            del trial_id
            number = desk.next()
            return str(Searcher.FINISHED) if number is None else {"number": number}

        def on_trial_complete(self, trial_id: str, **ended: Any) -> None:
            """Told to the desk by the callback, which knows the trial's number."""

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()

    return Numbers()


def _stops(desk: Desk) -> Any:
    """What stops trials."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class Stops(FIFOScheduler):  # type: ignore[misc]
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            del tune_controller
            if "value" not in result:
                return str(TrialScheduler.CONTINUE)
            figures = {name: result[name] for name in ("step", "value", "size")}
            goes_on = desk.goes_on(trial.config["number"], figures)
            return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    return Stops()


def _endings(desk: Desk) -> Any:
    """What hears how trials end."""
    from ray import tune

    class Endings(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, trial: Any, **info: Any) -> None:
            del info
            desk.ended(trial.config["number"])

        def on_trial_error(self, trial: Any, **info: Any) -> None:
            del info
            desk.broke(trial.config["number"], error_of(trial.get_pickled_error()))

    return Endings()


def run_trials(
    desk: Desk, sweep: dict[str, Any], *, num_trials: int, max_concurrent: int, max_failures: int, scratch: Path
) -> None:
    """Run trials until the desk has no more.

    Args:
        desk: hands them out and takes them back.
        sweep: the tree of the sweep.
        num_trials: how many there are left.
        max_concurrent: trials at once.
        max_failures: how often a trial whose process failed is started again.
        scratch: for Ray Tune's records.
    """
    from ray import tune

    trainable = tune.with_parameters(run_trial, sweep=sweep, folder=str(Path.cwd()))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": _DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=_numbers(desk),
            scheduler=_stops(desk),
            num_samples=num_trials,
            max_concurrent_trials=max_concurrent,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[_endings(desk)],
            verbose=0,
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # where it points to its records, which go with the sweep
        tuner.fit()
