"""What judges, in a process of its own: it loads each system once."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch

from retort.config import validate
from retort.data.phone_mels import PhoneMelSet
from retort.evaluation.judge import Judge, System, TestStrings
from retort.evaluation.leakage import Leak, measure_leakage
from retort.evaluation.lm_confidence import Sureness, measure_confidence
from retort.evaluation.long_text import judge_long
from retort.evaluation.service import Asked, BlackBoxService, Service
from retort.evaluation.speed import Measured, SpeedCase, measure_all, measure_peak_memory
from retort.inference.opening import open_speaker
from retort.inference.speaker import Request, Speaker
from retort.inference.zero_shot_speaker import ZeroShotSpeaker
from retort.orchestration.api_key import api_key_of
from retort.orchestration.evaluate.scorers import open_scorers
from retort.orchestration.evaluate.tasks import BestTask, ChoosingTask, LongTask, PlainTask, Task
from retort.orchestration.outputs import with_results
from retort.run_config import EvaluateConfig, SystemConfig
from retort.run_config.evaluate import SpeedConfig
from retort.store.place import received


class EvaluationWorker:
    """Lives in a Ray actor: loads each system once, judges pieces, measures confidence and speed."""

    clock: Callable[[], float] = staticmethod(time.perf_counter)
    """What speed is measured by, seconds."""

    def __init__(self, tree: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.config = with_results(validate(tree, EvaluateConfig, where="evaluate"))
        self.device = "cuda" if self.config.pool.gpus_per_worker > 0 else "cpu"
        self.strings = TestStrings(self.config.data, split=self.config.split, count=self.config.num_strings)
        self._systems: dict[str, System] = {}

    def judge(self, task: Task | ChoosingTask, folder: str, kept: list[str]) -> str:
        """Judge one piece and write it; a piece appears whole or not at all."""
        system, judge, piece = self._system(task.system), self._judge_of_all, task.piece(received(folder))
        match task:
            case LongTask():
                piece.write_rows(judge_long(judge, system, task.config))
            case PlainTask(slice_name=None):
                keeps_mels = self.config.mel_reference is not None
                piece.write(judge.judge(system, task.ids), kept=kept, keeps_mels=keeps_mels)
            case PlainTask(slice_name=name):
                verdicts = judge.judge(system, task.ids, slice_name=name)
                piece.write_rows([verdict.item for verdict in verdicts])
            case ChoosingTask():
                verdicts = self._judge_that_chooses.judge(system.at_temperature(task.name, task.temperature), task.ids)
                piece.write_rows([verdict.item for verdict in verdicts])
            case BestTask():
                at_best = system.at_temperature(task.name, task.temperature)
                piece.write(judge.judge(at_best, task.ids), kept=kept, keeps_mels=False)
        return task.system

    @cached_property
    def _judge_of_all(self) -> Judge:
        config = self.config
        return Judge(
            self.strings,
            open_scorers(config, device=self.device),
            max_frames=config.max_frames,
            seed=config.seed,
            naturalness_strings=config.naturalness_strings,
            prosody=config.prosody,
        )

    @cached_property
    def _judge_that_chooses(self) -> Judge:
        """Of words and failures as the first recogniser hears them, on the strings that choose a temperature."""
        config, temperatures = self.config, self.config.temperatures
        assert temperatures is not None
        strings = TestStrings(config.data, split=temperatures.split, count=temperatures.num_strings)
        scorers = dataclasses.replace(self._judge_of_all.scorers, encoder=None, naturalness=(), others={})
        return Judge(strings, scorers, max_frames=config.max_frames, seed=config.seed)

    def confidence(self) -> Sureness:
        """Confidence of every model that gives tokens a probability."""
        systems = [self._system(system.name) for system in self.config.systems]
        teacher, size = self.config.confidence_teacher, self.config.batch_size
        return measure_confidence(self.strings, systems, teacher=teacher, batch_size=size)

    def leakage(self, name: str) -> Leak:
        """What a zero-shot model's content tells of speakers."""
        config, speaker = self.config, self._system(name).speaker
        assert config.leakage is not None
        assert isinstance(speaker, ZeroShotSpeaker), f"{name} is no zero-shot model"
        return measure_leakage(
            name,
            speaker.maker,
            PhoneMelSet.open(config.leakage.mels),
            self._judge_of_all.scorers.encoder,
            config.leakage,
            num_resamples=config.num_resamples,
            seed=config.seed,
        )

    def speed(self) -> Iterator[str | Measured]:
        """How far it is, and last the speed of every model at each batch size, and of the first one opened again."""
        settings = self.config.speed
        assert settings is not None
        yield "opening the models"
        cases = {system.name: self._case(system.name) for system in self.config.systems if system.model is not None}
        yield from measure_all(
            cases,
            self._opened_again(next(iter(cases))) if settings.noise_floor and cases else None,
            batch_sizes=settings.batch_sizes,
            seconds=self._seconds(settings),
            turns=settings.turns,
            clock=self.clock,
        )

    def _opened_again(self, name: str) -> SpeedCase:
        config = next(system for system in self.config.systems if system.name == name)
        return dataclasses.replace(self._case(name), speaker=self._open(config))

    def memory(self, name: str) -> float:
        """Peak memory of one model at the saturating batch size, MiB."""
        settings = self.config.speed
        assert settings is not None
        return measure_peak_memory(
            lambda: self._case(name),
            batch_size=settings.batch_sizes[-1],
            seconds=self._seconds(settings),
            device=torch.device(self.device),
        )

    def _seconds(self, settings: SpeedConfig) -> float:
        return settings.num_frames / self.strings.description.frame_rate

    def _case(self, name: str) -> SpeedCase:
        system = self._system(name)
        assert system.speaker is not None
        row, speaker = max(self.strings.rows.values(), key=lambda r: len(r.text_ids)), system.speaker
        # A row that cannot be said in its own voice is a failure, told by then; any voice takes the same time.
        who = row.speaker if row.speaker in speaker.voices else speaker.voices[0]
        return SpeedCase(speaker, Request(row.text, who, 0, self.strings.voice_for(row, speaker)), system.decoding)

    def _system(self, name: str) -> System:
        if name not in self._systems:
            config = next(system for system in self.config.systems if system.name == name)
            speaker: Speaker | None = None
            service: Asked | None = None
            if config.model is not None:
                speaker = self._open(config)
            if config.endpoint is not None:
                service = Service(config.endpoint, api_key_of(config.endpoint), 1 / self.config.pool.size)
            if config.teacher is not None:
                service = BlackBoxService(config.teacher)
            self._systems[name] = System(name, config.kind, speaker, config.decoding, service)
        return self._systems[name]

    def _open(self, system: SystemConfig) -> Speaker:
        assert system.model is not None
        return open_speaker(system.model, precision=self.config.precision, device=self.device)
