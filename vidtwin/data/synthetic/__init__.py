"""Clips that are drawn, not read: moving shapes, sprites and simulated bodies."""
