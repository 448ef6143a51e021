"""Training of the networks, run from a checkout: `python -m train --help`."""
