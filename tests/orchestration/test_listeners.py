"""Who listens on every address, against real sockets of real processes."""

import subprocess
import sys

import pytest

from retort.orchestration.listeners import listening_everywhere

if sys.platform != "linux":
    pytest.skip("there is no /proc", allow_module_level=True)

LISTEN = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
held = socket.create_server((sys.argv[1], 0), family=family)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("address", "is_told"),
    [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("::1", False)],
)
def test_who_listens_everywhere_is_named_and_others_are_not(address: str, is_told: bool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip(f"this machine has no {address}")
        assert bool(listening_everywhere(process.pid)) == is_told
        assert bool([name for name in listening_everywhere() if "python" in name]) == is_told, "as one below this one"
    finally:
        process.communicate("")
    assert listening_everywhere(process.pid) == []
