"""`docs/openapi.yaml` as a judge: is an answer one that the document promises?"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "openapi.yaml"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
"""The methods that OpenAPI has words for."""

_SELF: Final = "urn:api-document"
_IMMICH: Final = "immich_"
_JSON: Final = frozenset({"application/json", "application/problem+json"})


@dataclass(frozen=True)
class SeenAnswer:
    """An answer as it was on the wire, and the route that it came from."""

    method: str
    path: str
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def error(self) -> str:
        """The code in `X-Bridge-Error`, empty without one."""
        return "".join(self.all("X-Bridge-Error")[:1])

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return "".join(self.all("Content-Type")[:1]).partition(";")[0].strip().lower()


class ApiDocument:
    """The document, stricter by one rule: an answer has no members that it does not name."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document: dict[str, Any] = _strict(document)
        resource = DRAFT202012.create_resource(self._document)
        self._registry: Registry[Any] = Registry().with_resource(_SELF, resource)
        self._validators: dict[int, Draft202012Validator] = {}

    @classmethod
    def load(cls) -> Self:
        """The document as it is in the repository."""
        return cls(read_document())

    @property
    def whole(self) -> Mapping[str, Any]:
        """All of it."""
        return self._document

    @property
    def paths(self) -> frozenset[str]:
        """Every path that the document describes."""
        return frozenset(self._document["paths"])

    def operations(self) -> Iterator[tuple[str, str]]:
        """Method and path of every operation."""
        for path, item in self._document["paths"].items():
            for method in METHODS:
                if method.lower() in item:
                    yield method, path

    def problems(self, answer: SeenAnswer) -> list[str]:
        """What is wrong with an answer of a route in the document."""
        response = self._response(answer)
        if response is None:
            return [f"status {answer.status} is not in the document"]
        if "x-without-body" in response and not answer.media_type:
            response = self.resolved(response["x-without-body"])
        headers = response.get("headers", {})
        return [
            *self._header_problems(answer, headers),
            *self._unlisted_headers(answer, headers),
            *self._body_problems(answer, response.get("content", {})),
            *self._error_problems(answer),
        ]

    def error_problems(self, answer: SeenAnswer) -> list[str]:
        """What is wrong with an error of ours, made on whatever route."""
        headers = {"X-Request-Id": self.component("headers", "RequestId")}
        content = {"application/json": {"schema": self.component("schemas", "Error")}}
        return [
            *self._header_problems(answer, headers),
            *self._body_problems(answer, content),
            *self._error_problems(answer),
        ]

    def schema_problem(self, schema: Mapping[str, Any], value: object) -> str | None:
        """Why `value` is not what `schema`, a part of the document, describes; None if it is."""
        validator = self._validators.get(id(schema))
        if validator is None:
            validator = self._validators[id(schema)] = Draft202012Validator(
                schema,
                registry=self._registry,
                format_checker=Draft202012Validator.FORMAT_CHECKER,
            )
        error = best_match(validator.iter_errors(value))
        return None if error is None else f"{error.json_path}: {error.message}"

    def component(self, kind: str, name: str) -> Any:
        """One of the document's components."""
        return self.resolved(self._document["components"][kind][name])

    def resolved(self, node: Any) -> Any:
        """`node`, or what it refers to."""
        while "$ref" in node:
            target = self._document
            for key in node["$ref"].removeprefix(f"{_SELF}#/").split("/"):
                target = target[key.replace("~1", "/").replace("~0", "~")]
            node = target
        return node

    def _response(self, answer: SeenAnswer) -> Any:
        operation = self._document["paths"][answer.path].get(answer.method.lower())
        if operation is None:
            return self.component("responses", "MethodNotAllowed") if answer.status == 405 else None
        responses = operation["responses"]
        found = responses.get(str(answer.status)) or responses.get(f"{answer.status // 100}XX")
        return found and self.resolved(found)

    def _header_problems(self, answer: SeenAnswer, headers: Mapping[str, Any]) -> Iterator[str]:
        for name, reference in headers.items():
            header = self.resolved(reference)
            values = answer.all(name)
            if not values and header.get("required"):
                yield f"{name} is missing"
            if len(values) > 1:
                yield f"{name} came {len(values)} times"
            for text in values[:1]:
                schema = header["schema"]
                is_number = schema.get("type") == "integer" and text.isdecimal()
                problem = self.schema_problem(schema, int(text) if is_number else text)
                if problem:
                    yield f"{name} {problem}"

    def _unlisted_headers(self, answer: SeenAnswer, listed: Mapping[str, Any]) -> Iterator[str]:
        """Headers that mean something here, but are not expected of this answer."""
        if answer.error.startswith(_IMMICH):
            return
        meaningful = {"Allow", "Retry-After", "X-Bridge-Error"}
        for name, _ in answer.headers:
            ours = name in meaningful or name.startswith(("X-RateLimit-", "X-Immich-", "Upload-"))
            if ours and name not in listed:
                yield f"{name} is not in the document"

    def _body_problems(self, answer: SeenAnswer, content: Mapping[str, Any]) -> Iterator[str]:
        if answer.method == "HEAD" or not content:
            if answer.body:
                yield "there is a body"
            return
        if answer.media_type not in content:
            if "*/*" not in content or not answer.error.startswith(_IMMICH):
                yield f"content type {answer.media_type!r} is not in the document"
            return
        schema = content[answer.media_type]["schema"]
        if answer.media_type not in _JSON:
            return
        try:
            value = json.loads(answer.body)
        except ValueError:
            yield "the body is no JSON"
            return
        if problem := self.schema_problem(schema, value):
            yield f"body {problem}"

    def _error_problems(self, answer: SeenAnswer) -> Iterator[str]:
        """An error of ours says the same in its body as in its header."""
        if not answer.error or answer.error.startswith(_IMMICH) or answer.method == "HEAD":
            return
        try:
            named = json.loads(answer.body)["error"]
        except (ValueError, TypeError, KeyError):
            named = None
        if named != answer.error:
            yield f"the body names the error {named!r}, the header {answer.error!r}"


@functools.cache
def read_document() -> Any:
    """The document as YAML has it."""
    return yaml.load(DOCUMENT.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _strict(node: Any) -> Any:
    """A copy with objects closed, and with references that hold from anywhere."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: _strict(value) for key, value in node.items()}
    if isinstance(reference := copy.get("$ref"), str):
        copy["$ref"] = f"{_SELF}{reference}"
    if copy.get("type") == "object" and "properties" in copy:
        copy.setdefault("additionalProperties", False)
    return copy
