"""The API document says of the routes what there is to say, and the judge of answers judges."""

import dataclasses
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from api.answers import Answers
from api.document import METHODS, ApiDocument, SeenAnswer, read_document
from backup_wing import settings_in
from immich_bridge import errors
from immich_bridge.app import make_app
from immich_bridge.bridge.asset import PARAMETERS
from immich_bridge.config import Config
from immich_bridge.serve import Server
from wire import connect, fetch, request

StartBridge = Callable[..., Awaitable[Server]]

METRICS: Final = ("GET", "/metrics")
ERRORS: Final = {
    kind.code: kind.status
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.BridgeError)
}
"""Code of an error -> its status."""
NEVER_SENT: Final = {errors.ClientGone.code}


@pytest.fixture(scope="module")
def document() -> ApiDocument:
    return ApiDocument.load()


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(read_document()).validate()


class TestRoutes:
    @pytest.fixture
    def routes(self, tmp_path: Path) -> set[tuple[str, str]]:
        """Every route that the application registers with both wings on, but for the proxy."""
        values = {**settings_in(tmp_path), "IMMICH_SERVER_URL": "http://localhost:2283"}
        app = make_app(Config.from_mapping(values))
        return {
            (route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.resource.canonical != "/"
        }

    def test_are_those_of_the_application(
        self, document: ApiDocument, routes: set[tuple[str, str]]
    ) -> None:
        any_method = {path for method, path in routes if method == "*"}
        of_the_app = {(method, path) for method, path in routes if method != "*"}
        described = set(document.operations()) - {METRICS}
        assert any_method
        assert {path for _, path in described} >= any_method
        assert {(m, path) for m, path in described if path not in any_method} == of_the_app

    async def test_any_other_method_on_a_path_of_ours_is_refused(
        self, document: ApiDocument, routes: set[tuple[str, str]], bridge: Server
    ) -> None:
        described = set(document.operations())
        for path in {path for method, path in routes if method == "*"}:
            for method in METHODS:
                target = path.replace("{name}", "x")
                status = (await fetch(bridge.address, method, target)).status
                assert (status == 405) == ((method, path) not in described), (method, path)

    async def test_metrics_have_an_address_of_their_own(
        self, document: ApiDocument, start_bridge: StartBridge
    ) -> None:
        server = await start_bridge("", METRICS_ADDR="127.0.0.1:0")
        assert server.metrics_address is not None
        origin = server.metrics_address.removesuffix("/metrics")
        for accept in ("*/*", "application/openmetrics-text; version=1.0.0"):
            answer = await fetch(origin, *METRICS, ("Accept", accept))
            headers = [(n.decode(), v.decode()) for n, v in answer.headers]
            seen = SeenAnswer(*METRICS, answer.status, headers, answer.body)
            assert document.problems(seen) == []
        assert (await fetch(server.address, *METRICS)).status == 404


class TestContents:
    def test_codes_of_errors_are_those_of_the_source(self, document: ApiDocument) -> None:
        described = document.component("schemas", "Error")["properties"]["error"]["enum"]
        assert set(described) == ERRORS.keys() - NEVER_SENT

    def test_each_error_has_the_status_that_it_has_in_the_source(
        self, document: ApiDocument
    ) -> None:
        checked = set()
        for operation in _operations(document):
            for status, response in operation["responses"].items():
                for code in _codes(document.resolved(response)):
                    if (code, status) == ("checksum_mismatch", "460"):
                        continue  # tus has a status of its own for a part
                    assert code == f"immich_{status}" or ERRORS[code] == int(status), status
                    checked.add(code)
        assert checked & ERRORS.keys() == ERRORS.keys() - NEVER_SENT - {
            "method_not_allowed",  # of methods that are not listed
        }

    def test_metadata_is_what_the_bridge_reads(self, document: ApiDocument) -> None:
        upload = document.whole["paths"]["/api/assets/background"]["post"]
        named = [document.resolved(parameter) for parameter in upload["parameters"]]
        queries = [parameter["name"] for parameter in named if parameter["in"] == "query"]
        assert queries == list(PARAMETERS.values())
        headers = [parameter["name"] for parameter in named if parameter["in"] == "header"]
        assert headers == [
            *PARAMETERS,
            "Repr-Digest",
            "Content-Digest",
            "x-immich-checksum",
            "X-Request-Id",
            "Upload-Draft-Interop-Version",
            "Upload-Complete",
            "Upload-Incomplete",
            "Upload-Length",
        ]
        by_name = {parameter["name"]: parameter["schema"] for parameter in named}
        assert all(by_name[header] == by_name[query] for header, query in PARAMETERS.items())

    def test_every_answer_bears_a_request_id(self, document: ApiDocument) -> None:
        for operation in _operations(document):
            for response in operation["responses"].values():
                assert "X-Request-Id" in document.resolved(response)["headers"]

    def test_every_component_is_used(self) -> None:
        used = {node["$ref"] for node in _nodes(read_document()) if "$ref" in node}
        for kind in ("parameters", "requestBodies", "headers", "responses", "schemas"):
            for name in read_document()["components"][kind]:
                if (kind, name) != ("responses", "MethodNotAllowed"):
                    assert f"#/components/{kind}/{name}" in used

    def test_examples_are_true_to_their_schemas(self, document: ApiDocument) -> None:
        count = 0
        for node in _nodes(document.whole):
            schema = node.get("schema", node)
            values = [case["value"] for case in _named(node.get("examples"))]
            if "type" in node and isinstance(node.get("examples"), list):
                values += node["examples"]
            if "example" in node:
                values.append(node["example"])
            for value in values:
                assert document.schema_problem(schema, value) is None, value
                count += 1
        assert count > 30


class TestTheJudge:
    """Each of these would go unseen if the judge were lenient in one respect."""

    FINE = SeenAnswer(
        "GET",
        "/status",
        200,
        [("Content-Type", "application/json; charset=utf-8"), ("X-Request-Id", "1")],
        b'{"status": "online", "user_id": 1, "username": "admin"}',
    )
    ERROR = SeenAnswer(
        "POST",
        "/login",
        429,
        [
            ("Content-Type", "application/json"),
            ("X-Request-Id", "1"),
            ("X-Bridge-Error", "rate_limited"),
            ("Retry-After", "5"),
        ],
        b'{"error": "rate_limited", "message": "too many"}',
    )

    def test_finds_nothing_wrong_with_what_is_right(self, document: ApiDocument) -> None:
        assert document.problems(self.FINE) == []
        assert document.problems(self.ERROR) == []

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"status": 418}, "status 418"),
            ({"method": "PUT"}, "status 200"),
            ({"headers": FINE.headers[:1]}, "X-Request-Id is missing"),
            ({"headers": [*FINE.headers, FINE.headers[1]]}, "X-Request-Id came 2 times"),
            ({"headers": FINE.headers[1:]}, "content type ''"),
            (
                {"headers": [("Content-Type", "text/html"), FINE.headers[1]]},
                "content type 'text/html'",
            ),
            ({"body": b"online"}, "no JSON"),
            ({"body": b'{"status": "online", "user_id": 1}'}, "'username' is a required property"),
            ({"body": FINE.body.replace(b"1", b'"1"')}, "$.user_id"),
            ({"body": FINE.body.replace(b"1", b'1, "more": 2')}, "'more' was unexpected"),
        ],
    )
    def test_finds_what_the_document_does_not_say(
        self, document: ApiDocument, changes: dict[str, Any], problem: str
    ) -> None:
        problems = document.problems(dataclasses.replace(self.FINE, **changes))
        assert [problem in text for text in problems] == [True], problems

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("Retry-After", None),
            ("Retry-After", "soon"),
            ("X-Bridge-Error", None),
            ("X-Bridge-Error", "unavailable"),
            ("X-RateLimit-Limit", "many"),
            ("Allow", "POST"),
        ],
    )
    def test_looks_into_headers(self, document: ApiDocument, name: str, value: str | None) -> None:
        headers = [header for header in self.ERROR.headers if header[0] != name]
        if value is not None:
            headers.append((name, value))
        problems = document.problems(dataclasses.replace(self.ERROR, headers=headers))
        assert problems
        assert all(name in text or "header" in text for text in problems)

    def test_wants_errors_of_ours_to_be_json_where_those_of_immich_are_anything(
        self, document: ApiDocument
    ) -> None:
        def answer(error: str) -> SeenAnswer:
            headers = [
                ("Content-Type", "text/html"),
                ("X-Request-Id", "1"),
                ("X-Bridge-Error", error),
            ]
            return SeenAnswer("POST", "/api/assets/background", 400, headers, b"<html>")

        assert document.problems(answer("immich_400")) == []
        assert any("content type" in text for text in document.problems(answer("bad_request")))

    def test_knows_errors_that_have_no_route(self, document: ApiDocument) -> None:
        assert document.error_problems(self.ERROR) == []
        other = dataclasses.replace(self.ERROR, body=b'{"error": "oops", "message": "?"}')
        assert document.error_problems(other)


class TestTheWatcher:
    async def test_sees_answers_on_the_wire(
        self, bridge: Server, documented_answers: Answers
    ) -> None:
        async with connect(bridge.address) as peer:
            for method in ("GET", "HEAD"):
                await peer.send(request(method, "/health"))
                await peer.read_answer(method)
            await peer.send(request("POST", "/api/assets/background"))
            await peer.read_answer()
        assert documented_answers.seen == {
            ("GET", "/health", 200): 1,
            ("HEAD", "/health", 200): 1,
            ("POST", "/api/assets/background", 401): 1,
        }

    async def test_sees_errors_without_a_route(
        self, start_bridge: StartBridge, documented_answers: Answers
    ) -> None:
        server = await start_bridge("")
        await fetch(server.address, "GET", "/elsewhere")
        async with connect(server.address) as peer:
            await peer.send(b"no HTTP at all\r\n\r\n")
            assert (await peer.read_answer()).status == 400
        assert sorted(status for _, _, status in documented_answers.seen) == [400, 404]

    async def test_does_not_let_an_undocumented_answer_pass(
        self,
        start_bridge: StartBridge,
        documented_answers: Answers,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def teapot(_: web.Request) -> web.Response:
            return web.Response(status=418)

        monkeypatch.setattr("immich_bridge.app.health", teapot)
        server = await start_bridge("")
        assert (await fetch(server.address, "GET", "/health")).status == 418
        [problem] = documented_answers.problems
        documented_answers.problems.clear()
        assert problem.startswith("GET /health -> 418: status 418 is not in the document")


def _operations(document: ApiDocument) -> Iterator[Mapping[str, Any]]:
    for method, path in document.operations():
        if (method, path) != METRICS:
            yield document.whole["paths"][path][method.lower()]


def _codes(response: Mapping[str, Any]) -> list[str]:
    """The codes of errors that a response may bear."""
    schema = response["headers"].get("X-Bridge-Error", {}).get("schema", {})
    return list(schema.get("enum", [schema["const"]] if "const" in schema else []))


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in the document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, dict | list):
            yield from _nodes(child)


def _named(examples: Any) -> list[Mapping[str, Any]]:
    return list(examples.values()) if isinstance(examples, dict) else []
