"""Common ground of both wings: what every request and every answer goes through."""
