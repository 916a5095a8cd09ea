"""A stand-in for the Immich photo server, as v3.1.0 or as v2.7.5, for tests and for the demo.

It answers as those releases were recorded to answer, down to the order of the headers and to
what comes before and what after the body, and it can be told to misbehave.
"""

from .assets import Album, Asset
from .behaviour import Behaviour
from .journal import SeenRequest
from .server import StandIn

__all__ = ["Album", "Asset", "Behaviour", "SeenRequest", "StandIn"]
