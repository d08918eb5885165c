"""The workshop around the two libraries: runs, language models, evaluation, the command."""
