"""A tour whose jobs write, and read what the ones before wrote, below another root: a folder, or a place in a store."""

from pathlib import Path

from retort.errors import ConfigError
from retort.orchestration.outputs import with_paths
from retort.run_config import DemoConfig


def moved(tour: DemoConfig, root: Path) -> DemoConfig:
    """The tour below ``root``, which takes the place of the folder that all its outputs have in common.

    Args:
        tour: as its run file says.
        root: an absolute path, or a place in a store.

    Raises:
        ConfigError: a job reads what no job before it writes, which other nodes could not see; it is named.
    """
    outputs, here = [job.output.absolute() for job in tour.jobs], tour.output.absolute()
    common = next(p for p in (here, *here.parents) if all(output.is_relative_to(p) for output in outputs))
    written: list[Path] = []

    def place(path: Path) -> Path:
        return root / path.absolute().relative_to(common)

    def change(name: str, path: Path, is_location: bool) -> Path:
        is_output = name.endswith(".output")
        if not is_output and not (is_location and any(path.absolute().is_relative_to(old) for old in written)):
            raise ConfigError(
                f"{name}: no earlier job of this tour writes {path}, so another node would not see it; let a job write"
                " it, or put it into a store"
            )
        return place(path)

    jobs = []
    for number, (job, output) in enumerate(zip(tour.jobs, outputs, strict=True)):
        jobs.append(with_paths(job, change, prefix=f"jobs.{number}."))
        written.append(output)
    return tour.replace(output=place(tour.output), jobs=jobs)
