import json
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.audio.mel import MelConfig, log_mel
from retort.errors import ConfigError, DataError, MissingRequirementError, QualityGateError
from retort.inference import onnx_bundle
from retort.inference.bundle import runtimes
from retort.inference.bundle.runtimes import REQUIREMENTS, RUNTIMES, Runtime, is_installed
from retort.inference.bundle.sound import Shape, Source, filtered, griffin_lim, pulse_train, said_outright
from retort.inference.bundle.speak import Bundle, normal
from retort.inference.inversion import carry_vocoder
from retort.inference.onnx_bundle import BOUND, CARD_FILE, CARRIED, sound_arrays, write_bundle
from retort.inference.onnx_graphs import export_vocoder, export_zero_shot
from retort.inference.phone_reading import PhoneReader
from retort.inference.zero_shot_making import MelWish, ZeroShotMaker
from retort.models.vocoder import with_silence
from retort.models.vocoder_lineage import VocoderLineage
from retort.models.weights import load_vocoder, save_model
from retort.nn import random
from retort.nn.excitation import pulse_train as torch_pulse_train
from retort.nn.phone_conditions import frames_of, voice_prompts
from tests.inference.speaking import speaking_model, speaking_zero_shot
from tests.methods.vocoder_toys import MEL, TOY, toy_vocoder, voice
from tests.methods.zero_shot_toys import TOY as TOY_MODEL
from tests.methods.zero_shot_toys import some_model

TEXT = "one two three, four."
pytest.importorskip("onnx", reason="the extra [export] is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")

LENGTHS = ((1, 1), (2, 5), (13, 40), (30, 41), (61, 3))
"""Of texts in phones and of prompts in frames."""
BLOCKED = """
import sys, runpy
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray", "pydantic", "safetensors", "yaml"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaking_zero_shot(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(model, folder, note="of noise")
    return folder


def needed(runtime: Runtime) -> None:
    if not is_installed(runtime):
        pytest.skip(f"{runtime} is not installed")


def with_vocoder(model: Path, root: Path, **shape) -> Path:
    vocoder = toy_vocoder(TOY.replace(mel=MelConfig(), **shape))
    save_model(root / "vocoder", vocoder, VocoderLineage(method="vocoder_pretrain", corpus_digest="c"))
    shutil.copytree(model, root / "model")
    carry_vocoder(root / "vocoder", root / "model")
    return root / "model"


def say(folder: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the bundle's program with nothing but its own folder on the path, where torch and Ray cannot be imported."""
    # -E: whatever PYTHONPATH says.
    command = [sys.executable, "-E", "-c", BLOCKED, str(folder / "speak.py"), TEXT, "-o", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


@pytest.mark.parametrize(("stride", "patch"), [(1, 2), (2, 2), (3, 4)])
def test_the_graphs_say_what_torch_says_at_any_length(tmp_path, stride, patch):
    network = some_model(TOY_MODEL.replace(style_stride=stride, patch_frames=patch), seed=stride)
    config = network.config
    export_zero_shot(network, tmp_path)
    assert not network.training
    plan, render = (onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("plan", "render"))
    for num_phones, num_frames in LENGTHS:
        phones_1P = torch.randint(1, config.num_phones + 2, (1, num_phones))
        prompt = voice_prompts([torch.randn(num_frames, config.num_mels) - 5], [torch.rand(config.timbre_dim)])
        noise_1PC = torch.randn(1, num_phones, config.latent_dim)
        with torch.no_grad():
            adapted, timbre, predicted = network.plan(phones_1P, prompt, noise_1PC)
            frames_1P = network.frames(predicted.log_frames_BP, phones_1P != 0)
            mel_1TM = network.render(adapted, timbre, frames_1P, frames_of(frames_1P))
        given = {
            "phones": phones_1P, "prompt": prompt.mel_BSM, "timbre": prompt.timbre_BE, "noise": noise_1PC,
        }  # fmt: skip
        told = plan.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        ours_1P = np.round(np.expm1(told[2])).clip(1, 400).astype(np.int64)
        assert ours_1P.tolist() == frames_1P.tolist()
        mask_1T = np.ones((1, ours_1P.sum()), bool)
        given = {"adapted": told[0], "scaled_timbre": told[1], "frames": ours_1P, "mask": mask_1T}
        (ours_1TM,) = render.run(None, given)
        assert ours_1TM.shape == mel_1TM.shape
        assert np.abs(ours_1TM - mel_1TM.numpy()).max() < BOUND


def test_noise_is_what_it_is_in_torch():
    for seed in (0, 7, 2**62 + 5):
        expected = random.normal(torch.tensor([seed]), 0, (50, 4))[0].numpy()
        np.testing.assert_allclose(normal(seed, (50, 4)), expected, atol=2e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_bundle_says_the_mels_of_the_model(model, bundle, runtime):
    needed(runtime)
    maker, ours = ZeroShotMaker.open(model), Bundle(bundle, runtime=runtime)
    assert ours.runtime == runtime
    assert ours.voices == ("s0", "s1")
    phones = ours.reader.spoken(TEXT).ids
    lineage = maker.loaded.lineage
    assert phones == PhoneReader(lineage.voice, lineage.language, lineage.phones).spoken(TEXT).ids
    for seed, name in ((0, "s0"), (3, "s1")):
        stored = maker.voices[name]
        mel_TM, frames_P = maker.make(MelWish(phones, stored.prompt_SM, stored.timbre_E, seed, 0.667, tempo=1.3))
        ours_TM, ours_P = ours.say_phones(phones, name, seed=seed, noise_scale=0.667, tempo=1.3)
        assert ours_P.tolist() == frames_P.tolist()
        assert np.abs(ours_TM - mel_TM.numpy()).max() < BOUND


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_run_leaves_what_another_found_as_it_was(bundle, runtime):
    needed(runtime)
    ours = Bundle(bundle, runtime=runtime)
    options = {"seed": 0, "noise_scale": 0.667, "tempo": 1.0}
    first, _ = ours.say_phones([1, 2, 3], None, **options)
    kept = first.copy()
    ours.say_phones([3, 2, 1], None, **options)
    assert first.tobytes() == kept.tobytes()
    assert ours.say_phones([1, 2, 3], None, **options)[0].tobytes() == kept.tobytes()


def test_the_faster_runtime_is_chosen_unless_one_is_asked_for(model, tmp_path):
    installed = [name for name in RUNTIMES if is_installed(name)]
    written = write_bundle(model, tmp_path)
    assert list(written.rtf) == installed
    assert written.rtf[written.runtime] == min(written.rtf.values())
    assert Bundle(tmp_path).runtime == written.runtime
    assert REQUIREMENTS[written.runtime] in (tmp_path / "requirements.txt").read_text().splitlines()
    card = (tmp_path / CARD_FILE).read_text()
    assert all(f"{name} {rtf:.4f}" in card for name, rtf in written.rtf.items())
    for name in installed:
        folder = tmp_path / name
        folder.mkdir()
        assert write_bundle(model, folder, runtime=name).runtime == Bundle(folder).runtime == name


def test_a_runtime_that_says_something_else_is_not_chosen(model, tmp_path, monkeypatch):
    wrong = {"onnxruntime": 0.5, "openvino": 1e-6}
    monkeypatch.setattr(onnx_bundle, "_difference", lambda _maker, _vocoder, bundle: wrong[bundle.runtime])
    needed("openvino")
    written = write_bundle(model, tmp_path)
    assert (written.runtime, written.difference, list(written.rtf)) == ("openvino", 1e-6, ["openvino"])
    with pytest.raises(QualityGateError, match=r"differ from the model's by 5\.0e-01, more than 0\.001"):
        write_bundle(model, tmp_path, runtime="onnxruntime")


def test_a_runtime_that_does_not_run_is_left_out_unless_it_is_asked_for(model, tmp_path, monkeypatch):
    def broken(path, threads):
        raise RuntimeError("GLIBCXX not found")

    monkeypatch.setattr(runtimes, "_in_openvino", broken)
    monkeypatch.setattr(runtimes, "is_installed", lambda name: True)
    assert list(write_bundle(model, tmp_path).rtf) == ["onnxruntime"]
    with pytest.raises(MissingRequirementError, match=r"openvino does not run here \(GLIBCXX not found\); run: pip"):
        write_bundle(model, tmp_path, runtime="openvino")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_vocoder_that_says_something_else_is_noticed(model, tmp_path, runtime):
    needed(runtime)
    folder = with_vocoder(model, tmp_path)
    (tmp_path / "bundle").mkdir()
    assert write_bundle(folder, tmp_path / "bundle", runtime=runtime).difference < BOUND
    ours = Bundle(tmp_path / "bundle", runtime=runtime)
    graph = ours._vocoder
    ours._vocoder = lambda given: [1.01 * array for array in graph(given)]
    loaded = load_vocoder(folder / "vocoder")
    assert onnx_bundle._difference(ZeroShotMaker.open(folder), loaded, ours) == pytest.approx(0.01, rel=0.2)


def test_a_runtime_that_is_not_installed_is_refused_with_its_cure(bundle, monkeypatch):
    monkeypatch.setattr(runtimes, "is_installed", lambda name: name == "onnxruntime")
    assert Bundle(bundle, runtime="onnxruntime").voices
    with pytest.raises(MissingRequirementError, match="openvino is not installed; run: pip install 'openvino>="):
        Bundle(bundle, runtime="openvino")


def test_a_signal_after_openvino_was_given_up_is_handled(bundle):
    needed("openvino")
    program = f"""
import faulthandler, gc, os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(bundle)!r})
faulthandler.enable()  # as pytest and Ray do: handlers have a stack of their own
from retort.inference.bundle.speak import Bundle
for _ in range(2):
    Bundle(Path({str(bundle)!r}), runtime="openvino")
    gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "handled\n"), run.stderr


def test_openvino_comes_without_telemetry_and_leaves_logging_alone(bundle):
    needed("openvino")
    program = f"""
import sys
from pathlib import Path
from retort.inference.bundle.speak import Bundle
Bundle(Path({str(bundle)!r}), runtime="openvino")
print(sorted({{"openvino_telemetry", "absl", "openvino.tools.ovc"}} & set(sys.modules)))
import openvino.tools.ovc  # whoever wants them still can
print("openvino.tools.ovc" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-3:-1] == ["[]", "True"]


def test_a_bundle_from_before_there_was_a_choice_is_of_onnx_runtime(bundle, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(bundle, old)
    facts = json.loads((old / "bundle.json").read_text())
    del facts["runtime"]
    (old / "bundle.json").write_text(json.dumps(facts))
    assert Bundle(old).runtime == "onnxruntime"
    (old / "bundle.json").write_text(json.dumps({**facts, "runtime": "tensorrt"}))
    with pytest.raises(DataError, match="no runtime 'tensorrt'; it is one of onnxruntime, openvino: export again"):
        Bundle(old)


@pytest.mark.parametrize("runtime", [[], ["--runtime", "onnxruntime"]], ids=["chosen", "onnxruntime"])
def test_a_bundle_speaks_without_torch_and_the_same_seed_is_the_same_bytes(bundle, tmp_path, runtime):
    outputs = [tmp_path / f"{n}.wav" for n in range(4)]
    for output, options in zip(
        outputs, (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--voice", "s1"]), strict=True
    ):
        done = say(bundle, output, *options, *runtime)
        assert done.returncode == 0, done.stderr
    first, again, other_seed, other_voice = (output.read_bytes() for output in outputs)
    assert first == again
    assert len({first, other_seed, other_voice}) == 3
    with wave.open(str(outputs[0])) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (16_000, 1, 2)
        assert reader.getnframes() % MelConfig().hop_samples == 0
        assert reader.getnframes() > 0


def test_it_tells_what_is_wrong(bundle, tmp_path):
    done = say(bundle, tmp_path / "x.wav", "--voice", "s9")
    assert (done.returncode, done.stderr) == (2, "error: no voice 's9'; the bundle has s0, s1\n")
    assert not (tmp_path / "x.wav").exists()
    with pytest.raises(DataError, match="nothing to speak"):
        Bundle(bundle).speak("...")
    for tempo in (0.0, -1.0, 0.2, 4.1, float("nan")):
        with pytest.raises(ConfigError, match=r"tempo is .*; give a number from 0\.25 to 4"):
            Bundle(bundle).speak("one", tempo=tempo)
    with pytest.raises(ConfigError, match=r"no bundle\.json"):
        Bundle(tmp_path)
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(DataError, match=r"bundle\.json: damaged: .*; export the model again"):
        Bundle(tmp_path)


def test_the_code_that_it_carries_is_ours_and_the_card_says_what_it_is(model, bundle):
    package = Path(sys.modules["retort"].__file__ or "").parent
    carried = sorted(path.relative_to(bundle / "retort") for path in (bundle / "retort").rglob("*.py"))
    assert len(carried) == len(CARRIED)
    assert all((bundle / "retort" / path).read_bytes() == (package / path).read_bytes() for path in carried)
    card = (bundle / CARD_FILE).read_text()
    facts = json.loads((bundle / "bundle.json").read_text())
    assert facts["fingerprint"] == ZeroShotMaker.open(model).loaded.fingerprint
    for part in (facts["fingerprint"], "> of noise", "Griffin-Lim, 16000 Hz", "GPL-3.0", "s0, s1"):
        assert part in card


@pytest.mark.parametrize("shape", [{}, {"source": "none"}], ids=["harmonic", "none"])
def test_what_follows_a_vocoders_networks_is_the_same_in_numpy(tmp_path, shape):
    torch.manual_seed(1)
    vocoder = toy_vocoder(TOY.replace(**shape))
    with torch.no_grad():
        for parameter in vocoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    export_vocoder(vocoder, tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "vocoder.onnx"))
    numbers = Shape.of(MEL.model_dump(), sound_arrays(MEL))
    for seconds in (0.2, 0.513):
        mel_MT = log_mel(voice(seconds), MEL)
        padded_1MT = with_silence(mel_MT, vocoder.reach, vocoder.reach)[None]
        noise_1N = torch.randn(1, vocoder.num_noise(mel_MT.shape[1]))
        with torch.no_grad():
            expected_N = vocoder(padded_1MT, noise_1N)[0].numpy()
        said = [array[0] for array in session.run(None, {"mel": padded_1MT.numpy()})]
        if shape:
            ours_N = said_outright(said[0], numbers)
        else:
            source = Source(said[1], said[2], noise_1N[0].numpy(), vocoder.overhang)
            ours_N = filtered(said[0], mel_MT.T.numpy(), source, numbers)
        assert ours_N.dtype == np.float32
        assert ours_N.shape == expected_N.shape
        assert np.abs(ours_N - expected_N).max() < 1e-3 * np.abs(expected_N).max()


def test_pulses_are_those_of_torch():
    pitch_T = torch.linspace(80.0, 310.0, 40)
    expected_BN, _ = torch_pulse_train(pitch_T[None], torch.zeros(1), hop=50, sample_rate=4000)
    ours_N = pulse_train(pitch_T.numpy(), Shape.of(MEL.model_dump(), sound_arrays(MEL)))
    np.testing.assert_allclose(ours_N, expected_BN[0].numpy(), atol=2e-3)


def test_a_bundle_with_a_vocoder_speaks_through_it(model, tmp_path):
    folder = with_vocoder(model, tmp_path)
    (tmp_path / "bundle").mkdir()
    written = write_bundle(folder, tmp_path / "bundle")
    maker = ZeroShotMaker.open(folder)
    assert written.parameters > sum(parameter.numel() for parameter in maker.model.parameters())
    ours = Bundle(tmp_path / "bundle")
    assert ours.facts["sound"]["fingerprint"] == maker.inverter.name
    first, again = ours.speak(TEXT, seed=4), ours.speak(TEXT, seed=4)
    assert first.tobytes() == again.tobytes()
    assert np.isfinite(first).all()
    assert np.abs(first).max() > 0
    assert say(tmp_path / "bundle", tmp_path / "out.wav").returncode == 0


def test_griffin_lim_gives_the_mels_that_are_asked_for():
    samples_N = voice(1.5)
    mel_TM = log_mel(samples_N, MEL).T.contiguous()
    ours_N = griffin_lim(mel_TM.numpy(), Shape.of(MEL.model_dump(), sound_arrays(MEL)), num_iterations=32, seed=0)
    assert len(ours_N) == len(mel_TM) * MEL.hop_samples
    again_TM = log_mel(torch.from_numpy(ours_N), MEL).T[: len(mel_TM)]
    assert float((again_TM - mel_TM).abs().mean()) < 0.5 < float((mel_TM - mel_TM.mean()).abs().mean())


def test_a_model_of_another_family_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="of the family codec_lm, and a zero_shot is needed"):
        write_bundle(speaking_model(tmp_path), tmp_path)
