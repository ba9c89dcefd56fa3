"""What the benchmarks for a GPU share: the device, its memory's speed, and a stream of one utterance.

They run without Ray and DeepSpeed. On a machine without a GPU ``--quick`` tries them on the CPU with tiny networks.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.llama_peer import plan
from benchmarks.protocol import load_average
from retort.inference.engine import Engine
from retort.inference.torch_runner import TorchRunner
from retort.models.codec_lm import CodecLM

LENGTH = 16


def parse(description: str) -> tuple[argparse.Namespace, torch.device]:
    """The options, and the device.

    Raises:
        SystemExit: there is no GPU, and it is not a quick check.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one to warm up")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one round, also without a GPU")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        if not args.quick:
            raise SystemExit("this benchmark needs a GPU; --quick tries it on the CPU, and proves nothing")
        print(f"CPU, torch {torch.__version__}, {load_average()}")
        return args, torch.device("cpu")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {load_average()}")
    return args, torch.device("cuda")


def bytes_per_second(device: torch.device) -> float:
    """How fast the device reads its memory: the best of ten sums over 8.6 GB (64 MB on a CPU)."""
    memory = torch.ones((2**31 if device.type == "cuda" else 2**24), device=device)
    best = min(seconds_of(memory.sum, device) for _ in range(10))
    return 4.0 * memory.numel() / best


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds, the device's work included."""
    settle(device)
    begin = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begin


def in_turns(peers: Mapping[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Wall seconds of each peer at its best, the peers in turns, after one round that does not count."""
    for work in peers.values():
        seconds_of(work, device)
    taken = [{name: seconds_of(work, device) for name, work in peers.items()} for _ in range(rounds)]
    return {name: min(turn[name] for turn in taken) for name in peers}


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def runner_for(model: CodecLM, *, slots: int, conditions: int, num_tokens: int, prompt: int = LENGTH) -> TorchRunner:
    """With all slots in every step, in one graph where there is a GPU."""
    return TorchRunner(
        model, max_slots=slots, max_conditions=conditions, max_columns=prompt + num_tokens + 2, is_static=True
    )


def decode(
    model: CodecLM, runner: TorchRunner, contexts: Sequence[Tensor], coefficients: Sequence[float], num_tokens: int
) -> list[list[int]]:
    """Every slot decodes the same prompts greedily; the tokens of each."""
    slots = runner.max_slots
    plans = [plan(model, contexts, coefficients, num_tokens)] * slots
    tokens: list[list[int]] = [[] for _ in plans]
    for index, advance in Engine(runner).run(plans):
        tokens[index] += advance.frames_KT[0].tolist()
    assert all(len(found) == num_tokens for found in tokens), "the payload must be whole"
    return tokens
