import itertools
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from retort.audio.files import read_audio
from retort.audio.mel import log_mel
from retort.config import validate
from retort.data.durations import read_durations
from retort.data.phone_features import phone_energy
from retort.data.phone_mels import FromSwaps, PhoneMelSet
from retort.errors import ConfigError, DataError
from retort.inference.zero_shot_making import MelWish, ZeroShotMaker
from retort.models.weights import load_zero_shot
from retort.orchestration.cluster import ray_session
from retort.orchestration.generate import chunked
from retort.orchestration.generate.phone_mel_job import run_generate_phone_mels
from retort.orchestration.generate.phone_mel_swaps import plan_swaps, similarity_gain
from retort.run_config import GeneratePhoneMelsConfig, SwappedPhoneMels
from retort.store.results import result_of
from tests.inference.speaking import speaking_zero_shot
from tests.orchestration.phone_mel_runs import MEL, VOICES, write_aligned
from tests.orchestration.tiny_runs import Lines, killing_an_actor_after, run_and_kill_the_driver

KEPT = {"min_similarity_gain": None}
"""A teacher with random weights speaks in no voice."""


def tree_of(output, source, **changes):
    return {"job": "generate", "makes": "phone_mels", "output": str(output), "source": source, **changes}


def config_of(output, source, **changes):
    return validate(tree_of(output, source, **changes), GeneratePhoneMelsConfig, where="test")


class _ThisProcess:
    """A workplace without Ray: the work is done here."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def run(self, work):
        return work(Lines())


def in_process(config):
    """Run the job without Ray: the workers, the plan and the result are the real ones."""

    def run_chunks(chunks, worker, arguments, pool, progress, note):
        del pool, progress, note
        alive = worker(**arguments)
        for number in chunks.missing():
            chunks.write(number, alive.work(number))
        return chunks.num_chunks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked, "run_chunks", run_chunks)
        patch.setattr(chunked, "workplace", _ThisProcess)
        return run_generate_phone_mels(config, Lines())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Aligned recordings, their phone mels, and a teacher that knows these phones: the folder that holds them."""
    folder = tmp_path_factory.mktemp("made")
    write_aligned(folder)
    in_process(config_of(folder / "mels", {"kind": "recordings", "durations": str(folder / "durations")}))
    phones = PhoneMelSet.open(result_of(folder / "mels")).description.phones
    speaking_zero_shot(folder, phones=phones)
    return folder


def swapped(made, **changes):
    return {
        "kind": "swapped", "teacher": str(made / "zero_shot"), "mels": str(made / "mels"), "filters": KEPT, **changes
    }  # fmt: skip


@pytest.fixture(scope="module")
def said(made, tmp_path_factory):
    """The rows in other voices."""
    output = tmp_path_factory.mktemp("said") / "out"
    summary = in_process(config_of(output, swapped(made)))
    return PhoneMelSet.open(result_of(output)), summary


def test_a_row_is_its_recording_with_its_own_durations(made):
    mels = PhoneMelSet.open(result_of(made / "mels"))
    aligned = {row.id: row for row in read_durations(result_of(made / "durations"))}
    assert mels.column("id") == sorted(aligned)
    assert mels.description.phones == tuple(sorted({p for row in aligned.values() for p in row.phones if p}))
    assert mels.description.timbre_encoder == "resemblyzer-0.1"
    for row in mels:
        recording = read_audio(made / "recordings" / f"{row.id}.wav")
        assert torch.allclose(row.mel_TM, log_mel(recording.samples_N, MEL).T, atol=0.01)
        assert row.phones == aligned[row.id].phones
        assert row.frames_P.tolist() == list(aligned[row.id].frames)
        assert int(row.frames_P.sum()) == len(row.mel_TM)
        assert torch.allclose(row.energy_P, phone_energy(row.mel_TM, row.frames_P), atol=0.01)
        assert row.log_f0_P[~row.voiced_P].eq(0).all()
        assert 60 < float(row.log_f0_P[row.voiced_P].exp().median()) < 300
        assert float(row.timbre_E.norm()) == pytest.approx(1.0, abs=1e-4)
        assert (row.speaker in VOICES, row.source_id, row.prompt_speaker) == (True, None, None)


def test_voiced_sounds_are_voiced(made):
    mels = PhoneMelSet.open(result_of(made / "mels"))
    voiced = Counter()
    for row in mels:
        voiced.update(
            is_voiced
            for phone, is_voiced in zip(row.phones, row.voiced_P.tolist(), strict=True)
            if phone and phone[-1] not in "sftkθ"
        )
    assert voiced[True] > 3 * voiced[False]


def test_timbres_tell_voices_apart(made):
    mels = PhoneMelSet.open(result_of(made / "mels"))
    timbres_UE = torch.stack([row.timbre_E for row in mels])
    speakers = mels.column("speaker")
    same = torch.tensor([[a == b for b in speakers] for a in speakers])
    cosines = timbres_UE @ timbres_UE.T
    apart = ~torch.eye(len(speakers), dtype=torch.bool)
    assert cosines[same & apart].mean() > cosines[~same].mean() + 0.05


def test_what_has_no_durations_or_changed_or_went_away_is_counted_by_reason(tmp_path):
    manifest, durations = write_aligned(tmp_path, strings=8, test_strings=2)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    names = [row["id"] for row in rows]
    (manifest.parent / f"{names[0]}.wav").write_bytes((manifest.parent / f"{names[1]}.wav").read_bytes()[:-8000])
    (manifest.parent / f"{names[2]}.wav").write_bytes(b"not a recording")
    strange = {**rows[3], "id": "strange"}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:3], *rows[4:], strange]))
    summary = in_process(config_of(tmp_path / "out", {"kind": "recordings", "durations": str(durations)}))
    assert summary["dropped"].pop("no_durations") == 1
    assert summary["dropped"].pop("not_in_corpus") == 1
    assert sum(summary["dropped"].values()) == 2
    assert summary["asked"] == len(rows)
    assert summary["rows"] == len(rows) - 3
    few = config_of(tmp_path / "few", {"kind": "recordings", "durations": str(durations), "splits": ["test"]})
    in_process(few)
    assert set(PhoneMelSet.open(result_of(tmp_path / "few")).column("split")) == {"test"}


def test_recordings_that_moved_are_found_by_their_ids(made, tmp_path):
    (tmp_path / "moved").mkdir()
    for file in (made / "recordings").iterdir():
        (tmp_path / "moved" / file.name).write_bytes(file.read_bytes())
    corpus = {"kind": "manifest", "path": str(tmp_path / "moved" / "manifest.jsonl")}
    source = {"kind": "recordings", "durations": str(made / "durations"), "corpus": corpus}
    in_process(config_of(tmp_path / "out", source))
    assert _records(tmp_path / "out") == _records(made / "mels")


def test_a_swapped_row_is_phone_aligned_with_its_source_and_in_another_voice(made, said):
    swaps, summary = said
    mels = PhoneMelSet.open(result_of(made / "mels"))
    by_id = {row.id: row for row in mels}
    train = mels.split("train")
    assert summary["rows"] == len(swaps) == len(train)
    assert sorted(swaps.column("source_id")) == train.column("id")
    for row in swaps:
        source = by_id[row.source_id]
        assert (row.phones, row.text, row.split) == (source.phones, source.text, "train")
        assert torch.equal(row.frames_P, source.frames_P)
        assert row.mel_TM.shape == source.mel_TM.shape
        assert row.speaker == row.prompt_speaker != source.speaker
        assert row.prompt_speaker in set(train.column("speaker"))


def test_a_swapped_row_is_the_teachers_mel_of_its_own_seed_alone(made, said):
    swaps, _ = said
    mels = PhoneMelSet.open(result_of(made / "mels"))
    by_id = {row.id: row for row in mels}
    maker = ZeroShotMaker.open(result_of(made / "zero_shot"))
    plan = {swap.id: swap for swap in plan_swaps(mels, SwappedPhoneMels(teacher=Path("t"), mels=Path("m")), seed=0)}
    for row, seed in list(zip(swaps, swaps.column("seed"), strict=True))[:4]:
        source, prompt = by_id[row.source_id], by_id[plan[row.id].prompt]
        longest = maker.prompt_max_frames
        begin = int(plan[row.id].position * (max(0, len(prompt.mel_TM) - longest) + 1))
        wish = MelWish(
            maker.numbers(source.phones), prompt.mel_TM[begin : begin + longest], prompt.timbre_E, seed, 0.8,
            frames_P=source.frames_P,
        )  # fmt: skip
        assert torch.equal(maker.make(wish)[0].half().float(), row.mel_TM)


def test_a_swapped_set_says_how_it_was_made(made, said):
    swaps, _ = said
    source = swaps.description.source
    assert isinstance(source, FromSwaps)
    assert source.teacher_fingerprint == load_zero_shot(result_of(made / "zero_shot")).fingerprint
    assert len(set(swaps.column("seed"))) == len(swaps)
    for line in swaps.column("made_with"):
        told = json.loads(line)["source"]
        assert (told["teacher_fingerprint"], told["noise_scale"]) == (source.teacher_fingerprint, 0.8)
        assert told["filters"]["min_similarity_gain"] is None


def test_a_row_depends_on_its_id_and_the_seed_not_on_its_chunk(made, said, tmp_path):
    swaps, _ = said
    in_process(config_of(tmp_path / "small", swapped(made, chunk_size=2)))
    in_process(config_of(tmp_path / "other", swapped(made), seed=1))
    small, other = (PhoneMelSet.open(result_of(tmp_path / name)) for name in ("small", "other"))
    assert small.column("id") == swaps.column("id")
    assert all(torch.equal(a.mel_TM, b.mel_TM) for a, b in zip(small, swaps, strict=True))
    assert any(not torch.equal(a.mel_TM, b.mel_TM) for a, b in zip(other, swaps, strict=True))


def test_each_row_gets_so_many_different_voices_and_no_more_than_there_are(made):
    mels = PhoneMelSet.open(result_of(made / "mels"))
    source = SwappedPhoneMels(teacher=Path("t"), mels=Path("m"), pairs_per_row=2)
    plan, speaker = plan_swaps(mels, source, seed=3), dict(zip(mels.column("id"), mels.column("speaker"), strict=True))
    voices: dict[str, set[str]] = {}
    for swap in plan:
        voices.setdefault(swap.source, set()).add(speaker[swap.prompt])
    assert {len({*others, speaker[name]}) for name, others in voices.items()} == {3}
    assert plan == plan_swaps(mels, source, seed=3) != plan_swaps(mels, source, seed=4)
    with pytest.raises(ConfigError, match="in 2 other voices, and pairs_per_row asks for 3"):
        plan_swaps(mels, source.replace(pairs_per_row=3), seed=0)


def test_rows_that_are_no_nearer_to_the_voice_asked_for_are_dropped_by_reason(made, said, tmp_path):
    swaps, _ = said
    mels = PhoneMelSet.open(result_of(made / "mels"))
    by_id = {row.id: row for row in mels}
    plan = {swap.id: swap for swap in plan_swaps(mels, SwappedPhoneMels(teacher=Path("t"), mels=Path("m")), seed=0)}
    gains = {row.id: similarity_gain(row.timbre_E, by_id[row.source_id], by_id[plan[row.id].prompt]) for row in swaps}
    limit = sorted(gains.values())[len(gains) // 2]
    summary = in_process(config_of(tmp_path / "out", swapped(made, filters={"min_similarity_gain": limit})))
    kept = PhoneMelSet.open(result_of(tmp_path / "out")).column("id")
    assert kept == sorted(name for name, gain in gains.items() if gain > limit)
    assert summary["dropped"] == {"other_voice": len(gains) - len(kept)}
    hearing = {"max_cer": 0.1, "recogniser": {"kind": "pocketsphinx"}, "min_similarity_gain": None}
    with pytest.raises(DataError, match=r"no row is left \(\{'cer': "):
        in_process(config_of(tmp_path / "heard", swapped(made, filters=hearing)))


def test_a_sound_that_the_recogniser_cannot_take_is_a_reject_and_ends_nothing(made, tmp_path, monkeypatch):
    calls = itertools.count()

    def transcribe(self, samples_N, sample_rate):
        if next(calls) == 2:
            raise ValueError("what a library raises")
        return "one"

    monkeypatch.setattr("retort.evaluation.asr.PocketSphinx.transcribe", transcribe)
    hearing = {"max_cer": 99.0, "recogniser": {"kind": "pocketsphinx"}, "min_similarity_gain": None}
    summary = in_process(config_of(tmp_path / "out", swapped(made, filters=hearing)))
    assert summary["dropped"] == {"cer": 1}
    (reject,) = [json.loads(line) for line in (result_of(tmp_path / "out") / "rejects.jsonl").read_text().splitlines()]
    assert "what a library raises" in reject["detail"]


@pytest.mark.parametrize(
    ("lineage", "error", "message"),
    [
        ({"phones": ("w", "n")}, DataError, "does not know the phones"),
        ({"voice": "en-gb"}, DataError, "voice of espeak-ng differs"),
        ({"timbre_encoder": "other-1"}, DataError, "timbre encoder differs"),
    ],
)
def test_a_teacher_of_other_phones_voices_or_timbres_is_refused(made, tmp_path, lineage, error, message):
    phones = PhoneMelSet.open(result_of(made / "mels")).description.phones
    speaking_zero_shot(tmp_path, **{"phones": phones, **lineage})
    with pytest.raises(error, match=message):
        run_generate_phone_mels(
            config_of(tmp_path / "out", swapped(made, teacher=str(tmp_path / "zero_shot"))), Lines()
        )


def test_a_set_that_a_teacher_spoke_is_not_swapped_again(made, said, tmp_path):
    in_process(config_of(tmp_path / "said", swapped(made)))
    with pytest.raises(ConfigError, match="was made by a teacher"):
        run_generate_phone_mels(config_of(tmp_path / "out", swapped(made, mels=str(tmp_path / "said"))), Lines())


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["recordings", "swapped"])
def test_killed_actor_and_killed_driver_leave_each_id_exactly_once_and_change_nothing(made, tmp_path, kind):
    if kind == "recordings":
        _, durations = write_aligned(tmp_path, strings=44, test_strings=2)
        source = {"kind": "recordings", "durations": str(durations)}
        asked = sorted(row.id for row in read_durations(result_of(durations)))
    else:
        source = swapped(made, chunk_size=2, pairs_per_row=2)
        train = PhoneMelSet.open(result_of(made / "mels")).split("train").column("id")
        asked = sorted(f"{name}~{number}" for name in train for number in range(2))
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree_of(tmp_path / "driver", source)))
    run_and_kill_the_driver("generate", file, tmp_path / "driver" / "work", records=1)
    assert not (tmp_path / "driver" / "result").exists()
    with ray_session(num_cpus=2):
        summary = run_generate_phone_mels(config_of(tmp_path / "driver", source), Lines())
        with killing_an_actor_after(1, tmp_path / "actor" / "work") as killed:
            run_generate_phone_mels(config_of(tmp_path / "actor", source, pool={"size": 1}), Lines())
    assert len(killed) == 1
    assert summary["rows"] == len(asked)
    assert sorted(_records(tmp_path / "driver")) == asked
    assert _records(tmp_path / "driver") == _records(tmp_path / "actor")
    assert not (tmp_path / "driver" / "work").exists()
    assert run_generate_phone_mels(config_of(tmp_path / "driver", source), Lines()) == summary


def _records(output):
    """All rows by id, but for the version of the code: the checkout may move on between two runs."""
    rows = pq.read_table(result_of(output) / "rows").drop_columns(["made_with"]).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}
