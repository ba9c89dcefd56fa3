"""Requests to an S3 service, repeated while it is out.

Requests are repeated with jittered exponential pauses by botocore's "standard" mode, which does so for 5xx, throttling,
time-outs and lost connections only; bodies that arrive cut are asked for again here. Where that is not enough the
service is out, and the request is repeated for as long as the outage budget says.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from retort.store.s3_faults import RemoteStoreError, clear_faults, is_outage

_PART_BYTES = 16 * 1024 * 1024
_THREADS = 4
_PAUSE_S = 0.1
_MAX_PAUSE_S = 15.0
_SAY_EVERY_S = 30.0
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class S3Credentials:
    """A key pair, with a session token where it is temporary; secrets are not shown by ``repr``."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class S3Service:
    """A connection to a service; its arguments are those of :class:`retort.store.s3.S3Store`."""

    def __init__(
        self,
        *,
        endpoint_url: str | None,
        credentials: S3Credentials | None,
        checksum: Literal["when_required", "when_supported"],
        max_attempts: int,
        outage_s: float,
        region: str | None,
        timeout_s: float,
    ) -> None:
        from boto3.session import Session
        from botocore.config import Config as BotoConfig

        self._max_attempts, self._outage_s = max_attempts, outage_s
        session = Session(
            aws_access_key_id=credentials.access_key if credentials else None,
            aws_secret_access_key=credentials.secret_key if credentials else None,
            aws_session_token=credentials.session_token if credentials else None,
            region_name=region,
        )

        def client(style: str) -> Any:
            return session.client(
                "s3",
                region_name=session.region_name or "us-east-1",
                endpoint_url=endpoint_url,
                config=BotoConfig(
                    retries={"mode": "standard", "total_max_attempts": max_attempts},
                    connect_timeout=timeout_s,
                    read_timeout=timeout_s,
                    request_checksum_calculation=checksum,
                    response_checksum_validation=checksum,
                    max_pool_connections=2 * _THREADS,
                    s3={"addressing_style": style},
                ),
            )

        self.client: Any = client("auto")
        # The endpoint may come from AWS_ENDPOINT_URL as well; what is not AWS has no host for each bucket.
        if not str(urlsplit(self.client.meta.endpoint_url).hostname).endswith(_AWS_HOSTS):
            self.client = client("path")

    def whole(self, bucket: str, key: str) -> tuple[dict[str, Any], bytes]:
        """The answer to GET with its whole body; one that arrives cut is asked for again, which botocore does not."""
        from botocore import exceptions as boto

        for tries in range(self._max_attempts):
            answer: dict[str, Any] = self.client.get_object(Bucket=bucket, Key=key)
            try:
                return answer, answer["Body"].read()
            except (boto.HTTPClientError, boto.IncompleteReadError, ConnectionError, TimeoutError):
                if tries + 1 == self._max_attempts:
                    raise
                time.sleep(random.random() * _PAUSE_S * 2**tries)
        raise AssertionError("a request is tried at least once")

    def lasting(self, where: str, request: Callable[[], T]) -> T:
        """Make a request, again and again while the service is out and the outage budget lasts.

        Args:
            where: the url that errors name.
            request: makes it, through boto3.

        Raises:
            RemoteStoreError: a refusal that waiting does not mend, or the last one when the budget is spent.
        """
        began, tries, told = time.monotonic(), 0, 0.0
        while True:
            try:
                with clear_faults(where):
                    return request()
            except RemoteStoreError as error:
                out_s, pause_s = time.monotonic() - began, min(_PAUSE_S * 2**tries, _MAX_PAUSE_S)
                if not is_outage(error) or out_s >= self._outage_s:
                    raise
                if tries == 0 or out_s - told >= _SAY_EVERY_S:
                    left = (self._outage_s - out_s) / 60
                    _log.warning("%s; trying again for %.1f minutes", error, left)
                    told = out_s
            tries = min(tries + 1, 10)
            time.sleep(random.uniform(0.5, 1.0) * min(pause_s, max(0.0, self._outage_s - out_s)))

    def transfer(self) -> Any:
        """How boto3 moves files: in parts, several at once; a failed part is sent again, a failed file is aborted."""
        from boto3.s3.transfer import TransferConfig

        return TransferConfig(
            multipart_threshold=_PART_BYTES,
            multipart_chunksize=_PART_BYTES,
            max_concurrency=_THREADS,
            num_download_attempts=self._max_attempts,
        )
