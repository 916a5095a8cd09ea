"""Errors of resumable uploads; clients know them by the types that the standard gives them."""

from typing import Final

from immich_bridge.errors import BadRequest, ChecksumMismatch, Conflict

_TYPES: Final = "https://iana.org/assignments/http-problem-types#"


class MismatchingOffset(Conflict):
    """The client would go on elsewhere than where the upload ends."""

    problem_type = f"{_TYPES}mismatching-upload-offset"

    def __init__(self, expected: int, provided: int) -> None:
        super().__init__(f"the upload goes on at {expected}, not at {provided}")
        self.details = {"expected-offset": expected, "provided-offset": provided}


class Superseded(Conflict):
    """A newer request of the same client has taken the upload over."""


class InconsistentLength(BadRequest):
    """The length of the upload is not what was said of it before."""

    problem_type = f"{_TYPES}inconsistent-upload-length"


class CompletedUpload(BadRequest):
    """Nothing can be appended to an upload that is complete."""

    problem_type = f"{_TYPES}completed-upload"


class ChunkMismatch(ChecksumMismatch):
    """The bytes of one request are not those that its client digested (tus 1.0, "Checksum")."""

    status = 460
