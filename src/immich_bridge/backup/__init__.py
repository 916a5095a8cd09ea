"""The backup wing: from the phone to disk."""
