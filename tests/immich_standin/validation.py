"""The checks of an upload's fields and of ids, in the manner of the release."""

from __future__ import annotations

from .class_validator import ClassValidator
from .release import Refusal, Release
from .upload_fields import UUID, Fields, Parsed
from .zod import Zod, uuid_issue


def validate(fields: Fields | None, release: Release) -> Parsed:
    """The parsed fields; raises Refusal, which leaves the file behind as Immich does.

    ``fields`` is None when the request had no body that Immich parses.
    """
    checks: Zod | ClassValidator = Zod() if release.is_v3 else ClassValidator()
    parsed = checks.run(fields)
    checks.raise_if_failed()
    return parsed


def check_uuid(value: str, name: str, release: Release) -> None:
    if UUID.fullmatch(value):
        return
    if release.is_v3:
        raise Refusal(400, "Validation failed", errors=[uuid_issue(name)])
    raise Refusal(400, [f"{name} must be a UUID"])
