"""The checks of tools/reliability.py, a module for each kind, and what they are given."""
