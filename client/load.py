"""Load a bundle: `load(folder)` in Python, or `python -m client.load FOLDER` to check one.

The only module of the client that needs the engine; nothing else imports it.
"""

import json
import sys
from pathlib import Path

from core.engine.export.bundle import load_bundle as load
from core.engine.verify import inspect
from core.errors import NeuroPruneError

__all__ = ["load"]


def main() -> None:
    """Print what the bundle holds as JSON; a broken one ends in one line and exit code 1."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m client.load FOLDER")
    try:
        print(json.dumps(inspect(Path(sys.argv[1]))))
    except NeuroPruneError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
