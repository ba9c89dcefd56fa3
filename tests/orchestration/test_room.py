"""Whether a job fits into a cluster, and what a person hears while it does not. Without a Ray."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from retort.errors import HeadLostError, NodeLostError, ResourceError
from retort.orchestration.demand import Demand, Node, room
from retort.orchestration.room import Patience, wait_for_room
from retort.orchestration.shared_place import answer, read_word
from retort.orchestration.watch import HeadListener, Heard, View, Watch, run_beside
from retort.run_config import PoolConfig, WorkersConfig
from tests.orchestration.tiny_runs import Lines
from tests.patience import comes

AT_ONCE = Patience(line_every_s=0.0, poll_s=0.001)


def node(number: int, cpus: float, gpus: float = 0.0, *, alive: bool = True, reason: str = "") -> Node:
    return Node(f"10.0.0.{number} (0{number})", f"0{number}", alive, cpus, gpus, reason)


def training(count: int, *, cpus: float = 1.0, gpus: float = 0.0, wait_s: float = 0.0) -> Demand:
    tree = {"num_workers": count, "cpus_per_worker": cpus, "wait_for_nodes_s": wait_s, "use_gpu": gpus > 0}
    return Demand.of_training(WorkersConfig.model_validate({**tree, "gpus_per_worker": gpus or 1.0}))


def pool(size: int, *, cpus: float = 1.0, gpus: float = 0.0, wait_s: float = 0.0) -> Demand:
    tree = {"size": size, "cpus_per_worker": cpus, "gpus_per_worker": gpus, "wait_for_nodes_s": wait_s}
    return Demand.of_pool(PoolConfig.model_validate(tree))


def always(*nodes: Node) -> Callable[[], Sequence[Node]]:
    return lambda: nodes


@pytest.mark.parametrize(
    ("nodes", "demand", "fits"),
    [
        ([node(1, 4)], training(4), 4),
        ([node(1, 4)], training(2), 2),
        ([node(1, 3), node(2, 3)], training(3, cpus=2.0), 2),  # 6 CPUs, of which no third pair is on one node
        ([node(1, 8, 1), node(2, 8)], training(2, gpus=1.0), 1),
        ([node(1, 8, 1)], pool(4, gpus=0.25), 4),
        ([node(1, 8), node(2, 8, alive=False)], training(16), 8),
        ([node(1, 1.2)], pool(12, cpus=0.1), 12),  # binary fractions
        ([], training(1), 0),
    ],
)
def test_workers_fit_on_single_nodes(nodes: list[Node], demand: Demand, fits: int) -> None:
    assert room(nodes, demand) == fits


def test_a_cluster_that_is_too_small_is_told_with_both_numbers() -> None:
    for can_grow in (True, False):
        demand = training(3, cpus=2.0)
        with pytest.raises(ResourceError) as raised:
            wait_for_room(always(node(1, 3), node(2, 3)), demand, Lines(), can_grow=can_grow)
        text = str(raised.value)
        assert raised.value.exit_code == 6
        assert (
            "needed are 3 training workers of 2 CPUs each, there are 2 nodes with 6 CPUs; 2 of at least 3 fit" in text
        )
        assert ("after 0 s" in text) == can_grow
    with pytest.raises(ResourceError, match="the largest node has 4 CPUs and 1 GPU, so not even one fits"):
        wait_for_room(always(node(1, 9), node(2, 4, 1)), pool(1, cpus=6, gpus=1), Lines(), can_grow=False)
    with pytest.raises(ResourceError, match="there are 0 nodes with 0 CPUs"):
        wait_for_room(always(), training(1), Lines(), can_grow=False)


def test_a_ray_of_this_machine_is_not_waited_for() -> None:
    looked: list[int] = []
    with pytest.raises(ResourceError):
        wait_for_room(lambda: looked.append(1) or [node(1, 1)], training(2, wait_s=600), Lines(), can_grow=False)
    assert looked == [1]


def test_a_pool_begins_with_what_fits_and_says_so() -> None:
    lines = Lines()
    assert wait_for_room(always(node(1, 2)), pool(4), lines, can_grow=False) == (node(1, 2),)
    assert lines.lines == ["the cluster has room for 2 of 4 workers of 1 CPU each; it begins with those"]


def test_a_wait_is_told_until_the_nodes_come() -> None:
    growing = iter([[node(1, 1)], [node(1, 1)], [node(1, 1), node(2, 1)]])
    lines = Lines()
    found = wait_for_room(lambda: next(growing), training(2, wait_s=600), lines, can_grow=True, patience=AT_ONCE)
    assert found == [node(1, 1), node(2, 1)]
    assert len(lines.lines) == 2
    assert lines.lines[0] == (
        "waiting for nodes, 0 s of at most 600: needed are 2 training workers of 1 CPU each, there is 1 node with 1 CPU"
    )


def test_lines_come_as_often_as_is_said() -> None:
    lines = Lines()
    with pytest.raises(ResourceError, match="after"):
        wait_for_room(
            always(node(1, 1)), training(2, wait_s=0.05), lines, can_grow=True, patience=Patience(600.0, 0.001)
        )
    assert len(lines.lines) == 1


def watch(demand: Demand, lines: Lines, *nodes: Node, **options: object) -> Watch:
    settings: dict[str, object] = {"head_lost_after_s": 45.0, "patience": Patience(30.0), **options}
    return Watch(first=View(0.0, nodes), demand=demand, progress=lines, **settings)  # type: ignore[arg-type]


def test_a_lost_head_is_announced_and_then_told_as_what_it_is() -> None:
    lines = Lines()
    watching = watch(training(1), lines, node(1, 1))
    view = View(0.0, [node(1, 1)], silent_since=0.0)
    for now in (1.0, 9.0):
        watching.look(view, now)
    assert lines.lines == []
    for now in (11.0, 12.0, 22.0, 44.0):
        watching.look(view, now)
    assert [line.split(";")[0] for line in lines.lines] == [
        f"the head of the cluster has not answered for {n} s" for n in (11, 22, 44)
    ]
    with pytest.raises(HeadLostError, match=r"for 45 s, so it is lost.*start the cluster") as end:
        watching.look(view, 45.0)
    assert end.value.exit_code == 8


def test_a_head_that_comes_back_is_forgiven() -> None:
    lines = Lines()
    watching = watch(training(1), lines, node(1, 1))
    for now in (0.0, 40.0, 80.0, 120.0):
        watching.look(View(now, [node(1, 1)], silent_since=now), now + 39.0)
        watching.look(View(now, [node(1, 1)]), now + 39.5)
    told = "the head of the cluster has not answered for 39 s; it is given up after 45 s"
    assert lines.lines == [told] * 4, "each silence by itself"


def test_a_head_that_is_slow_to_answer_is_not_a_lost_one() -> None:
    lines = Lines()
    watch(training(1), lines, node(1, 1)).look(View(0.0, [node(1, 1)]), 1e6)
    assert lines.lines == []


def test_a_head_is_known_by_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray every question fails, which tells nothing; a port that is closed tells."""
    monkeypatch.setattr("retort.orchestration.watch.ask_head", lambda: {}["no Ray"])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        listener = HeadListener(View(0.0, [node(1, 1)]), f"127.0.0.1:{server.getsockname()[1]}", every_s=0.01)
        time.sleep(0.3)
        assert listener.view == View(0.0, [node(1, 1)])
    assert comes(lambda: listener.view.silent_since is not None)
    listener.close()


def test_a_lost_node_is_told_once_and_ends_the_job_only_if_it_is_not_replaced() -> None:
    lines = Lines()
    watching = watch(training(2, wait_s=100), lines, node(1, 1), node(2, 1), node(9, 1, alive=False))
    gone = [node(1, 1), node(2, 1, alive=False, reason="health check failed"), node(9, 1, alive=False)]
    watching.look(View(10.0, gone), 10.0)
    watching.look(View(20.0, gone), 20.0)
    assert lines.lines == [
        "node 10.0.0.2 (02) is lost (health check failed); what ran there starts again from what is committed, as soon "
        "as there is room: there is 1 node with 1 CPU"
    ]
    watching.look(View(45.0, gone), 45.0)
    assert lines.lines[1:] == [
        "waiting for nodes, 35 s of at most 100: needed are 2 training workers of 1 CPU each, "
        "there is 1 node with 1 CPU"
    ]
    watching.look(View(50.0, [*gone, node(3, 1)]), 50.0)  # a replacement: the wait begins anew
    watching.look(View(60.0, gone), 60.0)
    watching.look(View(159.0, gone), 159.0)
    with pytest.raises(NodeLostError, match=r"node 10.0.0.2 \(02\) is lost and not replaced.*too small") as end:
        watching.look(View(161.0, gone), 161.0)
    assert end.value.exit_code == 9


def test_a_node_that_is_to_be_taken_away_is_told_and_passed_on_once() -> None:
    lines, told = Lines(), []
    watching = watch(training(1), lines, node(1, 1), on_drain=told.append)
    for now in (1.0, 3.0):
        watching.look(View(now, [node(1, 1)], draining={"01": 0}), now)
    assert told == lines.lines == ["node 10.0.0.1 (01) is to be taken away"]


def test_silence_is_told_and_news_ends_it() -> None:
    lines = Lines()
    heard = Heard(Lines())
    heard.last = 0.0
    watching = watch(pool(2), lines, node(1, 2), heard=heard)
    for now in itertools.chain(range(1, 30), (31, 40, 62)):
        watching.look(View(float(now), [node(1, 2)], free_cpus=2.0), float(now))
    assert lines.lines == [
        f"no news of the workers for {s} s: needed are 2 workers of 1 CPU each, there is 1 node with 2 CPUs, "
        "of which 2 CPUs are free"
        for s in (31, 62)
    ]
    heard.last = 70.0
    watching.look(View(95.0, [node(1, 2)]), 95.0)
    assert len(lines.lines) == 2
    heard.update(0, 19, "measuring speed")  # which says nothing until it is done
    watching.look(View(heard.last + 30.0, [node(1, 2)]), heard.last + 30.0)
    assert lines.lines[2].startswith('no news of the workers for 30 s, since "0/19 measuring speed": needed are')


def test_the_pauses_of_a_slow_machine_are_no_silence() -> None:
    times = iter([0.0, 100.0, 140.0, 185.0, 1500.0])  # the start, and four pieces of news
    lines, heard = Lines(), Heard(Lines(), clock=lambda: next(times))
    watching = watch(pool(2), lines, node(1, 2), heard=heard)

    def told_at(*seconds: float) -> list[bool]:
        found = []
        for now in seconds:
            before = len(lines.lines)
            watching.look(View(now, [node(1, 2)]), now)
            found.append(len(lines.lines) > before)
        return found

    assert told_at(29.0, 31.0, 62.0) == [False, True, True], "nothing is known yet"
    heard.log("loaded")
    assert told_at(129.0, 131.0) == [False, True], "how long the start takes says nothing of the pauses"
    heard.update(20, 1400, "")
    assert told_at(170.0, 184.9) == [False, False], "twice the 40 s before are not over"
    heard.update(40, 1400, "")
    assert told_at(274.0, 276.0, 300.0, 307.0) == [False, True, False, True], "twice the longest, then as ever"
    heard.update(60, 1400, "")  # after 1,315 s
    assert told_at(1799.0, 1801.0) == [False, True], "no silence is kept for more than ten lines' times"


def test_a_pool_whose_worker_is_gone_for_good_is_not_waited_for_for_ever() -> None:
    heard, two, one = Heard(Lines()), [node(1, 1), node(2, 1)], [node(1, 1), node(2, 1, alive=False)]
    heard.last = 0.0
    watching = watch(pool(4, wait_s=100), Lines(), *two, heard=heard)
    watching.look(View(900.0, two), 900.0)  # a long item on a whole cluster
    heard.last = 1000.0
    watching.look(View(1099.0, one), 1099.0)
    watching.look(View(1100.0, [*one, node(3, 1)]), 1100.0)  # replaced: the worker goes on there
    with pytest.raises(
        NodeLostError, match=r"for 101 s .* 1 of 2 workers have room.*run the same command again"
    ) as end:
        watching.look(View(1101.0, one), 1101.0)
    assert end.value.exit_code == 9
    # Workers of a training go on, or are started again, by themselves.
    training_on = watch(training(1, wait_s=1), Lines(), *two, heard=heard)
    training_on.look(View(2000.0, one), 2000.0)


def test_work_runs_beside_and_its_end_is_its_own() -> None:
    looked: list[int] = []
    assert run_beside(lambda: 7 if comes(lambda: len(looked) > 2) else 0, lambda: looked.append(1)) == 7
    with pytest.raises(KeyError, match="x"):
        run_beside(lambda: {}["x"], lambda: None)

    def look() -> None:
        raise HeadLostError("gone")

    over = threading.Event()
    with pytest.raises(HeadLostError):
        run_beside(over.wait, look)
    over.set()


def test_a_node_that_sees_another_folder_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "driver").write_text("nonce")
    assert answer(tmp_path / "shared", "01", "nonce") == ""
    assert read_word(tmp_path / "shared", "01", "nonce", writer="node 1") == ""
    assert "what the driver wrote there is not to be seen (No such file" in answer(tmp_path / "other", "02", "nonce")
    assert "what node 2 wrote there is not to be seen" in read_word(tmp_path / "shared", "02", "nonce", writer="node 2")
    assert "not what is read" in answer(tmp_path / "shared", "03", "another nonce")
    (tmp_path / "shared" / "04").mkdir()
    assert "cannot be written: Is a directory" in answer(tmp_path / "shared", "04", "nonce")
