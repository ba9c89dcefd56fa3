"""Training jobs that are told to end while their store is out or refuses: heard on the node, and told in time."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from retort.errors import PreemptedError
from retort.location import RemotePath
from retort.orchestration.train import stop
from retort.orchestration.train.checkpoints import TrainingCheckpoints
from retort.orchestration.train.job import _Sigterm
from retort.orchestration.train.ranks import Ranks
from retort.orchestration.train.stop import Action, StopListener, request_stop
from retort.orchestration.train.worker import Assignment
from retort.store import place as places
from retort.store.checkpoints import CheckpointFolder
from retort.store.place import local_of, pushed_at_the_end, store_of
from tests.orchestration.s3_node import BUCKET, s3_service
from tests.orchestration.tiny_runs import Lines
from tests.orchestration.train_runs import pretrain
from tests.patience import comes

PLACE = RemotePath("s3:", BUCKET, "runs", "told")
REFUSED = RemotePath("s3:", "not-made-yet", "runs", "told")
"""In a bucket that does not exist, which is a refusal: told at once, and not asked again."""


@pytest.fixture
def patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setattr(stop, "_SEND_AGAIN_S", 0.05)
    monkeypatch.setattr(StopListener, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(StopListener, "ASK_EVERY_S", 0.05)
    with s3_service(tmp_path / "cache") as patch:
        yield patch
        shutil.rmtree(tmp_path / "cache")  # with the words that are still to be sent
        for thread in threading.enumerate():
            if thread.name == "stop":
                thread.join()


def take_away_the_store(patch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it as long as the budget allows hangs."""
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    patch.setenv("RETORT_S3_OUTAGE_MINUTES", "99999")
    patch.setattr(places, "_SHORT_OUTAGE_S", 0.0)
    store_of.cache_clear()


def save_here(output: Path, step: int, apart: Path) -> Path:
    """A checkpoint that no thread tries to store."""
    made = CheckpointFolder(apart).save(step, lambda folder: (folder / "rank.bin").touch(), {})
    (output / "checkpoints").mkdir(parents=True)
    return made.rename(output / "checkpoints" / made.name)


@pytest.mark.parametrize("how", ["out", "refuses"])
def test_sigterm_ends_the_driver_in_time_and_tells_where_the_checkpoint_is(
    patch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    place = PLACE if how == "out" else REFUSED
    if how == "out":
        take_away_the_store(patch)
    output, lines = local_of(place), Lines()
    here = save_here(output, 7, tmp_path)
    config = pretrain(tmp_path, "told", workers={"preemption_grace_s": 0.0})
    told = _Sigterm(Assignment(config, {}, {}, "run"), output, lines)

    def end() -> None:
        with pushed_at_the_end(output, except_for=()), told.with_last_step(), told.noted():
            os.kill(os.getpid(), signal.SIGTERM)
            told.look()

    with pytest.raises(PreemptedError, match="0 s were too short") as error:
        end()
    assert lines.lines == ["told to end by SIGTERM: the workers have 0 s for a checkpoint of the present step"]
    fault = "unreachable" if how == "out" else "bucket-missing"
    assert f"which one the store has is not known ([store/{fault}] {place}/checkpoints: " in str(error.value)
    assert "that of step 7 is on this machine: " in str(error.value)
    assert f"copy {here} to {place}/checkpoints/step-00000007 before you run the same command again" in str(error.value)


def test_a_checkpoint_that_the_store_lacks_is_told_beside_what_it_has(
    patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = local_of(PLACE)
    told = _Sigterm(Assignment(pretrain(tmp_path, "told"), {}, {}, "run"), output, Lines())
    assert told._kept() == "there is none yet. Run the same command again to begin anew"
    stored = CheckpointFolder(output / "checkpoints")
    stored.save(6, lambda folder: (folder / "rank.bin").touch(), {})
    assert stored.close()
    there = "there is one of step 6"
    assert told._kept() == f"{there}. Run the same command again to go on from there, or from a later one"
    (output / "checkpoints").rename(tmp_path / "away")
    save_here(output, 9, tmp_path)
    assert told._kept().startswith(f"{there}; that of step 9 is on this machine: on ")


@pytest.mark.parametrize("place", [PLACE, REFUSED])
def test_a_run_that_ends_says_whether_its_checkpoint_is_stored(
    patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: RemotePath
) -> None:
    root = local_of(place) / "checkpoints"
    checkpoints = TrainingCheckpoints(root, Ranks(), keep_last=2, accumulation=1)
    here = checkpoints._folder.save(7, lambda folder: (folder / "rank.bin").touch(), {})
    told = checkpoints.how_to_go_on()
    checkpoints.close()
    if place == PLACE:
        assert told == ": run the same command again to go on from there"
    else:
        assert f"the last checkpoint is{told}" in caplog.text
        assert told.startswith(" on this machine only, for the store did not take it: on ")
        assert f"copy {here} to {place}/checkpoints/step-00000007 before you run the same command again" in told


def test_a_rank_on_the_drivers_node_hears_it_while_the_store_is_out(patch: pytest.MonkeyPatch) -> None:
    take_away_the_store(patch)
    output = local_of(PLACE)
    heard = StopListener(output, Ranks(), run="run")
    assert heard.agree(torch.ones(()))[1] is Action.GO_ON, "no step waits for the store"
    request_stop(output, Action.END, run="run", reason="so")
    assert heard.agree(torch.ones(()))[1] is Action.END
    assert heard.reason == "so"
    assert heard.agree(torch.ones(()))[1] is Action.GO_ON, "a word is heard once"
    assert StopListener(output, Ranks(), run="another").agree(torch.ones(()))[1] is Action.GO_ON


def test_a_rank_on_another_node_hears_it_when_the_store_answers_again(
    patch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = local_of(REFUSED)
    for action in (Action.SAVE, Action.END):
        request_stop(driver, action, run="run", reason=f"to {action.name}")
    patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    heard = StopListener(local_of(REFUSED), Ranks(), run="run")
    assert heard.agree(torch.ones(()))[1] is Action.GO_ON
    patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store_of(REFUSED.bucket)._client.create_bucket(Bucket=REFUSED.bucket)

    def is_told_to_end() -> bool:
        found = store_of(REFUSED.bucket).read_tagged(f"{REFUSED.key}/stop.json")
        return found is not None and json.loads(found[0])["action"] == Action.END

    assert comes(is_told_to_end), "a later word replaces an earlier one, which may be there for a moment"
    patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert comes(lambda: heard.agree(torch.ones(()))[1] is Action.END), "the earlier one may be heard first"
    assert heard.reason == "to END"
