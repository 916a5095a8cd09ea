"""Uploads that go on where they were cut off, in front of either wing."""
