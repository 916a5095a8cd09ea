"""Query parameters, decoded to the letter or refused by name."""

import pytest
from aiohttp.test_utils import make_mocked_request

from immich_bridge.bridge.asset import HEADER_OF, PARAMETERS
from immich_bridge.errors import BadRequest
from immich_bridge.http.query import query_parameters


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("", {}),
        ("?", {}),
        ("?a", {"a": ""}),
        ("?a=1&b=2&a=3&&", {"a": "1", "b": "2"}),
        ("?a=b%20c+d&e=%26%3D%2B;%23", {"a": "b c d", "e": "&=+;#"}),
        ("?%C3%BC=%e2%82%ac", {"ü": "€"}),
        ("?a=b=c#d=e", {"a": "b=c"}),
    ],
)
def test_are_decoded_once(query: str, parameters: dict[str, str]) -> None:
    assert query_parameters(make_mocked_request("GET", f"/{query}")) == parameters


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("deviceAssetId=%ff", "X-Device-Asset-Id (deviceAssetId in the query string)"),
        ("a=%20&iCloud%49d=%C3&b=%FF", "X-iCloud-Id (iCloudId in the query string)"),
        ("filename=ok&filename=%ED%A0%80", "X-Filename (filename in the query string)"),
        ("apiKey=%ff", "apiKey in the query string"),
        ("%FFa=1", "\\xffa in the query string"),
    ],
)
def test_that_are_no_utf8_are_named(query: str, named: str) -> None:
    request = make_mocked_request("GET", f"/?{query}")
    with pytest.raises(BadRequest) as caught:
        query_parameters(request, HEADER_OF)
    assert caught.value.message == f"{named} is not percent-encoded UTF-8"


def test_that_no_header_replaces_are_named_alone() -> None:
    request = make_mocked_request("GET", "/?local_id=%ff&deviceId=1")
    with pytest.raises(BadRequest) as caught:
        query_parameters(request)
    assert caught.value.message == "local_id in the query string is not percent-encoded UTF-8"


def test_every_parameter_of_an_upload_has_its_header() -> None:
    assert len(HEADER_OF) == len(PARAMETERS)
