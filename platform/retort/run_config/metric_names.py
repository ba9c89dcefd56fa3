"""Names of metrics in run files, checked against the one table of them."""

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import AfterValidator

from retort.errors import ConfigError
from retort.evaluation.metrics import COMPARABLE, OBJECTIVES, Metric, find_metric


def _one_of(among: Mapping[str, Metric]) -> Callable[[str], str]:
    def check(name: str) -> str:
        try:
            return find_metric(name, among).name
        except ConfigError as error:
            raise ValueError(str(error)) from None

    return check


ObjectiveName = Annotated[str, AfterValidator(_one_of(OBJECTIVES))]
"""What a sweep may search by."""
ComparableName = Annotated[str, AfterValidator(_one_of(COMPARABLE))]
"""What two systems may be compared by."""
