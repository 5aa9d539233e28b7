"""`python -m edgec.compiler` is `edgec`."""

import sys

from edgec.compiler.cli.main import main

sys.exit(main())
