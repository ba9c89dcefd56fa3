"""Garbage collection in a process that answers requests."""

import gc


def keep_everything() -> None:
    """Exempt what there is now from collection, for good.

    With the libraries of a replica loaded, looking through all objects takes 0.16 s, during which nobody is answered.
    """
    gc.collect()
    gc.freeze()
