"""What runs a bundle's graphs: ONNX Runtime or OpenVINO, on CPUs, in fp32."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, assert_never, get_args

from numpy.typing import NDArray

from retort.errors import MissingRequirementError

Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
REQUIREMENTS: Mapping[Runtime, str] = {"onnxruntime": "onnxruntime>=1.20", "openvino": "openvino>=2025.0"}
"""What pip is to install."""

Graph = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]
"""Outputs in their order, of inputs by name."""


def is_installed(runtime: Runtime) -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec(runtime) is not None


def open_graph(path: Path, runtime: Runtime, threads: int) -> Graph:
    """Make a graph ready to run.

    Args:
        path: of an ONNX file.
        runtime: who runs it.
        threads: that it may take.

    Raises:
        MissingRequirementError: the runtime is not installed.
    """
    if not is_installed(runtime):
        raise MissingRequirementError(f"{runtime} is not installed; run: pip install '{REQUIREMENTS[runtime]}'")
    match runtime:
        case "onnxruntime":
            return _in_onnxruntime(path, threads)
        case "openvino":
            return _in_openvino(path, threads)
        case _:
            assert_never(runtime)


def _openvino() -> ModuleType:
    """The package without its tools of conversion, which it imports if it can.

    They bring telemetry, and a handler of logging that keeps standard error as it is at that moment, and may close it.
    """
    tools = "openvino.tools.ovc"
    if "openvino" in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[tools] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[tools]


@cache
def _openvino_core() -> Any:
    """The one of this process, which is never given up.

    Its plugin for CPUs gives the thread that loads it another stack for signal handlers, and unmaps it when the plugin
    is unloaded with the last core. The next signal would then kill the process.
    """
    return _openvino().Core()


def _in_onnxruntime(path: Path, threads: int) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, dict(given))


def _in_openvino(path: Path, threads: int) -> Graph:
    # Left to itself it takes bf16 where the processor has it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = _openvino_core().compile_model(str(path), "CPU", settings)

    def run(given: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        found = compiled(dict(given))
        return [found[output] for output in compiled.outputs]

    return run
