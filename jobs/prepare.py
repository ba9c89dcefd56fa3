"""Corpus → token set: python jobs/prepare.py CONFIG [--set a.b=value] [--dry-run] [--json] [--no-resume]."""

import sys

from retort.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
