"""The command line, as `python -m rehearsal_kit.cli`."""

import sys

from rehearsal_kit.cli.main import main

if __name__ == "__main__":  # a process that is spawned may import it
    sys.exit(main())
