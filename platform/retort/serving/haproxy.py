"""HAProxy as Ray Serve starts it, with what Ray's configuration of it leaves out.

Ray Serve writes the configuration from a template of its own, and starts the program that it is told to. That is made
here: it mends the configuration and then becomes HAProxy. It needs the standard library only, and fails on a
configuration that it does not know: a server that does not start is seen, one without its limits is not.
"""

import ctypes
import json
import os
import re
import resource
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_PAGES = 64
"""Connections of each page of counters."""
_SPARE_FILES = 200
_PR_SET_PDEATHSIG = 1
_MESSAGES = {
    400: ("the request is not HTTP", "invalid_request_error", "bad_request"),
    404: ("no such route", "invalid_request_error", "not_found"),
    405: ("no route takes this method", "invalid_request_error", "method_not_allowed"),
    408: ("the request did not arrive in time", "invalid_request_error", "timeout"),
    500: ("the server failed", "server_error", "internal_error"),
    502: ("the server failed", "server_error", "internal_error"),
    503: ("the server is starting or ending", "server_error", "unavailable"),
    504: ("the server does not answer", "server_error", "unavailable"),
}
"""What HAProxy says by itself, in the API's shape. What its parser refuses before it is a request gets a page of HTML,
which is compiled into HAProxy 2.8, whatever is configured."""
_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE"
"""Others a server in Python may not know: it would answer them in plain words, or not at all."""


@dataclass(frozen=True)
class Front:
    """What is mended.

    Attributes:
        host: where the pages of counters listen.
        client_header: header that tells the API whose request it is, and replaces what the client sent.
        max_connections: of clients at once, fewer where the machine allows fewer open files. One address gets half,
            unless it is this machine's, where a proxy for many clients may run.
        header_s: longest wait for a request's headers.
        idle_s: how long a connection is kept for its next request.
    """

    host: str
    client_header: str
    max_connections: int
    header_s: int
    idle_s: int


def write_starter(path: Path, binary: str, front: Front) -> None:
    """Write the program that Ray Serve is to start in the place of HAProxy."""
    command = [sys.executable, "-I", "-S", __file__, binary, json.dumps(asdict(front))]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o700)


def mended(text: str, front: Front, pages: Mapping[int, Path]) -> str:
    """A configuration of Ray's, with what it leaves out; one that is mended already stays as it is.

    Args:
        text: the configuration.
        front: what is mended.
        pages: files of whole responses by status.

    Raises:
        ValueError: it is not the configuration that this is made for.
    """
    if "# mended" in text:
        return text
    connections = min(front.max_connections, _possible_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    host = f"[{front.host}]" if ":" in front.host else front.host
    faults = "".join(f"    errorfile {status} {page}\n" for status, page in sorted(pages.items()))
    # Ray's checks of the replicas go to them straight; what HAProxy itself says under /-/ tells strangers the routes.
    rules = f"""\
    maxconn {connections}
    stick-table type ipv6 size 100k expire 10m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt {connections // 2} }} !{{ src 127.0.0.0/8 ::1 }}
    http-request deny deny_status 405 unless {{ method {_METHODS} }}
    http-request deny deny_status 404 if {{ path,url_dec -i -m beg /-/ }}
    http-request set-header {front.client_header} %[src]
"""
    waits = f"    timeout http-request {front.header_s}s\n    timeout http-keep-alive {front.idle_s}s\n"
    text = re.sub(r"^ +(errorfile|timeout http-keep-alive) .*\n", "", text, flags=re.MULTILINE)
    for pattern, replacement in (
        (r"^(global\n(?:.*\n)*?    )maxconn \d+$", rf"\g<1>maxconn {connections + 2 * _PAGES}  # mended"),
        (r"^defaults\n    mode http\n", rf"\g<0>{waits}{faults}"),
        (r"^(frontend prometheus\n    bind ):(\d+)\n", rf"\g<1>{host}:\g<2>\n    maxconn {_PAGES}\n"),
        (r"^(listen stats\n  bind )\*:(\d+)\n", rf"\g<1>{host}:\g<2>\n  maxconn {_PAGES}\n"),
        (r"^frontend http_frontend\n    bind .*\n", rf"\g<0>{rules}"),
        (r"^(backend default_backend\n    http-request) return .*\n", r"\g<1> deny deny_status 503\n"),
    ):
        text, found = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f"Ray Serve's configuration of HAProxy has {found} places like {pattern!r}, not 1")
    return text


def _possible_connections(files: int) -> int:
    """As many as HAProxy starts with: it wants two files for each, and a pipe for every fourth."""
    return max(16, (files - _SPARE_FILES) * 2 // 5 - 2 * _PAGES) if files > 0 else sys.maxsize


def _write_pages(folder: Path) -> dict[int, Path]:
    written = {}
    for status, (message, kind, code) in _MESSAGES.items():
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
        head = f"HTTP/1.1 {status} {message}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head += "Retry-After: 5\r\n" if status == 503 else ""
        written[status] = folder / f"error-{status}.http"
        written[status].write_bytes(f"{head}Connection: close\r\n\r\n{body}".encode())
    return written


def _end_with_parent() -> None:
    """Have Linux end this process, and HAProxy in its place, when the one of Ray Serve that started it has ended.

    Where a signal goes to the server's whole group, nobody else is left who would.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("Ray Serve has ended")


def _main(arguments: Sequence[str]) -> None:
    """Mend the file behind ``-f``, and become HAProxy."""
    _end_with_parent()
    binary, front, *rest = arguments
    file = Path(rest[rest.index("-f") + 1])
    changed = mended(file.read_text(), Front(**json.loads(front)), _write_pages(file.parent))
    file.write_text(changed)
    os.execv(binary, [binary, *rest])


if __name__ == "__main__":
    _main(sys.argv[1:])
