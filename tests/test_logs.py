"""Lines of the log: what they look like, and what never gets into them."""

import json
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from immich_bridge.logs import add_to_every_line, log_event, loggable_path
from log_capture import written_log

LOGGER = logging.getLogger("immich_bridge.test")
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


class TestLoggablePath:
    @pytest.mark.parametrize(
        ("target", "expected"),
        [
            ("/", "/"),
            ("*", "*"),
            ("/a/%2F//b;c", "/a/%2F//b;c"),
            ("/a?apiKey=secret", "/a"),
            ("/a?b?key=secret", "/a"),
            ("/a#secret", "/a"),
            ("?secret", ""),
            ("/share/secret", "/share/***"),
            ("/share/secret/photos/7?x", "/share/***/photos/7"),
            ("/s/secret", "/s/***"),
            ("/s/secret?password=x", "/s/***"),
            ("//share//secret", "//share//***"),
            ("/shared/link", "/shared/link"),
            ("/uploads/12345678secret?key=x", "/uploads/12345678..."),
            ("/uploads/", "/uploads/"),
            ("/api/share/x", "/api/share/x"),
            ("/share/", "/share/"),
            ("http://user:secret@immich/a?b", "/a"),
            ("HTTPS://immich/share/secret", "/share/***"),
            ("http://immich", ""),
            ("/http://immich/a", "/http://immich/a"),
            ("immich:443", "immich:443"),
            ("user:secret@immich:443", "immich:443"),
            ("user:secret/secret@immich:443", "immich:443"),
            ("/a@b", "/a@b"),
            ("/a\nb\x1b[31m\té", "/a\\nb\\x1b[31m\\t\\xe9"),
            ("/\udce9\u2028", "/\\udce9\\u2028"),
        ],
    )
    def test_holds_no_secret_and_no_line_end(self, target: str, expected: str) -> None:
        assert loggable_path(target) == expected

    def test_is_cut_where_it_gets_too_long(self) -> None:
        assert loggable_path("/" + "a" * 299) == "/" + "a" * 299
        assert loggable_path("/" + "a" * 30_000) == "/" + "a" * 299 + "..."

    @given(st.text(), st.sampled_from(["", "/", "/share/", "/s/", "http://h/share/"]))
    def test_is_printable_whatever_it_was(self, text: str, prefix: str) -> None:
        assert re.fullmatch(r"[ -~]{0,303}", loggable_path(prefix + text))

    @given(st.text(st.characters(exclude_characters="/?#"), min_size=1), st.text())
    def test_never_shows_the_key_of_a_shared_link(self, key: str, rest: str) -> None:
        shown = loggable_path(f"/share/{key}/{rest}")
        assert shown.startswith("/share/***/")
        assert shown == loggable_path(f"/share/another/{rest}")


class TestTextFormat:
    def test_is_a_line_of_time_level_message_and_fields(self) -> None:
        with written_log() as log:
            log_event(LOGGER, logging.WARNING, "it happened", what="this", count=3, ratio=0.5)
        assert re.fullmatch(
            rf"{TIME} WARNING it happened what=this count=3 ratio=0.5", log.lines[0]
        )

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("a b", '"a b"'),
            ("a=b", '"a=b"'),
            ('a"b', r'"a\"b"'),
            ("a\nb\r\u2028", r'"a\nb\r\u2028"'),
            ("", '""'),
            ("/a;b", "/a;b"),
        ],
    )
    def test_quotes_what_could_be_taken_for_something_else(self, value: str, shown: str) -> None:
        with written_log() as log:
            log_event(LOGGER, logging.INFO, "event", field=value, last="one")
        assert log.lines[0].endswith(f" INFO event field={shown} last=one")
        assert len(log.lines) == 1

    def test_shows_where_an_exception_came_from(self) -> None:
        with written_log() as log:
            try:
                raise RuntimeError("oh")
            except RuntimeError:
                LOGGER.exception("unexpected")
        assert log.lines[0].endswith(" ERROR unexpected")
        assert log.lines[-1] == "RuntimeError: oh"


class TestJsonFormat:
    def test_is_an_object_a_line(self) -> None:
        with written_log("json") as log:
            log_event(LOGGER, logging.INFO, "it\nhappened", what="thís", count=3)
        event = json.loads(log.lines[0])
        assert re.fullmatch(TIME, event.pop("time"))
        assert event == {
            "level": "info",
            "logger": "immich_bridge.test",
            "message": "it\nhappened",
            "what": "thís",
            "count": 3,
        }
        assert len(log.lines) == 1

    def test_holds_an_exception_in_its_line(self) -> None:
        with written_log("json") as log:
            try:
                raise RuntimeError("oh")
            except RuntimeError:
                LOGGER.exception("unexpected")
        (event,) = map(json.loads, log.lines)
        assert event["exception"].endswith("RuntimeError: oh")

    def test_shows_what_json_does_not_know_as_text(self) -> None:
        with written_log("json") as log:
            log_event(LOGGER, logging.INFO, "event", path=sys.path.__class__)
        assert json.loads(log.lines[0])["path"] == "<class 'list'>"


@pytest.mark.parametrize(
    ("log_format", "ending"), [("text", " here=1 worker=2"), ("json", '"here": 1, "worker": 2}')]
)
def test_fields_of_the_process_stand_behind_those_of_the_line(log_format: str, ending: str) -> None:
    with written_log(log_format) as log:
        add_to_every_line(worker=2)
        log_event(LOGGER, logging.INFO, "event", here=1)
        LOGGER.warning("another one")
    first, second = log.lines
    assert first.endswith(ending)
    assert second.endswith(ending[-len("worker=2") :])


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_fields_without_a_value_are_left_out(log_format: str) -> None:
    with written_log(log_format) as log:
        log_event(LOGGER, logging.INFO, "event", gone=None, kept=0)
    assert "gone" not in log.getvalue()
    assert "kept" in log.getvalue()


@pytest.mark.parametrize(
    ("level", "written"),
    [("debug", "DIWE"), ("info", "IWE"), ("warning", "WE"), ("error", "E")],
)
def test_less_important_lines_are_not_written(level: str, written: str) -> None:
    with written_log(level=level) as log:
        for important in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            log_event(LOGGER, important, "event")
    assert "".join(line.split()[1][0] for line in log.lines) == written


def test_libraries_are_not_asked_for_details() -> None:
    with written_log(level="debug") as log:
        for name in ("aiosqlite", "asyncio", "immich_bridge.backup"):
            logging.getLogger(name).debug("from %s", name)
    assert [line.rpartition(" ")[2] for line in log.lines] == ["immich_bridge.backup"]
