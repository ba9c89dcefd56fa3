"""One writer per output in a store: a lease, which is an object that its holder keeps changing.

There are no locks in a store that end with their holder. So the holder writes ``<output>.lock`` again every few
seconds, each time with another number; who wants the output watches the object, and takes it over once it has seen the
same number for the lease time **by its own clock**. No two clocks are ever compared. Both steps are conditional writes:
of two who take over, one is refused, and a holder that was away too long learns at its next renewal that it lost. One
whose renewals do not arrive learns nothing, so it counts by its own clock as well, from before the last one that did.

A service without conditional writes gets plain ones, read back after a pause: two runs that start within that pause of
each other can then both believe that they hold it. The marker of a result is still written once. A service that ignores
conditions answers well to every write, so each taker makes two that must be refused, and goes on with plain ones if one
is not.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from retort.errors import StorageError
from retort.store.s3 import S3Store
from retort.store.s3_faults import RemoteStoreError, StoreFault

LEASE_S = 60.0
_RENEWALS = 4
"""Renewals within the lease time."""
_LOOK_S = 1.0
_READ_BACK_S = 2.0
_NO_TAG = f'"{"0" * 32}"'
"""Of no object."""
_TAKEN = (StoreFault.CONFLICT, StoreFault.NOT_FOUND)
"""What the answer to a conditional write says of the object: not what the writer thought."""

_log = logging.getLogger(__name__)


class Lease:
    """Hold an output in a store against a second run: ``with Lease(store, key): ...``.

    Args:
        store: where it is.
        key: of the output; it need not exist.
        lease_s: seconds without a sign of life after which a holder counts as dead.
        outage_s: for how long :meth:`check` waits for a renewal when the last one is older than that.
    """

    def __init__(self, store: S3Store, key: str, *, lease_s: float = LEASE_S, outage_s: float = 0.0) -> None:
        self._store, self._key, self._lease_s, self._outage_s = store, f"{key}.lock", lease_s, outage_s
        self._nonce = uuid.uuid4().hex
        self._count = 0
        self._tag = ""
        self._is_plain = False
        self._shown = 0.0
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Take the lease; a holder that shows no life is watched for the lease time first.

        Raises:
            StorageError: another run holds it (its host, process and start time are named), or the store refuses.
        """
        assert self._thread is None, "a Lease object is entered once"
        deadline, seen, since = time.monotonic() + 3 * self._lease_s, "", 0.0
        while True:
            # Looked at before anything is written: the condition of a write may be ignored.
            content, tag = self._store.read_tagged(self._key) or (b"", "")
            if tag and tag != seen:
                if seen or time.monotonic() > deadline:
                    raise StorageError(_busy_text(self._key, content))
                _log.warning("%s: %s", self._key, _waiting_text(content, self._lease_s))
                since = time.monotonic()
            elif (not tag or time.monotonic() - since >= self._lease_s) and self._try_take(tag or None):
                break
            seen = tag
            time.sleep(min(_LOOK_S, self._lease_s / 10))
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back."""
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        if self._lost is None:
            try:
                found = self._store.read_tagged(self._key)
                if found is not None and _holder(found[0]).get("nonce") == self._nonce:
                    self._store.delete_prefix(self._key)
            except StorageError as fault:
                # The work is done and stored; the next run waits for the lease time.
                _log.warning("the lease could not be given back: %s", fault)

    def check(self, *, is_patient: bool = True) -> None:
        """Call before a commit; one that is patient waits for a renewal that is late.

        Raises:
            StorageError: another run took the lease over meanwhile, or may have: it could not be renewed in time.
        """
        deadline = time.monotonic() + (self._outage_s if is_patient else 0.0)
        while (age_s := time.monotonic() - self._shown) >= self._lease_s and self._lost is None:
            if time.monotonic() >= deadline:
                raise StorageError(_stale_text(self._key, age_s))
            time.sleep(min(_LOOK_S, self._lease_s / 10))
        self.refuse_lost()

    def refuse_lost(self) -> None:
        """Call now and then, to give up what cannot be committed any more.

        Raises:
            StorageError: another run took the lease over.
        """
        if self._lost is not None:
            raise StorageError(self._lost)

    def _try_take(self, old_tag: str | None) -> bool:
        """Take the lease that nobody has, or that still is what a dead holder left."""
        began = time.monotonic()
        fault = self._write(old_tag)
        if fault is StoreFault.UNSUPPORTED:
            self._write_plainly()
        elif fault is not None:
            if not self._is_mine():
                return False
            self._shown = began
        self._is_plain = fault is StoreFault.UNSUPPORTED or not self._are_conditions_kept()
        if self._is_plain:
            time.sleep(min(_READ_BACK_S, self._lease_s / 2))
            return self._is_mine()
        return True

    def _are_conditions_kept(self) -> bool:
        """Whether writes that must be refused are; of several takers who find otherwise, the last one to write has it.

        One that is done writes the lease of this taker again, over its own or that of one who takes it as well.
        """
        return all(self._write(tag) in _TAKEN for tag in (None, _NO_TAG))

    def _is_mine(self) -> bool:
        """Whether the object is this holder's own: an answer may have been lost on the way."""
        found = self._store.read_tagged(self._key)
        if found is None or _holder(found[0]).get("nonce") != self._nonce:
            return False
        self._tag = found[1]
        return True

    def _write(self, tag: str | None) -> StoreFault | None:
        """Write the lease if the object has this tag; what stood against it, or None."""
        self._count += 1
        began = time.monotonic()
        try:
            self._tag = self._store.swap(self._key, self._content(), tag)
        except RemoteStoreError as error:
            if error.fault in (*_TAKEN, StoreFault.UNSUPPORTED):
                return error.fault
            raise
        self._shown = began  # nobody can have seen it earlier
        return None

    def _write_plainly(self) -> None:
        self._count += 1
        began = time.monotonic()
        self._store.write_bytes(self._key, self._content())
        self._shown = began

    def _content(self) -> bytes:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "taken": datetime.now(UTC).isoformat("T", "seconds"),
            "nonce": self._nonce,
            "count": self._count,
        }
        return json.dumps(holder).encode()

    def _renew(self) -> None:
        while not self._stop.wait(self._lease_s / _RENEWALS):
            try:
                if not self._is_renewed():
                    return
            except StorageError as error:
                _log.warning("the lease could not be renewed, trying again: %s", error)

    def _is_renewed(self) -> bool:
        """Show that the holder lives; False if another run has the lease."""
        for _ in range(2):
            fault = StoreFault.UNSUPPORTED if self._is_plain else self._write(self._tag)
            if fault is None:
                return True
            if not self._is_mine():
                found = self._store.read_tagged(self._key)
                self._lost = _busy_text(self._key, b"{}" if found is None else found[0])
                _log.error("%s", self._lost)
                return False
            if fault is StoreFault.UNSUPPORTED:
                self._write_plainly()
                return True
            # The answer to an earlier write was lost, and the tag with it, which is known now.
        return True


def _holder(content: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(content)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _busy_text(key: str, content: bytes) -> str:
    return (
        f"{key.removesuffix('.lock')}: another run writes it: {_named(content)}; wait for it or stop it, or choose "
        "another output"
    )


def _stale_text(key: str, age_s: float) -> str:
    return (
        f"{key.removesuffix('.lock')}: its lease was last renewed {age_s:.0f} s ago, so another run may have taken it; "
        "nothing more is written there: check the store and the network, and run the same command again"
    )


def _waiting_text(content: bytes, lease_s: float) -> str:
    return f"held by {_named(content)}; watching for {lease_s:.0f} s whether it still lives"


def _named(content: bytes) -> str:
    host, pid, taken = (_holder(content).get(key, "unknown") for key in ("host", "pid", "taken"))
    return f"process {pid} on host {host}, last heard of at {taken} by its own clock"
