"""The page of ``spgm web`` as a Space or in a container; the port is PORT or 7860."""

import os
import sys

from speechbrain_spgm.cli import main

if __name__ == "__main__":
    port = os.environ.get("PORT", "7860")
    sys.exit(main(["web", "--host", "0.0.0.0", "--port", port, "--max-minutes", "5"]))
