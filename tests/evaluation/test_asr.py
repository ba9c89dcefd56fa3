import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter

from retort.config import validate
from retort.errors import ConfigError, DataError
from retort.evaluation.asr import (
    CTCConfig,
    PocketSphinxConfig,
    RecogniserConfig,
    WhisperConfig,
    open_recogniser,
)
from retort.evaluation.hearing import loudest_frame_dbfs

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDINGS = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def digits():
    return open_recogniser(PocketSphinxConfig(words=DIGITS))


def recordings(pattern, count):
    import soundfile

    paths = sorted(RECORDINGS.glob(pattern))[:count]
    if not paths:
        pytest.skip("the recordings in ../shared/data are not here")
    read = [soundfile.read(path, dtype="float32") for path in paths]
    return [(torch.from_numpy(samples), rate) for samples, rate in read]


def tone(seconds=1.0, rate=16_000, level=0.3):
    noise = torch.randn(int(seconds * rate), generator=torch.Generator().manual_seed(0))
    return level * noise.clamp(-3, 3) / 3


@pytest.mark.parametrize("samples", [torch.zeros(16_000), torch.zeros(0), 1e-4 * tone(), tone() * float("nan")])
def test_silence_holds_no_words(digits, samples):
    assert digits.transcribe(samples, 16_000) == ""


def test_open_vocabulary_hears_no_dog_in_silence():
    assert open_recogniser(PocketSphinxConfig()).transcribe(torch.zeros(16_000), 16_000) == ""


def test_a_closed_vocabulary_holds_whatever_the_sound(digits):
    heard = digits.transcribe(tone(2.0), 16_000).split()
    assert set(heard) <= set(DIGITS)


def test_results_do_not_depend_on_what_was_heard_before(digits):
    played = recordings("fsdd/*.wav", 60)
    forward = [digits.transcribe(*item) for item in played]
    backward = [digits.transcribe(*item) for item in reversed(played)][::-1]
    assert forward == backward
    assert len(set(forward)) > 1


def test_a_real_sentence_is_partly_heard():
    heard = open_recogniser(PocketSphinxConfig()).transcribe(*recordings("ljspeech/wavs/LJ001-0002.wav", 1)[0])
    assert "being comparatively" in heard


def test_a_word_outside_the_dictionary_is_refused_by_name():
    with pytest.raises(ConfigError, match="qqqz"):
        open_recogniser(PocketSphinxConfig(words=("one", "qqqz")))
    with pytest.raises(ConfigError, match="empty"):
        open_recogniser(PocketSphinxConfig(words=()))


def test_loudest_frame_is_in_decibels_of_full_scale():
    assert loudest_frame_dbfs(torch.ones(1600), 16_000) == pytest.approx(0.0)
    assert loudest_frame_dbfs(torch.full((1600,), 0.1), 16_000) == pytest.approx(-20.0, abs=1e-4)
    assert loudest_frame_dbfs(torch.zeros(10), 16_000) == -math.inf


def test_configurations_are_chosen_by_kind(tmp_path):
    chosen = validate({"kind": "ctc", "path": str(tmp_path)}, RecogniserConfig, where="asr")
    assert chosen == CTCConfig(path=tmp_path)
    with pytest.raises(ConfigError, match="kind"):
        validate({"kind": "oracle"}, RecogniserConfig, where="asr")
    assert TypeAdapter(RecogniserConfig).validate_json('{"kind": "pocketsphinx", "words": ["one"]}').words == ("one",)


def write_ctc(folder, family, seed=0):
    """A tiny random CTC checkpoint, written as the published ones are."""
    import transformers

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4} | {c: 5 + i for i, c in enumerate("abcdefgh")}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    features = transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True)
    transformers.Wav2Vec2Processor(feature_extractor=features, tokenizer=tokenizer).save_pretrained(folder)
    config_class, model_class = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForCTC),
        "hubert": (transformers.HubertConfig, transformers.HubertForCTC),
    }[family]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8, 8),
        conv_stride=(5, 8, 8),
        conv_kernel=(10, 8, 8),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    model = model_class(config).eval()
    model.save_pretrained(folder)
    return model, features, tokenizer


@pytest.mark.parametrize("family", ["wav2vec2", "hubert"])
def test_ctc_checkpoints_load_and_decode_as_transformers_does(tmp_path, family):
    model, features, tokenizer = write_ctc(tmp_path / "ctc", family)
    recogniser = open_recogniser(CTCConfig(path=tmp_path / "ctc"))
    samples = tone()
    with torch.inference_mode():
        logits = model(features(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_values).logits
    expected = tokenizer.batch_decode(logits.argmax(-1))[0].strip()
    assert recogniser.transcribe(samples, 16_000) == expected
    assert expected
    assert recogniser.transcribe(torch.zeros(16_000), 16_000) == ""
    assert isinstance(recogniser.transcribe(samples[:20], 16_000), str)
    assert recogniser.name == "ctc:ctc"
    assert not recogniser.smoke_tier


def write_whisper(folder, seed=1):
    """A tiny random Whisper checkpoint of two languages, whose words are letters."""
    import transformers

    letters = {chr(ord("a") + i): i for i in range(26)}
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer = transformers.WhisperTokenizer(letters | {"<|endoftext|>": 26}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.add_tokens([*(f"<|{i * 0.02:.2f}|>" for i in range(1501)), "<|de|>"])
    features = transformers.WhisperFeatureExtractor(feature_size=80)
    transformers.WhisperProcessor(feature_extractor=features, tokenizer=tokenizer).save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.WhisperConfig(
        vocab_size=31 + 1501 + 1,
        num_mel_bins=80,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=24,
        pad_token_id=26,
        bos_token_id=26,
        eos_token_id=26,
        decoder_start_token_id=27,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    # Letters are far likelier than timestamps, as in a trained model's output.
    model.model.decoder.embed_tokens.weight.data[:26] *= 50.0
    model.model.decoder.layers[
        0
    ].self_attn.out_proj.weight.data *= 50.0  # and what came before, the language too, counts
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=27,
        eos_token_id=26,
        pad_token_id=26,
        bos_token_id=26,
        max_length=16,
        is_multilingual=True,
        lang_to_id={"<|en|>": 28, "<|de|>": 31 + 1501},
        task_to_id={"transcribe": 29},
        no_timestamps_token_id=30,
    )
    model.save_pretrained(folder)


def test_whisper_checkpoints_load_and_decode(tmp_path):
    write_whisper(tmp_path / "whisper")
    recogniser = open_recogniser(WhisperConfig(path=tmp_path / "whisper", language="en"))
    heard = recogniser.transcribe(tone(), 16_000)
    assert heard
    assert set(heard) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert recogniser.transcribe(tone(), 16_000) == heard
    assert recogniser.transcribe(torch.zeros(16_000), 16_000) == ""


def test_whisper_walks_on_beyond_its_window(tmp_path):
    write_whisper(tmp_path / "whisper")
    recogniser = open_recogniser(WhisperConfig(path=tmp_path / "whisper", language="en"))
    short, long = recogniser.transcribe(tone(29.0), 16_000), recogniser.transcribe(tone(62.0), 16_000)
    assert long
    assert len(long) > len(short)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        open_recogniser(WhisperConfig(path=tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(ConfigError, match="safetensors"):
        open_recogniser(CTCConfig(path=tmp_path))


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    write_ctc(tmp_path / "ctc", "wav2vec2")
    weights = load_file(tmp_path / "ctc" / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "lm_head" not in k},
        tmp_path / "ctc" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(DataError, match="lm_head"):
        open_recogniser(CTCConfig(path=tmp_path / "ctc"))
