"""The small mechanisms."""
