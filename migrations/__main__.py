"""`python -m migrations` brings the database of the settings to the newest schema, and ends.

With `--down-to REVISION` it takes it back to an earlier one, which only a version that knows the newer ones can do.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from alembic.script import ScriptDirectory

from core.db import downgrade, upgrade
from core.errors import ConfigurationError
from core.settings import get_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Up, or down; what stands against it is said without a traceback."""
    revisions = sorted(step.revision for step in ScriptDirectory(str(Path(__file__).parent)).walk_revisions())
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    parser.add_argument("--down-to", choices=revisions, help="the newest revision of the version that is to run")
    revision = parser.parse_args(arguments).down_to
    try:
        url = get_settings().database_url
        if revision is None:
            upgrade(url)
        else:
            downgrade(url, revision)
    except ConfigurationError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
