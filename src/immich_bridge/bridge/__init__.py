"""The bridge wing: from the phone to Immich."""
