"""Processes of a Ray below a driver, by the titles that Ray gives them."""

from pathlib import Path


def workers_below(driver: int, title: str = "RayTrainWorker") -> list[int]:
    """Process ids, in rising order."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
                titles[int(process.name)] = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue

    def is_below(pid: int) -> bool:
        while pid in parents and pid != driver:
            pid = parents[pid]
        return pid == driver

    return sorted(pid for pid, text in titles.items() if title in text and is_below(pid))
