"""What training workers report, seen by the driver: the small files that rank 0 writes, on whichever node it is.

Of an output on a file system the files themselves are followed. Of one in a store, rank 0 keeps copies there, and the
driver fetches those into a folder of its own every few seconds.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from retort.errors import StorageError
from retort.location import RemotePath
from retort.orchestration.outputs import EVENTS_FILE, METRICS_FILE
from retort.store.commit import write_bytes_atomic
from retort.store.place import store_of

_EVERY_S = 3.0
_SHARE = 0.1
"""Of its time, that is spent on fetching at most."""


class Reports:
    """Where reports can be followed.

    Args:
        folder: holds the files.
        remote: the output in a store that they are fetched from; None where they are written to ``folder``.
    """

    def __init__(self, folder: Path, remote: RemotePath | None) -> None:
        self.folder, self._remote = folder, remote
        self._one_at_a_time = threading.Lock()
        self._seen: dict[str, bytes] = {}

    def refresh(self) -> None:
        """Fetch what changed; a store that is out is asked again the next time."""
        if self._remote is None:
            return
        with self._one_at_a_time, contextlib.suppress(StorageError):
            for name in (METRICS_FILE, EVENTS_FILE):
                place = self._remote / name
                found = store_of(place.bucket, is_patient=False).read_tagged(place.key)
                if found is not None and found[0] != self._seen.get(name):
                    self._seen[name] = found[0]
                    write_bytes_atomic(self.folder / name, found[0])


@contextlib.contextmanager
def reports_of(output: Path) -> Iterator[Reports]:
    """Follow the reports of a training run while the block runs.

    Args:
        output: the absolute path of the job's output, or its place in a store.
    """
    if not isinstance(output, RemotePath):
        yield Reports(output, None)
        return
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="retort-reports-") as folder:
        reports = Reports(Path(folder), output)

        def fetch() -> None:
            pause_s = _EVERY_S
            while not stop.wait(pause_s):
                began = time.monotonic()
                reports.refresh()
                pause_s = max(_EVERY_S, (time.monotonic() - began) / _SHARE)

        reports.refresh()
        thread = threading.Thread(target=fetch, name="reports", daemon=True)
        thread.start()
        try:
            yield reports
        finally:
            stop.set()
            thread.join()
