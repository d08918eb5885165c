"""Judges of what a video shows: of pixels for the moving shapes, or trained classifiers."""
