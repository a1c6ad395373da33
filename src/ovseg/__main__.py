"""`python -m ovseg` is `ovs`."""

import sys

from .cli import main

sys.exit(main())
