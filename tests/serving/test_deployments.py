"""What Ray Serve is given: a deployment of its own for each model, whatever people call it."""

from pathlib import Path

import pytest

from retort.serving.app import build
from retort.serving.settings import ServeConfig, ServedModel

pytest.importorskip("ray.serve")
NAMES = ("tiny", "Tiny", "org/tiny", "org#tiny", "my tiny", "..", "t" * 256, "küçük")


def test_each_model_has_a_deployment_whose_name_is_part_of_no_path() -> None:
    config = ServeConfig(models=tuple(ServedModel(name=name, path=Path("m")) for name in NAMES), layout="apart")
    replicas = build(config)._bound_deployment.init_kwargs.values()
    names = [replica._bound_deployment.name for replica in replicas]
    assert names[0] == "model-tiny"
    assert len({name.casefold() for name in names}) == len(NAMES)
    assert not set("/\\# \0") & set("".join(names))
    assert max(map(len, names)) < 128
