"""Record what clients send: python tests/serving/clients/record.py, with the clients of `make clients` in .clients.

Each `say_NAME` of this folder is run once against a server that keeps the bytes and answers with a second of PCM;
`NAME.http` gets the bytes, and its first line, which is not part of them, says which versions sent them.
"""

import json
import socket
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

from tests.patience import HANG_S

HERE = Path(__file__).parent
CLIENTS = HERE.parents[2] / ".clients"
PACKAGES = {
    "openai.py": ("openai",), "litellm.py": ("litellm", "openai"), "pipecat.py": ("pipecat-ai", "openai"),
    "livekit.py": ("livekit-plugins-openai", "openai"), "openai.mjs": ("openai",),
    "ai_sdk.mjs": ("ai", "@ai-sdk/openai"),
}  # fmt: skip
"""By the end of the script's name: what is installed for it."""


def version_of(script: str, package: str) -> str | None:
    """Of a package in the clients' folder; None if it is not there."""
    if script.endswith(".mjs"):
        card = CLIENTS / "node_modules" / package / "package.json"
        return str(json.loads(card.read_text())["version"]) if card.is_file() else None
    found = next(CLIENTS.glob(f"venv/lib/python3*/site-packages/{package.replace('-', '_')}-*.dist-info"), None)
    return None if found is None else PathDistribution(found).version


def command_of(script: str, address: str) -> list[str]:
    """Runs a script in the clients' folder, where Node looks for its packages."""
    file = HERE / f"say_{script}"
    if script.endswith(".py"):
        offline = "LITELLM_LOCAL_MODEL_COST_MAP=True"  # or litellm would fetch a list of prices
        return ["env", offline, str(CLIENTS / "venv" / "bin" / "python"), str(file), address]
    inside = CLIENTS / file.name
    inside.write_text(file.read_text())
    return ["node", str(inside), address]


def request_of(listener: socket.socket) -> bytes:
    """The next request, which is answered."""
    connection, _ = listener.accept()
    with connection:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(b": ") for line in head.split(b"\r\n")[1:])}
        while len(body) < int(headers[b"content-length"]):
            part = connection.recv(65536)
            body, data = body + part, data + part
        sound = bytes(48_000)
        kind = b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\nConnection: close\r\n"
        connection.sendall(kind + b"Content-Length: %d\r\n\r\n" % len(sound) + sound)
        return data


def main() -> None:
    for script, packages in PACKAGES.items():
        versions = [f"{package} {version_of(script, package)}" for package in packages]
        with socket.create_server(("127.0.0.1", 8000)) as listener:
            listener.settimeout(HANG_S)
            client = subprocess.Popen(command_of(script, "http://127.0.0.1:8000"), stdout=subprocess.DEVNULL)
            data = request_of(listener)
            client.kill()
            client.wait()
        (HERE / f"{script}.http").write_bytes(f"{', '.join(versions)}\n".encode() + data)
        sys.stderr.write(f"{script}: {len(data)} bytes\n")


if __name__ == "__main__":
    main()
