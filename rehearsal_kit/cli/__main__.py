"""Entry point of `python -m rehearsal_kit.cli`."""

import sys

from rehearsal_kit.cli.main import main

sys.exit(main())
