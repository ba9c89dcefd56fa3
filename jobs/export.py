"""Model → outside checkpoint: python jobs/export.py CONFIG [--set a.b=value] [--dry-run] [--json] [--no-resume]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
