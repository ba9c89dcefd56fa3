"""Labels, accelerators and memory of workers, as a real Ray understands them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retort.errors import ResourceError
from retort.orchestration.chunks import stream_through_actors
from retort.orchestration.cluster import ray_session
from retort.orchestration.demand import ACCELERATOR_LABEL, Demand
from retort.orchestration.room import wait_for_room
from retort.orchestration.watch import ask_head
from retort.orchestration.workplace import workplace
from retort.run_config import PoolConfig, WorkersConfig
from tests.orchestration.tiny_runs import Lines
from tests.patience import HANG_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def labelled() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, labels={"zone": "a"}, include_dashboard=False)
    try:
        with ray_session():  # the one that is there
            yield
    finally:
        ray.shutdown()


def pool(**changes: Any) -> PoolConfig:
    return PoolConfig.model_validate({"size": 2, "wait_for_nodes_s": 0, **changes})


@pytest.mark.usefixtures("labelled")
class TestOnRay:
    def test_workers_run_where_their_labels_are_and_memory_is_set_aside(self, tmp_path: Path) -> None:
        given = pool(labels={"zone": "a"}, memory_gib_per_worker=0.1)
        demand = Demand.of_pool(given)

        def make() -> Any:
            def call(item: dict[str, Any]) -> list[Any]:
                import ray

                return [ray.get_runtime_context().get_assigned_resources()["memory"] * item["number"]]

            return call

        with workplace(tmp_path, demand, Lines()):
            found = list(stream_through_actors([{"number": 1}, {"number": 1}], make, given))
        assert found == [demand.resources["memory"]] * 2
        import ray

        remote = ray.remote(**demand.options)(lambda: ray.get_runtime_context().get_node_labels()["zone"])
        assert ray.get(remote.remote(), timeout=HANG_S) == "a"

    @pytest.mark.parametrize(
        ("needs", "told"),
        [
            ({"labels": {"zone": "b"}}, "on nodes with zone=b.*no node has these labels"),
            ({"accelerator": "H100"}, f"on nodes with {ACCELERATOR_LABEL}=H100.*no node has these labels"),
            ({"memory_gib_per_worker": 1e6}, r"1e\+06 GiB each.*the largest node has 2 CPUs and [\d.]+ GiB, so not"),
        ],
    )
    def test_what_no_node_has_is_told_before_the_work(self, needs: dict[str, Any], told: str) -> None:
        for demand in (
            Demand.of_pool(pool(**needs)),
            Demand.of_training(WorkersConfig.model_validate({"num_workers": 2, "wait_for_nodes_s": 0, **needs})),
        ):
            with pytest.raises(ResourceError, match=told) as error:
                wait_for_room(lambda: ask_head().nodes, demand, Lines(), can_grow=False)
            assert error.value.exit_code == 6
