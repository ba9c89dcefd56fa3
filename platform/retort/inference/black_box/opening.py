"""From a configuration to the black-box teacher that it names."""

from typing import Annotated, assert_never

from pydantic import Field

from retort.inference.black_box.callable import CallableConfig, CallableTeacher, callable_facts
from retort.inference.black_box.command import Command, CommandConfig, command_facts
from retort.inference.black_box.endpoint import EndpointTeacher, EndpointTeacherConfig, endpoint_facts
from retort.inference.black_box.hibari import Hibari, HibariConfig, hibari_facts
from retort.inference.black_box.teacher import BlackBox, TeacherFacts

BlackBoxConfig = Annotated[
    HibariConfig | CommandConfig | CallableConfig | EndpointTeacherConfig, Field(discriminator="kind")
]
LocalBlackBoxConfig = Annotated[HibariConfig | CommandConfig | CallableConfig, Field(discriminator="kind")]
"""Those that speak on this machine."""


def facts_of(config: HibariConfig | CommandConfig | CallableConfig | EndpointTeacherConfig) -> TeacherFacts:
    """What a teacher is, without loading or asking it.

    Raises:
        RetortError: it is not there, or not what it should be.
    """
    match config:
        case HibariConfig():
            return hibari_facts(config)
        case CommandConfig():
            return command_facts(config)
        case CallableConfig():
            return callable_facts(config)
        case EndpointTeacherConfig():
            return endpoint_facts(config)
        case _:
            assert_never(config)


def open_black_box(
    config: HibariConfig | CommandConfig | CallableConfig | EndpointTeacherConfig,
    *,
    key: str | None = None,
    share: float = 1.0,
) -> BlackBox:
    """Open a teacher.

    Args:
        config: which.
        key: of a service; whoever may read the environment gives it.
        share: of a service's requests a minute that go through this one.

    Raises:
        RetortError: it is not there, or not what it should be.
    """
    match config:
        case HibariConfig():
            return Hibari(config)
        case CommandConfig():
            return Command(config)
        case CallableConfig():
            return CallableTeacher(config)
        case EndpointTeacherConfig():
            return EndpointTeacher(config, key, share)
        case _:
            assert_never(config)
