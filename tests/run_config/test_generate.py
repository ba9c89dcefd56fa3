import pytest

from retort.config import validate
from retort.errors import ConfigError
from retort.orchestration.jobs import JOBS, plan_of
from retort.run_config import DemoConfig, GenerateConfig, GenerateMelsConfig, RecordedMels, RunConfig

GIVEN = {"job": "generate", "output": "o", "data": "d"}
TOKENS = {**GIVEN, "teacher": "t", "guidance": {"kind": "none"}}
MELS = {**GIVEN, "makes": "mels", "lm": "l", "source": {"kind": "recordings"}}


def load(tree):
    return validate(tree, RunConfig, where="run.yaml")


def test_a_file_that_does_not_say_what_it_makes_makes_tokens() -> None:
    assert load(TOKENS) == load({**TOKENS, "makes": "tokens"})
    assert isinstance(load(TOKENS), GenerateConfig)


def test_mels_are_told_apart_by_what_is_made_alone_and_in_a_tour() -> None:
    config = load(MELS)
    assert isinstance(config, GenerateMelsConfig)
    assert isinstance(config.source, RecordedMels)
    tour = load({"job": "demo", "output": "o", "jobs": [TOKENS, MELS]})
    assert isinstance(tour, DemoConfig)
    assert [type(job) for job in tour.jobs] == [GenerateConfig, GenerateMelsConfig]
    assert load(tour.model_dump(mode="json")) == tour


PHONES = {"job": "generate", "makes": "phone_mels", "output": "o"}
SWAPPED = {"kind": "swapped", "teacher": "t", "mels": "m"}


def test_a_plan_names_all_that_phone_mels_read() -> None:
    jobs = [
        {**PHONES, "source": SWAPPED},
        {**PHONES, "output": "p", "source": {"kind": "recordings", "durations": "d"}},
    ]
    shown = plan_of(load({"job": "demo", "output": "o", "jobs": jobs}))
    assert "reads teacher t, mels m" in shown
    assert "reads durations d" in shown


def test_generate_is_one_job_and_a_plan_names_all_that_mels_read() -> None:
    assert JOBS.count("generate") == 1
    source = {
        "kind": "synthetic", "teacher": "denoiser", "voices": "mels", "num_rows": 1, "lm_guidance": {"kind": "none"},
        "guidance": {"kind": "none"}, "solver": {"kind": "ddim", "num_steps": 4},
    }  # fmt: skip
    shown = plan_of(load({"job": "demo", "output": "o", "jobs": [{**MELS, "source": source}]}))
    assert "reads lm l, data d, teacher denoiser, voices mels" in shown


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({**TOKENS, "makes": "sound"}, "makes: it is one of tokens, mels"),
        ({**TOKENS, "topk": 3}, "topk: unknown key 'topk'; did you mean 'top_k'?"),
        ({**MELS, "teacher": "t"}, "teacher: unknown key 'teacher'; did you mean 'source.teacher'?"),
        ({**MELS, "source": {"kind": "x"}}, "source.kind: unknown value 'x'; it is one of recordings, synthetic"),
        ({**MELS, "source": {"kind": "recordings", "max_row": 3}}, "did you mean 'max_rows'?"),
        ({**GIVEN, "makes": "mels", "lm": "l"}, "source: required key is missing"),
        ({**PHONES, "source": {**SWAPPED, "pair_per_row": 2}}, "did you mean 'pairs_per_row'?"),
        ({**PHONES, "source": {**SWAPPED, "filters": {"max_cer": 0.1}}}, "max_cer and recogniser go together"),
        ({**PHONES, "source": {"kind": "recordings"}}, "source.durations: required key is missing"),
    ],
)
def test_faults_are_told_for_the_kind_that_is_meant(tree, message) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tree)
    assert str(caught.value).splitlines() == [line for line in str(caught.value).splitlines() if message in line]
