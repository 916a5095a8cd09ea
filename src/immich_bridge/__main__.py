"""`python -m immich_bridge`."""

import sys

from immich_bridge.cli import main

sys.exit(main())
