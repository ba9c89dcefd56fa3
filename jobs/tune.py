"""Sweep of trials → Pareto front: python jobs/tune.py CONFIG [--set a.b=value] [--dry-run] [--json] [--no-resume]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
