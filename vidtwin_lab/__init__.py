"""The workshop around the two libraries: runs, language models, evaluation, the command."""

import sys
from importlib.util import find_spec

# A plain `pip install vidtwin` is the autoencoder alone.
_missing = [
    name for name in ("yaml", "accelerate", "transformers", "av") if find_spec(name) is None
]
if _missing:
    print(
        f"error: the scripts need more than the core ({', '.join(_missing)} missing): "
        "pip install 'vidtwin[all]'",
        file=sys.stderr,
    )
    sys.exit(2)
