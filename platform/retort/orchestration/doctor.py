"""Try what the jobs need on this machine. Each probe is one function that returns a finding, with the cure if bad."""

import os
import platform as machine
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from retort.errors import MissingRequirementError, ResourceError, RetortError, StorageError
from retort.nn.precision import multiplies_bf16
from retort.orchestration.auth_token import token_file

Verdict = Literal["ok", "warning", "fault"]

_GIB = 2**30
_MIN_FREE_DISK = 2 * _GIB
_MIN_MEMORY = 4 * _GIB
_MIN_SHARED_MEMORY = 512 * 2**20
_IMPORTED = (
    "torch",
    "torchaudio",
    "numpy",
    "pydantic",
    "safetensors",
    "soundfile",
    "soxr",
    "pyarrow",
    "jiwer",
    "ray",
    "deepspeed",
)
"""Libraries with compiled parts that may be installed and yet not load; the others are checked by their version."""


@dataclass(frozen=True)
class Finding:
    """What a probe found.

    Attributes:
        name: of the probe.
        verdict: a warning does not keep a job from running, a fault does.
        detail: what was found.
        cure: what to do, for warnings and faults.
        exit_code: for faults, as in :mod:`retort.errors`.
    """

    name: str
    verdict: Verdict
    detail: str
    cure: str = ""
    exit_code: int = 0

    def line(self) -> str:
        """The finding on one line."""
        return f"{self.verdict:7s} {self.name}: {self.detail}" + (f"; {self.cure}" if self.cure else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(folder: Path) -> Iterator[Finding]:
    """Run every probe; ``folder`` is where runs are written. A probe that fails unforeseen is a finding, too."""
    # Ray takes a few seconds to start: it does so while the other probes run.
    ray = start_local_ray()
    probes: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("python", lambda: probe_python(sys.version_info[:3])),
        ("versions", lambda: probe_versions([*(metadata.requires("retort") or ()), "Resemblyzer"])),
        ("imports", lambda: probe_imports(_IMPORTED)),
        ("torch pair", lambda: probe_torch_pair(metadata.version("torch"), metadata.version("torchaudio"))),
        ("store", lambda: probe_store(folder)),
        ("disk", lambda: probe_disk(folder)),
        ("memory", probe_memory),
        ("audio", probe_audio),
        ("speech", probe_speech),
        ("processor", probe_processor),
        ("gpu", probe_gpu),
        ("token", lambda: probe_token(token_file())),
        ("ray", lambda: probe_ray(ray)),
    )
    try:
        for name, probe in probes:
            yield _guarded(name, probe)
    finally:
        if ray.poll() is None:
            ray.kill()
            ray.wait()


def exit_code_of(findings: Sequence[Finding]) -> int:
    """The exit code of the worst finding: 4 (environment) before 5 (storage) before 6 (resources), 0 if none is bad."""
    codes = {finding.exit_code for finding in findings if finding.verdict == "fault"}
    return min(codes, default=0)


def _guarded(name: str, probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except RetortError as error:
        return _fault(name, str(error), "", error.exit_code)
    except Exception as error:  # noqa: BLE001 (whatever breaks on a broken machine is what the doctor is asked for)
        return _fault(name, f"{type(error).__name__}: {error}", "install Retort again into a fresh environment")


def _fault(name: str, detail: str, cure: str, exit_code: int = MissingRequirementError.exit_code) -> Finding:
    return Finding(name, "fault", detail, cure, exit_code)


def probe_python(version: Sequence[int]) -> Finding:
    """Python is new enough."""
    shown = ".".join(str(part) for part in version)
    if tuple(version[:2]) < (3, 11):
        return _fault("python", shown, "use Python 3.11 or later")
    return Finding("python", "ok", f"{shown} on {machine.system()} {machine.machine()}")


def probe_versions(requirements: Sequence[str]) -> Finding:
    """What ``pyproject.toml`` asks for is installed, in a version that it allows."""
    from packaging.requirements import Requirement

    wrong: list[str] = []
    count = 0
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(installed.partition("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} is {installed}, needed is {requirement.specifier}")
    if wrong:
        return _fault("versions", "; ".join(wrong), "pip install -c constraints.txt -e .")
    return Finding("versions", "ok", f"{count} requirements are met")


def probe_imports(names: Sequence[str]) -> Finding:
    """The libraries load, in a process of their own: a broken one may take its process with it."""
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(name, flush=True); importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        reached = [name for name in done.stdout.split() if name in names] or ["python"]
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return _fault("imports", f"{reached[-1]} does not load: {reason}", "pip install -c constraints.txt -e .")
    return Finding("imports", "ok", f"{len(names)} libraries load")


def probe_torch_pair(torch_version: str, torchaudio_version: str) -> Finding:
    """The versions of torch and torchaudio are of one build: another pair loads and then fails on its first symbol."""
    detail = f"torch {torch_version}, torchaudio {torchaudio_version}"
    if torch_version.partition("+")[0] != torchaudio_version.partition("+")[0]:
        return _fault("torch pair", detail, "install both in one command, in the versions of constraints.txt")
    return Finding("torch pair", "ok", detail)


def probe_store(folder: Path) -> Finding:
    """A folder can be committed, read back and replaced where the runs are written."""
    from retort.store.commit import commit_folder, verify_folder

    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".retort-doctor-", dir=existing) as name:
            target = Path(name) / "result"
            for content in ("first", "second"):
                with commit_folder(target, replace=content == "second") as temporary:
                    (temporary / "probe.txt").write_text(content)
                verify_folder(target)
                if (target / "probe.txt").read_text() != content:
                    return _fault("store", f"{existing} gave back something else than was written",
                                  "use another file system", StorageError.exit_code)  # fmt: skip
    except (OSError, RetortError) as error:
        cure = "choose a folder that can be written with --folder"
        return _fault("store", f"{existing}: {error}", cure, StorageError.exit_code)
    return Finding("store", "ok", f"{existing}: committed, read back and replaced a folder")


def probe_disk(folder: Path, *, needed: int = _MIN_FREE_DISK) -> Finding:
    """There is room for a run."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    detail = f"{free / _GIB:.1f} GiB free at {existing}"
    if free < needed:
        cure = f"free {needed / _GIB:.0f} GiB or choose another --folder"
        return _fault("disk", detail, cure, ResourceError.exit_code)
    return Finding("disk", "ok", detail)


def probe_memory(meminfo: Path = Path("/proc/meminfo"), shared: Path = Path("/dev/shm")) -> Finding:
    """There is memory for a run, and shared memory for Ray's objects."""
    if not meminfo.is_file():
        return Finding("memory", "warning", f"{meminfo} cannot be read", "make sure of 4 GiB of free memory")
    fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in _pairs(meminfo.read_text()) if rest.split()}
    available = fields.get("MemAvailable", fields.get("MemFree", 0))
    shm = shutil.disk_usage(shared).free if shared.is_dir() else 0
    detail = f"{available / _GIB:.1f} GiB available, {shm / _GIB:.1f} GiB shared"
    if available < _MIN_MEMORY:
        cure = "free 4 GiB, or use smaller batches and fewer workers"
        return Finding("memory", "warning", detail, cure)
    if shm < _MIN_SHARED_MEMORY:
        return Finding(
            "memory", "warning", detail, "give the container more shared memory (--shm-size=2g): Ray is slow"
        )
    return Finding("memory", "ok", detail)


def _pairs(text: str) -> Iterator[tuple[str, str, str]]:
    return (line.partition(":") for line in text.splitlines())


def probe_audio() -> Finding:
    """A tone survives WAV and FLAC."""
    import soundfile

    from retort.audio.files import read_audio, write_wav

    tone = 0.5 * torch.sin(torch.arange(16_000) * 0.1)
    with tempfile.TemporaryDirectory(prefix="retort-doctor-") as name:
        wav, flac = Path(name) / "tone.wav", Path(name) / "tone.flac"
        write_wav(wav, tone, 16_000)
        soundfile.write(flac, tone.numpy(), 16_000, subtype="PCM_16")
        worst = max(float((read_audio(file).samples_N - tone).abs().max()) for file in (wav, flac))
    if worst > 1e-3:
        return _fault("audio", f"a tone came back with an error of {worst:.2g}", "reinstall soundfile")
    return Finding("audio", "ok", "wrote and decoded WAV and FLAC")


def probe_speech() -> Finding:
    """espeak-ng speaks, and pocketsphinx hears what it says."""
    from retort.evaluation.asr import PocketSphinxConfig, open_recogniser
    from retort.text.espeak import speak, version

    said = "three one four"
    speech = speak(said, voice="en-us+klatt4", words_per_minute=150)
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    recogniser = open_recogniser(PocketSphinxConfig(words=words))
    heard = recogniser.transcribe(torch.from_numpy(speech.samples_N), speech.sample_rate)
    if not set(heard.split()) & set(said.split()):
        cure = "reinstall pocketsphinx and espeakng-loader"
        return _fault("speech", f"espeak-ng said {said!r}, pocketsphinx heard {heard!r}", cure)
    return Finding("speech", "ok", f"{version()} said {said!r}, pocketsphinx heard {heard!r}")


def probe_processor() -> Finding:
    """Cores, and whether ``precision: auto`` is bf16 here."""
    native = multiplies_bf16(torch.device("cpu"))
    detail = "bf16 is native: precision auto uses it" if native else "no native bf16: precision auto uses fp32"
    return Finding("processor", "ok", f"{len(os.sched_getaffinity(0))} cores, {detail}")


def probe_gpu() -> Finding:
    """Each GPU multiplies matrices correctly."""
    if not torch.cuda.is_available():
        return Finding("gpu", "ok", "none, the CPU will be used")
    names = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        a = torch.arange(256 * 256, device=device, dtype=torch.float32).reshape(256, 256).remainder(7)
        # Small whole numbers: the product is exact in every number format that a GPU may use for it.
        if not torch.equal((a @ a).cpu(), a.cpu() @ a.cpu()):
            cure = "check the driver, or leave that GPU out with CUDA_VISIBLE_DEVICES"
            return _fault("gpu", f"{torch.cuda.get_device_name(index)} multiplies wrongly", cure)
        names.append(torch.cuda.get_device_name(index))
    return Finding("gpu", "ok", ", ".join(names))


def probe_token(file: Path) -> Finding:
    """Ray's token can be read by its owner alone."""
    if not file.exists():
        return Finding("token", "ok", f"{file} does not exist; the first job makes one")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        cure = f"others can read it: chmod 600 {file}"
        return Finding("token", "warning", f"{file} has mode {mode:o}", cure)
    return Finding("token", "ok", f"{file} has mode {mode:o}")


_RAY_CODE = """
from retort.orchestration.cluster import ray_session
from retort.orchestration.listeners import listening_everywhere
with ray_session(address="local", num_cpus=1):
    import ray
    assert ray.get(ray.remote(lambda: 6 * 7).remote()) == 42
    listeners = listening_everywhere()
print(ray.__version__, *listeners)
"""


def start_local_ray(environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start a Ray and run one task on it, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", _RAY_CODE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )


def probe_ray(process: "subprocess.Popen[str]", *, timeout_s: float = 60.0) -> Finding:
    """That Ray started, ran the task and ended."""
    started = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        detail = f"no answer from a local Ray {time.monotonic() - started:.0f} s after the other probes"
        return _fault("ray", detail, "look for a firewall on the loopback device, or a full disk at TMPDIR")
    if process.returncode:
        reason = (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return _fault("ray", f"a local Ray does not run: {reason}", "free memory and disk at TMPDIR, then try again")
    version, *listeners = out.strip().splitlines()[-1].split()
    detail = f"ray {version} started, ran a task with its token and ended"
    if listeners:
        detail += f"; on every address of this machine listened, for whoever has the token: {', '.join(listeners)}"
    return Finding("ray", "ok", detail)
