"""The numbers of phones; nothing here needs torch, so that a bundle without it reads texts by the same code."""

from collections.abc import Sequence

PADDING, PAUSE = 0, 1
"""Numbers of what is no phone; phone ``n`` of an inventory is ``n + 2``."""


def phone_numbers(phones: Sequence[str], inventory: Sequence[str]) -> list[int]:
    """The numbers of phones, of which an empty string is a pause.

    Raises:
        ValueError: one is not in the inventory.
    """
    number_of = {"": PAUSE, **{phone: number for number, phone in enumerate(inventory, start=PAUSE + 1)}}
    unknown = sorted({phone for phone in phones if phone not in number_of})
    if unknown:
        raise ValueError(f"unknown phones: {' '.join(unknown)}")
    return [number_of[phone] for phone in phones]
