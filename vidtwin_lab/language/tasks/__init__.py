"""Tasks that readers are compared on: GLUE, SQuAD, and linear probes of frozen states.

glue and squad know files and measures, reading makes rows of tokens, finetuning puts a head on a
reader, prepared puts these together, probing asks a frozen reader.
"""

from vidtwin.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
