"""Folders and small objects in S3 and in what speaks its protocol, through boto3.

A folder is its files under ``<key>/``, each with its SHA-256 as metadata, then the manifest, then the marker object
``COMMITTED`` last. What has no marker does not exist for a reader, and a reader checks every hash.

Retries are those of :class:`retort.store.s3_service.S3Service`; what arrives changed is read again here.
"""

import functools
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from retort.errors import StorageError
from retort.store.commit import commit_folder, marker_content, verify_folder
from retort.store.disk import fresh_name
from retort.store.manifest import (
    MANIFEST_NAME,
    MARKER_NAME,
    RESERVED_NAMES,
    Manifest,
    ManifestEntry,
    build_manifest,
    parse_manifest,
    safe_key,
    sha256_file,
)
from retort.store.s3_faults import RemoteStoreError, StoreFault, make_fault
from retort.store.s3_service import S3Credentials, S3Service

_HASH_KEY = "sha256"

__all__ = ["S3Credentials", "S3Store"]


class S3Store:
    """A store under ``s3://bucket/prefix``.

    Args:
        url: bucket and optional prefix.
        endpoint_url: for a service that is not AWS; buckets are then addressed by path.
        credentials: a key pair; without one the usual chain of the AWS tools is asked (roles, files), for each client
            anew, and refreshes what expires.
        checksum: whether boto3 adds its own checksums to all requests; several services refuse them. The content hash
            of this module does not depend on it.
        max_attempts: tries of a request in quick succession, the first included.
        outage_s: for how long a request is repeated when those have failed, in seconds.
        region: region name that is signed; without one that of the AWS tools, else ``us-east-1``.
        timeout_s: for the connection and for each read.

    Raises:
        StorageError: the url is not of that form.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        credentials: S3Credentials | None = None,
        checksum: Literal["when_required", "when_supported"] = "when_required",
        max_attempts: int = 5,
        outage_s: float = 600.0,
        region: str | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        scheme, separator, rest = url.partition("://")
        self._bucket, _, prefix = rest.strip("/").partition("/")
        if scheme != "s3" or not separator or not self._bucket:
            raise StorageError(f"{url}: not a url of an S3 store; expected s3://bucket or s3://bucket/prefix")
        self._prefix = safe_key(prefix) + "/" if prefix else ""
        self._max_attempts = max_attempts
        self._service = S3Service(
            endpoint_url=endpoint_url,
            credentials=credentials,
            checksum=checksum,
            max_attempts=max_attempts,
            outage_s=outage_s,
            region=region,
            timeout_s=timeout_s,
        )
        self._client = self._service.client

    def put_folder(self, folder: Path, key: str, *, before_commit: Callable[[], None] = lambda: None) -> Manifest:
        """Upload a folder and commit it under ``key``.

        Files that are there with the same content are not sent again; of a committed folder, what another writer spoilt
        is mended. A key is written once: other content under it is refused. Two processes that upload different content
        to one key at the same time can spoil it, which every reader notices; hold it with a
        :class:`retort.store.lease.Lease`.

        Args:
            folder: what is uploaded.
            key: where to.
            before_commit: called before the marker is written; what it raises leaves the folder without one.

        Raises:
            StorageError: the folder is damaged, or the key holds other content, or the service refuses.
        """
        self._key(key)
        # A folder with a damaged marker must not get a fresh one here, so either name makes it a folder to verify.
        sealed = any((folder / name).exists() for name in RESERVED_NAMES)
        manifest = verify_folder(folder) if sealed else build_manifest(folder)
        content = manifest.to_bytes()
        is_done = self._is_done(key, marker_content(content))
        present = set(self.list(key))
        for entry in manifest.entries:
            path = f"{key}/{entry.path}"
            if path not in present or not self._holds(path, entry):
                self._upload(folder / entry.path, path, entry)
        wanted = {f"{key}/{entry.path}" for entry in manifest.entries}
        for path in sorted(present - wanted - {f"{key}/{name}" for name in RESERVED_NAMES}):
            self._delete(path)
        listing = ManifestEntry(MANIFEST_NAME, len(content), manifest.fingerprint)
        if not is_done or not self._holds(f"{key}/{MANIFEST_NAME}", listing):
            self.write_bytes(f"{key}/{MANIFEST_NAME}", content)
        if not is_done:
            before_commit()
            self._commit(key, marker_content(content))
        return manifest

    def get_folder(self, key: str, folder: Path) -> Manifest:
        """Download a committed folder to ``folder``, which must not exist; every hash is checked.

        Raises:
            StorageError: never committed, damaged, or the service refuses; ``folder`` is then not there.
            ResourceError: no room for it.
        """
        try:
            marker = self.read_bytes(f"{key}/{MARKER_NAME}")
        except RemoteStoreError as error:
            if error.fault is not StoreFault.NOT_FOUND:
                raise
            where = self._url(key)
            raise make_fault(StoreFault.NOT_FOUND, where, f"{MARKER_NAME} is missing: it was never finished") from None
        content = self.read_bytes(f"{key}/{MANIFEST_NAME}")
        if marker != marker_content(content):
            raise make_fault(StoreFault.DAMAGED, self._url(f"{key}/{MANIFEST_NAME}"), "its hash is not the marker's")
        manifest = parse_manifest(content, where=self._url(key))
        with commit_folder(folder, expected_bytes=manifest.total_bytes) as temporary:
            for entry in manifest.entries:
                self._download(f"{key}/{entry.path}", temporary / entry.path, entry)
        return manifest

    def exists(self, key: str) -> bool:
        """Whether ``key`` is a committed folder or an object; a refusal or a missing bucket is an error, not False."""
        return self._head(f"{key}/{MARKER_NAME}") is not None or self._head(key) is not None

    def list(self, prefix: str = "") -> tuple[str, ...]:
        """Sorted keys of the objects at and below ``prefix``, of uncommitted folders too.

        Those that end in a slash are left out: consoles make them to show an empty folder.
        """
        return tuple(key for key in self._listed(prefix) if key and not key.endswith("/"))

    def _listed(self, prefix: str) -> tuple[str, ...]:
        full = self._key(prefix) if prefix else self._prefix

        def read() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=full)
            return [item["Key"] for page in pages for item in page.get("Contents", ())]

        found = self._service.lasting(self._url(prefix), read)
        inside = (key for key in found if not prefix or key == full or key.startswith(full + "/"))
        return tuple(sorted(key.removeprefix(self._prefix) for key in inside))

    def read_bytes(self, key: str) -> bytes:
        """Content of one object, checked against the hash that was recorded at the write.

        Raises:
            StorageError: missing, damaged, or the service refuses.
        """
        where = self._url(key)
        digests: list[str] = []
        # Damage on the way is cured by another reading, damage at rest is not.
        while len(digests) < self._max_attempts:
            content, recorded = self._service.lasting(where, lambda: self._read(key))
            digest = hashlib.sha256(content).hexdigest()
            if recorded in (None, digest):
                return content
            digests.append(digest)
        raise make_fault(StoreFault.DAMAGED, where, f"SHA-256 is {digests[-1][:16]}…")

    def _read(self, key: str) -> tuple[bytes, str | None]:
        """One object, and the hash that was recorded with it."""
        answer, content = self._service.whole(self._bucket, self._key(key))
        return content, answer["Metadata"].get(_HASH_KEY)

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write one object with its hash; an old one is replaced."""
        self._service.lasting(
            self._url(key),
            lambda: self._client.put_object(
                Bucket=self._bucket, Key=self._key(key), Body=data, Metadata=_hash_of(data)
            ),
        )

    def put_file(self, file: Path, key: str) -> None:
        """Upload one file with its hash, unless the same content is there.

        Raises:
            StorageError: the service refuses.
        """
        entry = ManifestEntry(safe_key(key), file.stat().st_size, sha256_file(file))
        if not self._holds(key, entry):
            self._upload(file, key, entry)

    def get_file(self, key: str, file: Path) -> None:
        """Bring one object here, checked against the hash that was recorded with it; an equal file stays as it is.

        Raises:
            StorageError: missing, damaged, or the service refuses.
        """
        head = self._head(key)
        if head is None:
            raise make_fault(StoreFault.NOT_FOUND, self._url(key), "HTTP 404")
        recorded = head.get("Metadata", {}).get(_HASH_KEY)
        size = int(head["ContentLength"])
        if file.is_file() and file.stat().st_size == size and recorded == sha256_file(file):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = fresh_name(file, "tmp")
        try:
            self._download(key, partial, None if recorded is None else ManifestEntry(key, size, recorded))
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Content and tag of a small object, for :meth:`swap`; None if it is not there."""

        def read() -> tuple[bytes, str]:
            answer, content = self._service.whole(self._bucket, self._key(key))
            return content, answer["ETag"]

        try:
            return self._service.lasting(self._url(key), read)
        except RemoteStoreError as error:
            if error.fault is StoreFault.NOT_FOUND:
                return None
            raise

    def swap(self, key: str, data: bytes, tag: str | None) -> str:
        """Replace an object if it still has this tag, or make it if there is none (``None``); returns its new tag.

        Raises:
            RemoteStoreError: ``CONFLICT`` if somebody was faster; ``UNSUPPORTED`` if the service has no such request.
        """
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        answer = self._service.lasting(
            self._url(key),
            lambda: self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=data, **condition),
        )
        return str(answer["ETag"])

    def delete_prefix(self, prefix: str) -> int:
        """Delete the object ``prefix`` and everything below it, markers first; returns how many objects went."""
        keys = sorted(self._listed(safe_key(prefix)), key=lambda key: not key.endswith("/" + MARKER_NAME))
        for key in keys:
            self._delete(key)
        return len(keys)

    def abort_stale_uploads(self, *, older_than_s: float, prefix: str = "") -> int:
        """Drop the parts that writers killed in the middle of a multipart upload left behind (they cost money).

        Args:
            older_than_s: uploads begun within this time may be alive and stay.
            prefix: only those at and below this key.
        """
        now, aborted = datetime.now(UTC), 0
        full = self._key(prefix) if prefix else self._prefix

        def find() -> list[Any]:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=full)
            return [upload for page in pages for upload in page.get("Uploads", ())]

        def abort(upload: Any) -> None:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])

        for upload in self._service.lasting(self._url(prefix), find):
            is_inside = not prefix or upload["Key"] == full or upload["Key"].startswith(full + "/")
            if is_inside and (now - upload["Initiated"]).total_seconds() >= older_than_s:
                try:
                    self._service.lasting(self._url(prefix), functools.partial(abort, upload))
                except RemoteStoreError as error:
                    if error.fault is not StoreFault.NOT_FOUND:  # it has just ended by itself
                        raise
                aborted += 1
        return aborted

    def _key(self, key: str) -> str:
        return safe_key(self._prefix + safe_key(key))

    def _url(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _head(self, key: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        def ask() -> dict[str, Any] | None:
            try:
                answer: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=self._key(key))
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                return None
            return answer

        found = self._service.lasting(self._url(key), ask)
        if found is None:
            self._require_bucket()
        return found

    def _require_bucket(self) -> None:
        # The answer to HEAD has no body, so a missing object and a missing bucket look the same until this is asked.
        try:
            self._service.lasting(f"s3://{self._bucket}", lambda: self._client.head_bucket(Bucket=self._bucket))
        except RemoteStoreError as error:
            if error.fault is not StoreFault.NOT_FOUND:
                raise
            raise make_fault(StoreFault.BUCKET_MISSING, f"s3://{self._bucket}", "HTTP 404") from None

    def _holds(self, key: str, entry: ManifestEntry) -> bool:
        head = self._head(key)
        return (
            head is not None
            and head["ContentLength"] == entry.size
            and head.get("Metadata", {}).get(_HASH_KEY) == entry.sha256
        )

    def _upload(self, file: Path, key: str, entry: ManifestEntry) -> None:
        self._service.lasting(
            self._url(key),
            lambda: self._client.upload_file(
                str(file),
                self._bucket,
                self._key(key),
                ExtraArgs={"Metadata": {_HASH_KEY: entry.sha256}},
                Config=self._service.transfer(),
            ),
        )

    def _download(self, key: str, file: Path, entry: ManifestEntry | None) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        digests = []
        # Damage on the way is cured by a second reading, damage at rest is not.
        for _ in range(2):
            self._service.lasting(
                self._url(key),
                lambda: self._client.download_file(
                    self._bucket, self._key(key), str(file), Config=self._service.transfer()
                ),
            )
            digests.append(sha256_file(file))
            if entry is None or digests[-1] == entry.sha256:
                return
        raise make_fault(
            StoreFault.DAMAGED,
            self._url(key),
            f"SHA-256 is {digests[-1][:16]}…, the record says {'' if entry is None else entry.sha256[:16]}…",
        )

    def _is_done(self, key: str, marker: bytes) -> bool:
        if self._head(f"{key}/{MARKER_NAME}") is None:
            return False
        if self.read_bytes(f"{key}/{MARKER_NAME}") == marker:
            return True
        raise make_fault(StoreFault.CONFLICT, self._url(key), "a committed folder with other content is there")

    def _commit(self, key: str, marker: bytes) -> None:
        # Looked for again, though it was before the upload: the condition of the write may be ignored.
        if self._is_done(key, marker):
            return
        name = f"{key}/{MARKER_NAME}"
        try:
            self._service.lasting(
                self._url(name),
                lambda: self._client.put_object(
                    Bucket=self._bucket, Key=self._key(name), Body=marker, Metadata=_hash_of(marker), IfNoneMatch="*"
                ),
            )
        except RemoteStoreError as error:
            if error.fault is StoreFault.UNSUPPORTED:
                self.write_bytes(name, marker)
            # A retried request whose first answer was lost meets its own marker: equal content is success.
            elif error.fault is not StoreFault.CONFLICT or not self._is_done(key, marker):
                raise

    def _delete(self, key: str) -> None:
        """Delete what a listing named, whatever it is called."""
        # One by one: the batch request needs a checksum that some services refuse.
        self._service.lasting(
            self._url(key), lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        )


def _hash_of(data: bytes) -> dict[str, str]:
    return {_HASH_KEY: hashlib.sha256(data).hexdigest()}
