"""Robot data in LeRobot's format: videos, tasks, actions and states.

config says which camera and columns, dataset reads versions 2 and 3 of the format.
"""
