"""For every test: no property test fails because the machine is busy."""

from hypothesis import settings

settings.register_profile("retort", deadline=None)
settings.load_profile("retort")
