"""One writer per output in a store: by conditional writes, and by the observer's own clock alone."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from retort.errors import StorageError
from retort.store.lease import Lease
from retort.store.s3 import S3Store
from tests.patience import comes
from tests.store.conftest import FaultProxy

LEASE_S = 6.0
"""Long enough that a busy machine renews in time."""
Opener = Callable[..., S3Store]

pytestmark = pytest.mark.slow


def lease(open_s3: Opener) -> Lease:
    return Lease(open_s3(), "runs/a", lease_s=LEASE_S)


def wait_for_renewals(open_s3: Opener) -> None:
    """Until the holder has shown three times that it lives."""
    seen: set[int] = set()

    def is_shown() -> bool:
        seen.add(json.loads(open_s3().read_bytes("runs/a.lock"))["count"])
        return len(seen) > 3

    assert comes(is_shown, every_s=0.1)


def what_it_lost(held: Lease) -> str:
    """What a holder says of a lease that it lost or may have lost; nothing as long as it has it."""
    try:
        held.check()
    except StorageError as error:
        return str(error)
    return ""


def write_holder(open_s3: Opener, *, taken: str, count: int = 1) -> None:
    """What a run elsewhere wrote, with a clock of its own."""
    holder = {"host": "elsewhere", "pid": 7, "taken": taken, "nonce": "n", "count": count}
    open_s3().write_bytes("runs/a.lock", json.dumps(holder).encode())


def test_a_second_writer_is_refused_and_a_third_may_follow(open_s3: Opener) -> None:
    with lease(open_s3) as held:
        with pytest.raises(StorageError, match=r"runs/a: another run writes it: process \d+ on host"), lease(open_s3):
            raise AssertionError("two runs held one output")
        wait_for_renewals(open_s3)
        held.check()
    assert open_s3().list() == ()
    with lease(open_s3):
        pass


def test_of_many_at_once_one_gets_it(open_s3: Opener) -> None:
    got: list[str] = []
    refused: list[str] = []
    done = threading.Event()

    def run() -> None:
        try:
            with lease(open_s3):
                got.append("got")
                done.wait()
        except StorageError as error:
            refused.append(str(error))
            done.set() if len(refused) == 3 else None

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 3)


@pytest.mark.parametrize("taken", ["1999-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_a_dead_holder_is_followed_after_the_lease_time_whatever_its_clock_said(open_s3: Opener, taken: str) -> None:
    write_holder(open_s3, taken=taken)
    began = time.monotonic()
    with lease(open_s3):
        assert time.monotonic() - began >= LEASE_S


def test_a_living_holder_with_a_clock_of_its_own_is_not_followed(open_s3: Opener) -> None:
    stop = threading.Event()

    def renew() -> None:
        for count in range(2, 1000):
            write_holder(open_s3, taken="1999-01-01T00:00:00+00:00", count=count)
            if stop.wait(LEASE_S / 4):
                return

    write_holder(open_s3, taken="1999-01-01T00:00:00+00:00")
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(StorageError, match="process 7 on host elsewhere"), lease(open_s3):
            raise AssertionError("a living holder was robbed")
    finally:
        stop.set()
        thread.join()


def test_a_holder_that_was_away_too_long_learns_that_it_lost(open_s3: Opener) -> None:
    with lease(open_s3) as held:
        write_holder(open_s3, taken="2026-01-01T00:00:00+00:00", count=9)
        assert "process 7 on host elsewhere" in comes(lambda: what_it_lost(held)), "it never noticed"
    # And it does not take the other's lease away.
    assert json.loads(open_s3().read_bytes("runs/a.lock"))["host"] == "elsewhere"


def test_an_answer_that_was_lost_is_no_other_holder(open_s3: Opener, proxy: FaultProxy) -> None:
    proxy.break_next("PUT", "runs/a.lock", "lost")
    with lease(open_s3) as held:
        wait_for_renewals(open_s3)
        held.check()
    assert proxy.faults == []


def test_a_renewal_survives_an_outage(open_s3: Opener, proxy: FaultProxy) -> None:
    with lease(open_s3) as held:
        proxy.break_next("PUT", "runs/a.lock", "503:SlowDown", times=6)
        assert comes(lambda: not proxy.faults)
        assert comes(lambda: not what_it_lost(held)), "it was not renewed afterwards"
    assert open_s3().list() == ()


def test_a_service_without_conditional_writes(open_s3: Opener, proxy: FaultProxy) -> None:
    take = proxy.take

    def refuse(method: str, path: str, headers: dict[str, Any]) -> str:
        is_conditional = any(name.lower() in ("if-match", "if-none-match") for name in headers)
        return "501:NotImplemented" if method == "PUT" and is_conditional else take(method, path, headers)

    proxy.take = refuse  # type: ignore[method-assign]
    with lease(open_s3) as held:
        wait_for_renewals(open_s3)
        held.check()
        with pytest.raises(StorageError, match="another run writes it"), lease(open_s3):
            raise AssertionError("two runs held one output")
    assert open_s3().list() == ()


@pytest.mark.parametrize("unknown", [("if-match", "if-none-match"), ("if-none-match",), ("if-match",)])
def test_a_service_that_ignores_conditions(open_s3: Opener, proxy: FaultProxy, unknown: tuple[str, ...]) -> None:
    proxy.unknown = unknown
    with lease(open_s3) as held:
        with pytest.raises(StorageError, match="another run writes it"), lease(open_s3):
            raise AssertionError("two runs held one output")
        wait_for_renewals(open_s3)
        held.check()
        # It looks before it writes: it does not take another's lease away.
        write_holder(open_s3, taken="2026-01-01T00:00:00+00:00", count=9)
        assert "process 7 on host elsewhere" in comes(lambda: what_it_lost(held)), "it never noticed"
    assert json.loads(open_s3().read_bytes("runs/a.lock"))["host"] == "elsewhere"


def test_conditions_that_are_kept_are_used_and_cost_two_writes_that_are_refused(
    open_s3: Opener, proxy: FaultProxy
) -> None:
    no_object = f'"{"0" * 32}"'
    with lease(open_s3):
        wait_for_renewals(open_s3)
    writes = [(h.get("If-None-Match"), h.get("If-Match")) for method, _, h in proxy.requests if method == "PUT"]
    assert writes[:3] == [("*", None), ("*", None), (None, no_object)]
    renewals = {tag for none_match, tag in writes[3:] if none_match is None and tag not in (None, no_object)}
    assert len(renewals) == len(writes) - 3 >= 3, "each one says what the one before it wrote"
