"""Clips in tar shards: their config, index, data set, and how they are made.

Import from the modules: config needs no torch.
"""
