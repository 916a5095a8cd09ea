"""immich-bridge: raw photo uploads from iOS background jobs, streamed into Immich."""

__version__ = "0.1.0"
