"""`python -m hf_geossl.cli`: the command `geossl`, for launchers that start a module."""

import sys

from hf_geossl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
