"""The artifact store in a bucket that speaks S3's protocol."""

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from core.errors import StoreAway
from store.artifacts import PART, ArtifactStore, Stored, is_artifact, place_of
from store.crashpoints import crashpoint
from store.ownership import Owner

T = TypeVar("T")
CONNECT_SECONDS = 3
SILENCE_SECONDS = 30
"""How long a request may go without a byte of answer. There is no limit on the whole: an artifact may be large."""
RETRIES = 2
RETRY_SECONDS = 5
"""Requests are repeated this little here: who has to wait longer says so, and can be told to stop meanwhile."""
NO_BUCKET = "NoSuchBucket"


class BucketStore(ArtifactStore):
    """Artifacts as objects below a prefix of a bucket.

    `options` are obstore's names of S3 settings; what they leave out comes from the environment, or from the role of
    the machine. An upload appears whole or not at all. One that was cut short may leave parts that no listing shows:
    they are for a lifecycle rule of the bucket.
    """

    def __init__(self, bucket: str, prefix: str, options: Mapping[str, str], owner: Owner | None = None):
        super().__init__(f"s3://{bucket}/{prefix}".rstrip("/"), owner)
        _forget_empty_variables()
        plain_http = options.get("endpoint", "").startswith("http://")
        second = timedelta(seconds=1)
        self._bucket = S3Store(
            bucket,
            prefix=prefix or None,
            config={**options},  # pyright: ignore[reportArgumentType] - a TypedDict, of which these are some names
            client_options={
                "allow_http": plain_http,
                "connect_timeout": CONNECT_SECONDS * second,
                "read_timeout": SILENCE_SECONDS * second,
                "timeout": timedelta(days=1),
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_SECONDS * second},
        )

    def unused(self, kept: set[str], older_than: float) -> Iterator[Stored]:
        """Yield the objects that are not `kept` and were last put before that moment, by the bucket's clock."""
        batches = iter(obstore.list(self._bucket))
        while batch := self._asked(lambda: next(batches, None)):
            for found in batch:
                place, name = found["path"], found["path"].rpartition("/")[2]
                if is_artifact(place) and name not in kept and found["last_modified"].timestamp() < older_than:
                    yield Stored(name, place, found["size"])

    def remove(self, place: str, older_than: float) -> bool:
        """Return whether the object was deleted. A bucket has no lock: between look and deletion are milliseconds."""
        found = self._asked(lambda: obstore.head(self._bucket, place))
        if found is None or found["last_modified"].timestamp() >= older_than:
            return False
        self._asked(lambda: obstore.delete(self._bucket, place))
        return True

    def _renewed(self, sha256: str, data: bytes) -> bool:
        """Objects cannot be touched: what is put again is written again."""
        del sha256, data
        return False

    def _write(self, place: str, data: bytes, what: str) -> None:
        crashpoint(f"mid-{what}")  # an upload has no name before it is whole, so nothing of it is there yet
        self._asked(lambda: obstore.put(self._bucket, place, data))
        crashpoint("after-rename")

    def _read(self, place: str) -> bytes | None:
        return self._asked(lambda: bytes(obstore.get(self._bucket, place).bytes()))

    def _has(self, place: str) -> bool:
        return self._asked(lambda: obstore.head(self._bucket, place)) is not None

    def _parts(self, sha256: str) -> Iterator[bytes]:
        found = self._asked(lambda: iter(obstore.get(self._bucket, place_of(sha256)).stream(min_chunk_size=PART)))
        if found is None:
            raise FileNotFoundError(sha256)
        while (part := self._asked(lambda: next(found, None))) is not None:
            yield bytes(part)

    def _asked(self, request: Callable[[], T]) -> T | None:
        """Return the answer, None where the object is not there."""
        try:
            return request()
        except FileNotFoundError as error:
            if NO_BUCKET in str(error):
                raise self._away("there is no such bucket; make it, or correct ARTIFACT_URL") from error
            return None
        except BaseError as error:
            raise self._away(str(error).splitlines()[0]) from error

    def _away(self, why: str) -> StoreAway:
        return StoreAway(f"the artifact store {self._name} cannot be used: {why}")


def _forget_empty_variables() -> None:
    """Unset AWS's variables that are empty, as compose files leave them; obstore reads them as addresses and keys."""
    for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
        del os.environ[name]
