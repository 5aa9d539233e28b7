"""Run `python -m edgec.compiler` as `edgec`."""

import sys

from edgec.compiler.cli.main import main

sys.exit(main())
