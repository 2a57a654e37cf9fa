"""`python -m mcdrop` is the command `mcdrop`."""

import sys

from mcdrop.cli import main

sys.exit(main())
