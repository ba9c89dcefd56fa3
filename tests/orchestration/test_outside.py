"""`import` and `export` as jobs: a Hugging Face folder, a model that speaks, a student, a folder again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retort.audio.mel_rvq import MelRVQConfig, fit_mel_rvq
from retort.cli import run
from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.inference.decoding import CodecLMDecoding
from retort.inference.runner import plan_for
from retort.inference.sampling import SamplerConfig
from retort.inference.speaker import Request, Wish
from retort.inference.speech import SpeechEngine
from retort.inference.synthesizer import Synthesizer
from retort.inference.torch_runner import TorchRunner
from retort.methods.cfg_distill import CFGDistillConfig, check_teacher
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.initialise import student_from
from retort.models.outside.beside import carry_outside
from retort.models.weights import fingerprint_of, load_codec_lm, save_model
from retort.nn.guidance import TwoTermGuidance
from retort.orchestration.outside import run_export, run_import
from retort.run_config import ExportConfig, ImportConfig
from retort.store.artifact import describe_artifact, read_artifact, write_artifact
from retort.store.results import result_of
from retort.text.front_end import open_text_front_end
from tests.models.checkpoints import (
    FIRST_CODE,
    KINDS,
    NUM_CODES,
    SPEECH_END,
    SPEECH_START,
    TEXT_END,
    TEXT_START,
    VOCABULARY,
    import_tree,
    write_checkpoint,
)
from tests.orchestration.tiny_runs import Lines, tone


def imported(tmp_path: Path, kind: str = "llama_gqa_untied", **changes: object) -> Path:
    """The output folder of an import."""
    if not (tmp_path / "hf").exists():
        write_checkpoint(tmp_path / "hf", kind)
    run_import(
        validate(import_tree(tmp_path / "hf", tmp_path / "teacher", **changes), ImportConfig, where="t"), Lines()
    )
    return tmp_path / "teacher"


def exported(tmp_path: Path, model: Path, **changes: object) -> Path:
    tree = {"job": "export", "output": str(tmp_path / "exported"), "model": str(model), **changes}
    return Path(run_export(validate(tree, ExportConfig, where="t"), Lines())["result"])


def saved_codec(folder: Path, *, num_codebooks: int = 1, codebook_size: int = NUM_CODES) -> Path:
    config = MelRVQConfig(
        num_codebooks=num_codebooks, codebook_size=codebook_size, kmeans_iterations=2, griffin_lim_iterations=2
    )
    fit_mel_rvq([tone(i, 1.0) for i in range(4)], config).save(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_import_then_export_gives_the_folder_back(tmp_path: Path, kind: str) -> None:
    teacher = imported(tmp_path, kind)
    target = exported(tmp_path, teacher)
    original, written = load_file(tmp_path / "hf" / "model.safetensors"), load_file(target / "model.safetensors")
    assert set(original) == set(written)
    assert all(torch.equal(written[name], tensor) for name, tensor in original.items())
    assert json.loads((target / "config.json").read_text()) == json.loads((tmp_path / "hf" / "config.json").read_text())
    for name in ("tokenizer.json", "generation_config.json"):
        assert (target / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    record = read_artifact(result_of(teacher)).info
    assert record.inputs["checkpoint"].startswith("hf-")
    assert read_artifact(target).info.inputs == {"model": record.version}


@pytest.mark.parametrize("kind", ["llama3_scaled", "qwen2_untied"])
def test_a_student_of_fewer_blocks_loads_in_transformers_with_the_same_logits(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    teacher_folder = result_of(imported(tmp_path, kind))
    teacher = load_codec_lm(teacher_folder)
    student = student_from(teacher.model, teacher.model.config.replace(num_layers=2), init="teacher").eval()
    with torch.no_grad():  # as if it had been trained
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    lineage = teacher.lineage.replace(method="cfg_distill", teacher_fingerprint=teacher.fingerprint)
    write_student(tmp_path / "student", student, lineage, teacher_folder)
    target = exported(tmp_path, tmp_path / "student")
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    assert theirs.config.num_hidden_layers == 2
    assert len(theirs.model.layers) == 2
    assert not theirs.config.tie_word_embeddings, "training moved input and output apart"
    synthesizer = synthesizer_of(teacher_folder)
    conditions = synthesizer.conditions([Request("one two", "default", 0)], CodecLMDecoding())
    codes = torch.randint(NUM_CODES, (1, 1, 30))
    inputs = torch.cat([torch.full((1, 1, 1), student.config.fill), codes], dim=2)
    text = [*b"one two"]
    content = json.loads((target / "tokenizer.json").read_text())["model"]["vocab"]
    ids = [content["Ġ" if byte == 32 else chr(byte)] for byte in text]
    whole = [TEXT_START, *ids, TEXT_END, SPEECH_START, *(codes[0, 0] + FIRST_CODE).tolist()]
    with torch.no_grad():
        ours = student(conditions, inputs)[0, :, 0]
        logits = theirs(torch.tensor([whole])).logits[0, -31:]
    expected = torch.cat([logits[:, FIRST_CODE : FIRST_CODE + NUM_CODES], logits[:, SPEECH_END, None]], dim=1)
    assert torch.allclose(ours, expected, atol=1e-4, rtol=0)


def write_student(folder: Path, student, lineage: CodecLMLineage, teacher: Path) -> None:
    """A student's output folder, as a training job leaves it."""

    def fill(target: Path) -> None:
        save_model(target, student, lineage)
        shutil.copytree(teacher / "text", target / "text")
        carry_outside(teacher, target)

    info = describe_artifact("model", "student", fingerprint_of(student), inputs={}, config={})
    write_artifact(folder / "result", info, fill)


def synthesizer_of(folder: Path) -> Synthesizer:
    """Conditions only: the codec is not there."""

    class NoCodec:
        num_codebooks = 1

    voices = {"default": torch.zeros(1, 0, dtype=torch.int64)}
    return Synthesizer(load_codec_lm(folder), NoCodec(), open_text_front_end(folder / "text"), voices)


def test_an_imported_model_with_a_codec_speaks_and_both_decoders_agree(tmp_path: Path) -> None:
    codec = saved_codec(tmp_path / "codec")
    tree = {"codec": {"kind": "saved", "path": str(codec)}, "null_text": ["<|text_end|>"]}
    synthesizer = Synthesizer.open(result_of(imported(tmp_path, **tree)))
    assert list(synthesizer.voices) == ["default"]
    for scale in (1.0, 1.5):
        request, decoding = Request("one two", "default", 3), synthesizer.decoding_at(scale)
        guidance = decoding.guidance.build()
        (spoken,) = synthesizer.speak([request], decoding, max_frames=12)
        assert spoken.samples_N.numel()
        model, conditions = synthesizer.loaded.model, synthesizer.conditions([request], decoding)
        runner = TorchRunner(model, max_slots=1, max_conditions=len(guidance.conditions), max_columns=64)
        plan = plan_for(model, conditions, guidance=guidance, sampler=SamplerConfig(), seed=3, max_frames=12)
        runner.admit(0, plan)
        assert spoken.codes is not None
        tokens = [int(runner.step([0])[0][0, 0]) for _ in range(spoken.codes.shape[1])]
        assert tokens == spoken.codes[0].tolist()


def test_the_engine_of_say_and_serve_takes_an_imported_model(tmp_path: Path) -> None:
    codec = {"kind": "saved", "path": str(saved_codec(tmp_path / "codec"))}
    synthesizer = Synthesizer.open(result_of(imported(tmp_path, "qwen2_tied", codec=codec)))
    engine = SpeechEngine(synthesizer, max_slots=1, max_conditions=1, max_seconds=1.0)
    engine.add(Wish(Request("one two", "default", 1), is_streamed=False))
    sounds = []
    while engine.num_active:
        sounds += engine.step()
    assert sounds[-1].outcome in ("said", "too_long", "loop", "no_sound")


def test_the_scale_cannot_be_an_input_of_such_a_student(tmp_path: Path) -> None:
    teacher = load_codec_lm(result_of(imported(tmp_path, null_text=["<|text_end|>"])))
    guidance = TwoTermGuidance(scale=1.5)
    with pytest.raises(ConfigError, match="without a prompt column"):
        check_teacher(CFGDistillConfig(guidance=guidance, guidance_scales=(1.5, 2.0)), teacher)
    check_teacher(CFGDistillConfig(guidance=guidance), teacher)


def test_guidance_needs_a_declared_null(tmp_path: Path) -> None:
    loaded = load_codec_lm(result_of(imported(tmp_path)))
    with pytest.raises(ConfigError, match="trained with those drops"):
        loaded.lineage.check_guidance(TwoTermGuidance(scale=1.5).build())


def test_a_model_of_an_outside_codec_says_why_it_is_mute(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="codes of tiny, a codec that Retort does not have"):
        Synthesizer.open(result_of(imported(tmp_path)))


def test_an_import_is_done_once_and_says_what_it_ignores(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_tied")
    config_file = tmp_path / "hf" / "config.json"
    tree = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**tree, "auto_map": {"AutoModel": "modeling.Evil"}}))
    (tmp_path / "hf" / "modeling.py").write_text("raise SystemExit('this must not run')\n")
    config = validate(import_tree(tmp_path / "hf", tmp_path / "out"), ImportConfig, where="t")
    lines = Lines()
    first, second = run_import(config, lines), run_import(config, lines)
    assert any("auto_map" in line and "ignored" in line for line in lines.lines)
    assert lines.lines[-1].endswith("is finished")
    assert first["fingerprint"] == second["fingerprint"]
    assert "auto_map" not in json.loads((exported(tmp_path, tmp_path / "out") / "config.json").read_text())


CHANGES = [
    ({"audio": {"first": FIRST_CODE, "count": 40, "eos": SPEECH_END}}, f"beyond the vocabulary of {VOCABULARY}"),
    ({"audio": {"first": "<|s_99|>", "count": 8, "eos": SPEECH_END}}, "audio.first: '<.s_99.>' is no token"),
    ({"audio": {"first": FIRST_CODE, "count": 8, "eos": FIRST_CODE + 3}}, "is one of the codes"),
    ({"audio": {"first": FIRST_CODE, "count": 8, "eos": SPEECH_START}}, "must differ"),
    ({"audio": {"first": FIRST_CODE, "count": 8, "eos": 9999}}, "id 9999 is not in the vocabulary"),
    ({"template": {"after": ""}}, "template.after: it is empty"),
    ({"template": {"after": "<|nonsense|>"}}, "'<.nonsense.>' is no token"),
    ({"template": {"before": "<|speech_start|>", "after": "<|speech_start|>"}}, "must not stand elsewhere"),
    ({"template": {"after": [FIRST_CODE, SPEECH_START]}}, "is one of the codes"),
    ({"null_text": [4000]}, "null_text: id 4000"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_declarations_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, **change)
    assert not (tmp_path / "teacher" / "result").exists()


def test_a_codec_of_other_codes_is_refused(tmp_path: Path) -> None:
    codec = saved_codec(tmp_path / "codec", num_codebooks=2)
    with pytest.raises(ConfigError, match=r"2 codebook\(s\) of 24.*one stream of 24"):
        imported(tmp_path, codec={"kind": "saved", "path": str(codec)})


def test_a_tied_checkpoint_that_stores_another_output_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_tied")
    file = tmp_path / "hf" / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"tie_word_embeddings is true, and lm_head\.weight differs"):
        imported(tmp_path)
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, file)
    imported(tmp_path)


def test_a_tokenizer_that_is_missing_or_another_models_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_tied", vocab_size=FIRST_CODE + NUM_CODES - 1)
    with pytest.raises(ConfigError, match="beyond the vocabulary"):
        imported(tmp_path)
    with pytest.raises(DataError, match=r"ids up to 283, the model's vocabulary is 283"):
        imported(tmp_path, audio={"first": FIRST_CODE, "count": NUM_CODES - 1, "eos": SPEECH_END})
    (tmp_path / "hf" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: no such file"):
        imported(tmp_path)


def test_what_was_not_imported_cannot_be_exported(tmp_path: Path) -> None:
    teacher = result_of(imported(tmp_path))
    loaded = load_codec_lm(teacher)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "text").symlink_to(teacher / "text")
    write_student(tmp_path / "student", loaded.model, loaded.lineage, tmp_path / "plain")
    with pytest.raises(ConfigError, match="not made from an imported checkpoint"):
        exported(tmp_path, tmp_path / "student")
    with pytest.raises(DataError, match="no such folder"):
        exported(tmp_path, tmp_path / "absent")


def test_a_smaller_number_format_can_be_asked_for(tmp_path: Path) -> None:
    target = exported(tmp_path, imported(tmp_path), number_format="bfloat16")
    assert {tensor.dtype for tensor in load_file(target / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_command_line_imports_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "hf", "qwen2_tied")
    file = tmp_path / "import.yaml"
    file.write_text(json.dumps(import_tree(tmp_path / "hf", tmp_path / "teacher")))
    assert run(["import", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"] == "import"
    file.write_text(json.dumps({"job": "export", "output": str(tmp_path / "out"), "model": str(tmp_path / "teacher")}))
    assert run(["export", str(file)]) == 0
    assert (tmp_path / "out" / "result" / "model.safetensors").is_file()
    assert run(["import", str(file)]) == 2
