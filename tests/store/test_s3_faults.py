import pytest
from boto3.exceptions import RetriesExceededError
from botocore import exceptions as boto

from retort.store.s3_faults import RemoteStoreError, StoreFault, clear_faults, fault_of


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (boto.NoCredentialsError(), StoreFault.NO_CREDENTIALS),
        (boto.PartialCredentialsError(provider="x", cred_var="y"), StoreFault.NO_CREDENTIALS),
        (boto.ConnectTimeoutError(endpoint_url="http://x"), StoreFault.UNREACHABLE),
        (boto.EndpointConnectionError(endpoint_url="http://x"), StoreFault.UNREACHABLE),
        (boto.ReadTimeoutError(endpoint_url="http://x"), StoreFault.UNREACHABLE),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), StoreFault.UNREACHABLE),
        (RetriesExceededError(ConnectionResetError()), StoreFault.UNREACHABLE),
        (ConnectionResetError(), StoreFault.UNREACHABLE),
        (boto.ParamValidationError(report="bad name"), StoreFault.OTHER),
    ],
)
def test_every_kind_of_error_gets_its_name(error: Exception, expected: StoreFault) -> None:
    with pytest.raises(RemoteStoreError, match=rf"\[store/{expected}\] s3://b/k: ") as raised, clear_faults("s3://b/k"):
        raise error
    assert raised.value.fault is expected
    assert raised.value.exit_code == 5
    assert raised.value.__cause__ is error


def test_our_own_bugs_pass_through() -> None:
    with pytest.raises(KeyError), clear_faults("s3://b/k"):
        raise KeyError("x")


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("SomethingNew", 500, StoreFault.BUSY),
        ("SomethingNew", 429, StoreFault.BUSY),
        ("SomethingNew", 400, StoreFault.OTHER),
        ("404", 404, StoreFault.NOT_FOUND),
        ("NoSuchBucket", 404, StoreFault.BUCKET_MISSING),
        ("NotImplemented", 501, StoreFault.UNSUPPORTED),
    ],
)
def test_codes(code: str, status: int, expected: StoreFault) -> None:
    assert fault_of(code, status) is expected
