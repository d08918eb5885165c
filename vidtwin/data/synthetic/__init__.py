"""Clips that are drawn, not read: moving shapes and sprites."""
