"""What goes wrong between us and an S3 service, in words that a person can act on."""

import contextlib
from collections.abc import Iterator
from enum import StrEnum

from retort.errors import StorageError


class StoreFault(StrEnum):
    """Why a remote store refused; callers branch on this, people read the message."""

    NOT_FOUND = "not-found"
    BUCKET_MISSING = "bucket-missing"
    ACCESS_DENIED = "access-denied"
    NO_CREDENTIALS = "no-credentials"
    EXPIRED_TOKEN = "expired-token"
    CLOCK_SKEW = "clock-skew"
    UNREACHABLE = "unreachable"
    BUSY = "busy"
    CONFLICT = "conflict"
    DAMAGED = "damaged"
    UNSUPPORTED = "unsupported"
    OTHER = "other"


class RemoteStoreError(StorageError):
    """A fault of a remote store, with its kind."""

    def __init__(self, fault: StoreFault, message: str) -> None:
        super().__init__(f"[store/{fault}] {message}")
        self.fault = fault


def is_outage(error: Exception) -> bool:
    """Whether it passes by itself: nobody answers, or the service is busy. All else is a refusal, or a fault here."""
    return isinstance(error, RemoteStoreError) and error.fault in (StoreFault.BUSY, StoreFault.UNREACHABLE)


_CURES = {
    StoreFault.NOT_FOUND: "no such object; check the key",
    StoreFault.BUCKET_MISSING: "the bucket does not exist; create it or correct the url",
    StoreFault.ACCESS_DENIED: "access denied; check the key pair and the policy (list, get, put and delete are needed)",
    StoreFault.NO_CREDENTIALS: "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    StoreFault.EXPIRED_TOKEN: "the session token has expired; get a new one",
    StoreFault.CLOCK_SKEW: "this machine's clock is wrong; synchronise it",
    StoreFault.UNREACHABLE: "no answer from the endpoint; check AWS_ENDPOINT_URL, the network and whether it runs",
    StoreFault.BUSY: "the service keeps refusing for now; try again later, or with more attempts or fewer writers",
    StoreFault.CONFLICT: "somebody else wrote this key meanwhile; use another key",
    StoreFault.UNSUPPORTED: "the service does not know this request; take a newer version of it or another service",
    StoreFault.DAMAGED: "what came back is not what was written; write it again, or use an earlier one",
    StoreFault.OTHER: "see the service's answer",
}
_CODES = {
    StoreFault.NOT_FOUND: {"NoSuchKey", "404", "NotFound"},
    StoreFault.BUCKET_MISSING: {"NoSuchBucket"},
    StoreFault.ACCESS_DENIED: {"AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"},
    StoreFault.EXPIRED_TOKEN: {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"},
    StoreFault.CLOCK_SKEW: {"RequestTimeTooSkewed"},
    StoreFault.BUSY: {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "Throttling",
        "RequestTimeout",
        "TooManyRequests",
    },
    StoreFault.CONFLICT: {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"},
    StoreFault.UNSUPPORTED: {"NotImplemented", "XNotImplemented", "501"},
}


def fault_of(code: str, status: int) -> StoreFault:
    """The kind of fault behind an S3 error code and an HTTP status."""
    for fault, codes in _CODES.items():
        if code in codes:
            return fault
    return StoreFault.BUSY if status >= 500 or status == 429 else StoreFault.OTHER


@contextlib.contextmanager
def clear_faults(where: str) -> Iterator[None]:
    """Turn what boto3 raises into :class:`RemoteStoreError` naming ``where``, the kind and the cure."""
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError
    from botocore import exceptions as boto

    unreachable = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, RetriesExceededError)
    no_credentials = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
    try:
        yield
    except boto.ClientError as error:
        raise _from_answer(error, where) from error
    except S3UploadFailedError as error:
        # boto3 wraps the service's answer here and keeps it as the cause.
        if isinstance(error.__context__, boto.ClientError):
            raise _from_answer(error.__context__, where) from error
        raise make_fault(StoreFault.OTHER, where, str(error)) from error
    except no_credentials as error:
        raise make_fault(StoreFault.NO_CREDENTIALS, where, str(error)) from error
    except (*unreachable, ConnectionError, TimeoutError) as error:
        raise make_fault(StoreFault.UNREACHABLE, where, str(error)) from error
    except boto.BotoCoreError as error:
        raise make_fault(StoreFault.OTHER, where, str(error)) from error


def _from_answer(error: Exception, where: str) -> RemoteStoreError:
    answer = getattr(error, "response", {})
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return make_fault(fault_of(code, status), where, f"{code} (HTTP {status})")


def make_fault(fault: StoreFault, where: str, detail: str) -> RemoteStoreError:
    """The error for ``fault`` at ``where``, with the cure."""
    return RemoteStoreError(fault, f"{where}: {_CURES[fault]} ({detail})")
