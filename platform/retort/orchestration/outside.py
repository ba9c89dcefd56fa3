"""Outside checkpoints: a Hugging Face folder becomes a model artifact, and a student of one a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retort.audio.codec import Codec, OutsideCodecConfig, open_codec
from retort.errors import ConfigError, DataError
from retort.inference.voices import no_voices, save_voices
from retort.models.codec_lm import CodecLM, count_parameters
from retort.models.codec_lm_lineage import CodecLMLineage
from retort.models.outside.beside import DTYPES, NumberFormat, copy_files, read_outside, write_outside
from retort.models.outside.checkpoint import CONFIG_FILE, WEIGHTS_FILE, Checkpoint
from retort.models.outside.checkpoint_style import CheckpointStyle, read_style, written_config
from retort.models.outside.translate import EMBEDDING, HEAD, expected_shapes, from_codec_lm, to_codec_lm
from retort.models.weights import fingerprint_of, load_codec_lm, save_model
from retort.orchestration.after_finish import after_finish
from retort.orchestration.outputs import job_output, run_once
from retort.orchestration.progress import Progress
from retort.run_config import ExportConfig, ImportConfig, SavedCodec
from retort.store.artifact import Artifact, describe_artifact, write_artifact
from retort.store.commit import write_json_atomic
from retort.store.results import RESULT, folder_with, result_of
from retort.tensors import check_cast
from retort.text.front_end import hf_front_end, open_text_front_end
from retort.text.hf_tokenizer import (
    TOKENIZER_FILE,
    AudioTokens,
    HFTokenizerConfig,
    id_of,
    ids_of,
    named_tokens,
    read_tokenizer,
)
from retort.text.speech_tokens import check_speech_tokens

_OTHER_FORMATS: Mapping[NumberFormat, str] = {
    "float32": "train it again, or restore it",
    "bfloat16": "say number_format: float32",
    "float16": "say number_format: bfloat16 or float32",
}


def run_import(config: ImportConfig, progress: Progress) -> dict[str, Any]:
    """Import a checkpoint; returns at once if it is done.

    Returns the summary: ``result`` (folder), ``fingerprint``, ``parameters``, ``seconds``.

    Raises:
        ConfigError: tokens, template or codec do not fit the checkpoint.
        DataError: the checkpoint is damaged, or computes something that our blocks do not; it is named.
    """
    artifact, seconds = run_once(config, progress, lambda: _import(config, progress), after_finish(config))
    return _summary(config, artifact, seconds)


def _import(config: ImportConfig, progress: Progress) -> Artifact:
    checkpoint = Checkpoint.open(config.checkpoint)
    style = read_style(checkpoint.config)
    if "auto_map" in checkpoint.config:
        progress.log(f"{config.checkpoint} names code of its own (auto_map); it is ignored, and none of it is run")
    content = _tokenizer_content(config.checkpoint)
    text, null_ids = _vocabulary(config, style, content)
    for line in check_speech_tokens(*named_tokens(content), text.audio.codes):
        progress.log(line)
    front_end = hf_front_end(content, text)
    codec = _codec(config, text)
    _check_weights(checkpoint, style)
    progress.log(f"reading {len(checkpoint.shapes)} tensors of {config.checkpoint}")
    translated = to_codec_lm(checkpoint.tensor, style, text, null_ids)
    _check_zeros(translated.model, config, progress)
    fingerprint = checkpoint.fingerprint()
    lineage = CodecLMLineage(
        method="import",
        codec_fingerprint=codec.fingerprint(),
        text_fingerprint=front_end.fingerprint(),
        trained_drops=("no_text", "null") if null_ids else (),
    )

    def fill(folder: Path) -> None:
        save_model(folder, translated.model, lineage)
        front_end.save(folder / "text")
        if not isinstance(codec, OutsideCodecConfig):
            codec.save(folder / "codec")
        save_voices(folder, no_voices())
        write_outside(folder, checkpoint, fingerprint, translated.rest)

    with job_output(config) as output:
        info = describe_artifact(
            "model",
            config.job,
            fingerprint_of(translated.model),
            inputs={"checkpoint": fingerprint},
            config=config.model_dump(mode="json"),
            metrics={"parameters": count_parameters(translated.model)},
        )
        return write_artifact(output / RESULT, info, fill)


def _tokenizer_content(folder: Path) -> str:
    path = folder / TOKENIZER_FILE
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; write it with AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; copy it again from where it came") from error


def _vocabulary(
    config: ImportConfig, style: CheckpointStyle, content: str
) -> tuple[HFTokenizerConfig, tuple[int, ...]]:
    """Speech tokens and template as ids, and the ids of the null text."""
    tokenizer = read_tokenizer(content)
    after = ids_of(tokenizer, config.template.after, where="template.after")
    if not after:
        raise ConfigError("template.after: it is empty; its last token is what the model reads before its first code")
    null_ids = tuple(id_of(tokenizer, token, where="null_text") for token in config.null_text)
    wrong = [i for i in null_ids if not 0 <= i < style.vocab_size]
    if wrong:
        raise ConfigError(f"null_text: id {wrong[0]} is not in the vocabulary of {style.vocab_size}; correct it")
    try:
        text = HFTokenizerConfig(
            language=config.template.language,
            normalise=config.template.normalise,
            before=ids_of(tokenizer, config.template.before, where="template.before"),
            after=after[:-1],
            start=after[-1],
            vocabulary_size=style.vocab_size,
            audio=AudioTokens(
                first=id_of(tokenizer, config.audio.first, where="audio.first"),
                count=config.audio.count,
                eos=id_of(tokenizer, config.audio.eos, where="audio.eos"),
            ),
        )
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"audio or template: {message}") from None
    return text, null_ids


def _codec(config: ImportConfig, text: HFTokenizerConfig) -> Codec | OutsideCodecConfig:
    if not isinstance(config.codec, SavedCodec):
        return config.codec
    path = config.codec.path
    codec = open_codec(folder_with(path, "model.safetensors", "codec"))
    if (codec.num_codebooks, codec.codebook_size) != (1, text.audio.count):
        raise ConfigError(
            f"codec {path}: it has {codec.num_codebooks} codebook(s) of {codec.codebook_size}, the checkpoint has one "
            f"stream of {text.audio.count}; give its own codec, or `codec: {{kind: outside, name: ...}}`"
        )
    return codec


def _check_weights(checkpoint: Checkpoint, style: CheckpointStyle) -> None:
    """Names and shapes; and a tied checkpoint that stores its output all the same must store the same numbers."""
    is_tied = style.tie_word_embeddings
    checkpoint.check(expected_shapes(style, has_head=not is_tied or HEAD in checkpoint.shapes))
    if is_tied and HEAD in checkpoint.shapes and not checkpoint.tensor(HEAD).equal(checkpoint.tensor(EMBEDDING)):
        raise DataError(
            f"{checkpoint.folder}: tie_word_embeddings is true, and {HEAD} differs from {EMBEDDING}; "
            f"set it to false in {CONFIG_FILE} if the stored output is the one to use"
        )


def _check_zeros(model: CodecLM, config: ImportConfig, progress: Progress) -> None:
    """Tensors that are zero throughout: copies that were cut look like that, and so do blocks that pass all through."""
    zeros = [name for name, tensor in model.state_dict().items() if name.endswith("weight") and not bool(tensor.any())]
    silent = [name for name in zeros if "." not in name.removesuffix(".weight")]
    if silent:
        raise DataError(
            f"{config.checkpoint}: all values of what becomes {silent[0]} are zero, so the model would say the same "
            "whatever it reads; copy the folder again from where it came, whole"
        )
    if zeros:
        progress.log(f"all values of {', '.join(zeros[:3])} are zero, in {len(zeros)} tensors; is the copy whole?")


def run_export(config: ExportConfig, progress: Progress) -> dict[str, Any]:
    """Write a model back as a Hugging Face folder, which is the job's ``result``; returns at once if it is done.

    Returns the summary: ``result`` (folder), ``fingerprint``, ``parameters``, ``seconds``.

    Raises:
        ConfigError: the model does not come from an imported checkpoint, the layout has no words for its shape, or the
            number format does not hold its weights.
        DataError: there is no model, or it is damaged.
    """
    artifact, seconds = run_once(config, progress, lambda: _export(config), after_finish(config))
    return _summary(config, artifact, seconds)


def _export(config: ExportConfig) -> Artifact:
    folder = result_of(config.model)
    loaded = load_codec_lm(folder)
    outside, rest = read_outside(folder)
    text = open_text_front_end(folder / "text").config
    if not isinstance(text, HFTokenizerConfig):
        raise DataError(f"{folder / 'text'}: not the tokenizer of an outside model; restore the folder")
    was_tied = read_style(outside.config).tie_word_embeddings
    number_format = outside.number_format if config.number_format == "as_imported" else config.number_format
    tensors, is_tied = from_codec_lm(loaded.model, text, rest, was_tied=was_tied)
    broken = check_cast(tensors, DTYPES[number_format])
    if broken:
        raise ConfigError(f"{config.model} does not fit {number_format}: {broken}; {_OTHER_FORMATS[number_format]}")
    tree = written_config(outside.config, loaded.model.config, is_tied=is_tied, dtype=number_format)

    def fill(target: Path) -> None:
        from safetensors.torch import save_file

        typed = {name: tensor.to(DTYPES[number_format]) for name, tensor in tensors.items()}
        save_file(typed, target / WEIGHTS_FILE, metadata={"format": "pt"})
        write_json_atomic(target / CONFIG_FILE, tree)
        (target / TOKENIZER_FILE).write_bytes((folder / "text" / TOKENIZER_FILE).read_bytes())
        copy_files(folder, target)

    with job_output(config) as output:
        info = describe_artifact(
            "checkpoint",
            config.job,
            loaded.fingerprint,
            inputs={"model": loaded.fingerprint},
            config=config.model_dump(mode="json"),
            metrics={"parameters": sum(tensor.numel() for tensor in tensors.values())},
        )
        return write_artifact(output / RESULT, info, fill)


def _summary(config: ImportConfig | ExportConfig, artifact: Artifact, seconds: float) -> dict[str, Any]:
    return {
        "job": config.job,
        "output": str(config.output),
        "result": str(artifact.path),
        "fingerprint": artifact.info.version,
        "parameters": artifact.info.metrics["parameters"],
        "seconds": round(seconds, 1),
    }
