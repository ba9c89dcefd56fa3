"""A real S3 service on the loopback, which this process and those that it starts know from their environment."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from retort.store.place import store_of

BUCKET = "retort-test"


@contextmanager
def s3_service(cache: Path) -> Iterator[pytest.MonkeyPatch]:
    """An empty bucket, and a cache folder; gives the environment, to change it further."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("XDG_CACHE_HOME", str(cache))
        store_of.cache_clear()
        store_of(BUCKET)._client.create_bucket(Bucket=BUCKET)
        yield patch
    store_of.cache_clear()
    server.stop()
