"""``python -m sfda.cli``, as `torchrun` starts it."""

import sys

from sfda.cli.main import main

sys.exit(main())
