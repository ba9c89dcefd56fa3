"""As much of a Kubernetes API server as `kubectl apply` of a ConfigMap and a RayJob talks to; it validates nothing."""

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_RESOURCES = {
    "/api/v1": [("configmaps", "ConfigMap")],
    "/apis/ray.io/v1": [("rayjobs", "RayJob")],
}
_OBJECT = re.compile(r"(/api/v1|/apis/ray\.io/v1)/namespaces/([^/?]+)/([a-z]+)(?:/([^/?]+))?")


@dataclass
class KubeApi:
    """What it was given, by path; ``refusal`` is what it answers to new objects instead of taking them."""

    address: str = ""
    objects: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        match = _OBJECT.fullmatch(path)
        if match is None:
            return self._discovery(path)
        if method == "POST":
            if self.refusal is not None:
                return 422, _status(422, "Invalid", self.refusal)
            assert "fieldValidation=Strict" in query, "kubectl asks the server to refuse unknown fields"
            self.objects[f"{path}/{body['metadata']['name']}"] = body
            return 201, body
        if path not in self.objects:
            return 404, _status(404, "NotFound", f"{match[3]} {match[4]} not found")
        return 200, self.objects[path]

    def _discovery(self, path: str) -> tuple[int, Any]:
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            version = {"groupVersion": "ray.io/v1", "version": "v1"}
            group = {"name": "ray.io", "versions": [version], "preferredVersion": version}
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
        if path in _RESOURCES:
            verbs = ["create", "get", "list", "patch", "update"]
            kinds = [{"name": n, "kind": k, "namespaced": True, "verbs": verbs} for n, k in _RESOURCES[path]]
            version = path.removeprefix("/apis/").removeprefix("/api/")
            return 200, {"kind": "APIResourceList", "groupVersion": version, "resources": kinds}
        if path == "/openapi/v3":
            return 200, {"paths": {root[1:]: {"serverRelativeURL": f"/openapi/v3{root}"} for root in _RESOURCES}}
        if (root := path.removeprefix("/openapi/v3")) in _RESOURCES:
            return 200, _open_api(root)
        return 404, _status(404, "NotFound", f"{path} not found")


def _open_api(root: str) -> dict[str, Any]:
    """What kubectl looks for in it: that the server validates fields itself when it is asked to."""
    paths = {}
    for name, kind in _RESOURCES[root]:
        group = {"group": root.split("/")[2] if root.startswith("/apis") else "", "version": "v1", "kind": kind}
        parameters = [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}]
        patch = {"parameters": parameters, "responses": {}, "x-kubernetes-group-version-kind": group}
        paths[f"{root}/namespaces/{{namespace}}/{name}/{{name}}"] = {"patch": patch}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.37.0"}, "paths": paths}


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


@contextlib.contextmanager
def serving() -> Iterator[KubeApi]:
    """One at a port of its own, inside the block."""
    api = KubeApi()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            code, tree = api.answer(self.command, self.path, body)
            content = json.dumps(tree).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _serve

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
