"""``python -m speechbrain_spgm``, the command ``spgm``."""

import sys

from speechbrain_spgm.cli import main

if __name__ == "__main__":
    sys.exit(main())
