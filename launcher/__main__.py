"""``python -m launcher`` is ``rmpi-run``."""

import sys

from launcher.cli import main

sys.exit(main())
