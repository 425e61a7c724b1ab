import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas_attn import cluster
from nas_attn import pool as pool_module
from nas_attn.errors import InputError, PoolError
from nas_attn.pool import InlinePool, RayPool, open_pool
from nas_attn.porters import Porters
from nas_attn.work import RESULT_LIMIT, Done, Pool, Task

HERE = Path(__file__).parent
TARGET = "pool_targets:serve"


def run_all(pool: Pool, *tasks: Task) -> dict[str, Done]:
    """Everything that is outstanding, by key."""
    for task in tasks:
        pool.submit(task)
    done: dict[str, Done] = {}
    while batch := pool.wait(60):
        done |= {item.key: item for item in batch}
    return done


def result(done: Done) -> dict[str, float]:
    """The JSON of a task that must not be lost."""
    assert done.lost is None
    assert done.result is not None
    return json.loads(done.result)


def task(key: str, kind: str, exclusive: bool = False, deadline_s: float | None = None, **data: object) -> Task:
    return Task(key, kind, json.dumps(data), exclusive, deadline_s)


# -- in the process --------------------------------------------------------------------------------------------------------------------


def test_inline_runs_one_task_a_wait_in_order() -> None:
    with InlinePool(TARGET) as pool:
        assert pool.slots == 1
        assert pool.wait(None) == []
        pool.submit(task("a", "echo", x=1))
        pool.submit(task("b", "echo", exclusive=True, deadline_s=0.001, x=2))
        first, second = pool.wait(None), pool.wait(0)
        assert [d.key for d in first + second] == ["a", "b"]
        assert result(second[0])["echo"] == {"x": 2}
        assert result(second[0])["pid"] == os.getpid()
        assert pool.wait(None) == []


@pytest.mark.parametrize(
    ("kind", "data", "lost"),
    [
        ("fail", {"text": "no such layer"}, "LookupError: no such layer"),
        ("exit", {}, "SystemExit: 3"),
        ("raw", {"text": "NaN"}, "ValueError: a result must hold finite numbers only, but it holds NaN"),
        ("raw", {"text": "{"}, "JSONDecodeError: "),
        ("raw", {"text": "1", "times": RESULT_LIMIT + 1}, "ValueError: a result must have at most"),
        ("unknown", {}, "KeyError: 'unknown'"),
    ],
)
def test_a_failing_target_is_a_lost_task(kind: str, data: dict[str, object], lost: str) -> None:
    with InlinePool(TARGET) as pool:
        done = run_all(pool, Task("a", kind, json.dumps(data)))["a"]
    assert done.result is None
    assert done.lost is not None
    assert done.lost.startswith(lost)


def test_a_result_that_is_no_text_is_lost() -> None:
    with InlinePool("pool_targets:not_text") as pool:
        assert run_all(pool, task("a", "any"))["a"].lost == "TypeError: a result must be JSON text, but it is a int"


def test_ctrl_c_passes_through_an_inline_task_and_keeps_it() -> None:
    with InlinePool(TARGET) as pool:
        pool.submit(task("a", "interrupt"))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                pool.wait(None)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:serve", "ModuleNotFoundError"),
        ("pool_targets:absent", "AttributeError"),
        ("pool_targets", "AttributeError"),
        (":serve", "ValueError"),
        ("pool_targets:not_callable", "must name a function, but it is a int"),
    ],
)
def test_a_target_must_be_an_importable_function(target: str, message: str) -> None:
    with pytest.raises(PoolError, match=message):
        InlinePool(target)


def test_a_closed_pool_refuses_work() -> None:
    pool = InlinePool(TARGET)
    pool.submit(task("a", "echo"))
    pool.close()
    pool.close()
    with pytest.raises(PoolError, match="closed"):
        pool.wait(0)
    with pytest.raises(PoolError, match="closed"):
        pool.submit(task("b", "echo"))


def test_open_pool_knows_two_kinds() -> None:
    with open_pool("inline", TARGET) as pool:
        assert isinstance(pool, InlinePool)
    with pytest.raises(InputError, match="Did you mean 'inline'"):
        open_pool("inlien", TARGET)
    with pytest.raises(InputError, match="workers >= 1"):
        open_pool("ray", TARGET, workers=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_workers": 2}, "needs `--address`"),
        ({"max_workers": 2, "workers": 2, "address": "127.0.0.1:1"}, "must not be given beside it"),
        ({"max_workers": 0, "address": "127.0.0.1:1"}, "max_workers >= 1"),
        ({"cpus_per_worker": -1}, "cpus_per_worker > 0"),
    ],
)
def test_impossible_pools_are_refused_before_any_ray(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_pool("ray", TARGET, **options)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan")])
def test_a_deadline_must_lie_ahead(deadline_s: float) -> None:
    with pytest.raises(InputError, match="deadline_s > 0"):
        Task("a", "echo", "{}", deadline_s=deadline_s)


def test_importing_the_pool_does_not_import_ray() -> None:
    code = "import sys, nas_attn.pool; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- on Ray ----------------------------------------------------------------------------------------------------------------------------


def environment_of_ours() -> dict[str, str]:
    """All variables but the one in which pytest tells which test runs."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    """Two workers on a machine of three CPUs (the third is for a driver that joins). Its end must leave nothing behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("RAY_AUTH_TOKEN", "a token of the user's that is not for this cluster")
        patch.setattr(pool_module, "available_cpus", lambda: 3)
        environment, handlers = environment_of_ours(), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        with RayPool(TARGET, workers=2, threads=1) as pool:
            folder = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
            yield pool
            family = cluster._family(folder)
            assert len(family) >= 4  # control store, raylet, two workers
        assert not [pid for pid, birth in family.items() if cluster._process(pid)[1:] == (birth, True)]
        assert not folder.exists()
        assert environment_of_ours() == environment
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
        pool.close()
        with pytest.raises(PoolError, match="closed"):
            pool.submit(task("late", "echo"))


def await_file(path: Path) -> str:
    """The text of a file that a worker is about to write."""
    end = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text()


def two_workers(pool: RayPool) -> set[float]:
    """The processes of both workers, once both are there (again)."""
    end, pids = time.monotonic() + 60, set[float]()
    while len(pids) != 2:
        assert time.monotonic() < end
        pids = {result(done)["pid"] for done in run_all(pool, *(task(str(i), "sleep", seconds=0.3) for i in range(2))).values()}
    return pids


def test_ray_round_trip_in_warm_workers(pool: RayPool) -> None:
    assert pool.slots == 2
    assert pool.wait(None) == []
    done = run_all(pool, *(task(str(i), "echo", x=i) for i in range(6)))
    answers = {key: result(item) for key, item in done.items()}
    assert {key: answer["echo"] for key, answer in answers.items()} == {str(i): {"x": i} for i in range(6)}
    pids = [answer["pid"] for answer in answers.values()]
    assert os.getpid() not in pids
    assert max(answer["calls"] for answer in answers.values()) >= 3  # state outlives a task
    again = result(run_all(pool, task("again", "echo"))["again"])
    assert again["pid"] in pids
    assert again["calls"] > 1


def test_a_sigterm_that_a_library_swallowed_still_ends_the_wait(pool: RayPool) -> None:
    pool.submit(task("slow", "sleep", seconds=20))
    swallowed = threading.Timer(0.5, cluster._told_to_end.set)  # what the handler leaves when its exception is lost
    swallowed.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pool.wait(None)
    assert time.monotonic() - start < 15
    assert [item.key for item in pool.wait(None)] == ["slow"]


def test_workers_are_quiet_and_single_threaded(pool: RayPool) -> None:
    expected = {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "RAY_USAGE_STATS_ENABLED": "0"}
    answer = result(run_all(pool, task("a", "environment", names=list(expected)))["a"])
    assert {name: answer[name] for name in expected} == expected


def test_wait_ends_with_its_timeout(pool: RayPool) -> None:
    pool.submit(task("a", "sleep", seconds=0.5))
    begin = time.monotonic()
    assert pool.wait(0.1) == []
    assert 0.1 <= time.monotonic() - begin < 0.4
    assert result(pool.wait(None)[0])["pid"]


@pytest.mark.usefixtures("pool")
def test_the_token_and_the_folder_are_private() -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert any((token.parent / "ray").glob("session_*/sockets"))


def test_a_killed_worker_costs_its_own_task_only(pool: RayPool, tmp_path: Path) -> None:
    victim, other = tmp_path / "victim", tmp_path / "other"
    pool.submit(task("victim", "sleep", seconds=60, pid_file=str(victim)))
    pool.submit(task("other", "sleep", seconds=1, pid_file=str(other)))
    pool.submit(task("next", "echo"))
    other_pid = int(await_file(other))
    os.kill(int(await_file(victim)), signal.SIGKILL)
    done = run_all(pool)
    assert done["victim"].result is None
    assert "worker died" in str(done["victim"].lost)
    assert done["victim"].cause == "crash"
    assert result(done["other"])["pid"] == other_pid
    assert result(done["next"])["echo"] == {}
    assert other_pid in two_workers(pool)


def test_a_deadline_kills_and_replaces(pool: RayPool, tmp_path: Path) -> None:
    late = tmp_path / "late"
    begin = time.monotonic()
    done = run_all(pool, task("late", "sleep", deadline_s=0.7, seconds=60, pid_file=str(late)), task("free", "echo", deadline_s=30))
    assert done["late"] == Done("late", None, "deadline of 0.7 s passed", "deadline")
    assert result(done["free"])["echo"] == {}
    assert time.monotonic() - begin < 30
    assert len(two_workers(pool)) == 2
    assert not Path("/proc", late.read_text()).exists()


def test_errors_and_ray_s_interrupts_are_lost_tasks(pool: RayPool) -> None:
    done = run_all(
        pool, task("fail", "fail", text="no such layer"), task("exit", "exit"), task("interrupt", "interrupt"), task("ok", "echo")
    )
    assert done["fail"].lost == "LookupError: no such layer"
    assert (done["exit"].lost, done["exit"].cause) == ("SystemExit: 3", "answer")
    assert "worker died" in str(done["interrupt"].lost)
    assert result(done["ok"])["echo"] == {}


def test_exclusive_tasks_run_alone_and_the_others_side_by_side(pool: RayPool) -> None:
    plan = [False, False, True, False, False, False, True, True, False, False]
    done = run_all(pool, *(task(str(i), "sleep", exclusive=alone, seconds=0.2) for i, alone in enumerate(plan)))
    spans = [(result(done[str(i)])["begin"], result(done[str(i)])["end"]) for i in range(len(plan))]
    pairs = [(i, j) for i in range(len(plan)) for j in range(i)]
    overlapping = [(i, j) for i, j in pairs if spans[i][0] < spans[j][1] and spans[j][0] < spans[i][1]]
    assert not [pair for pair in overlapping if plan[pair[0]] or plan[pair[1]]]
    assert overlapping
    for i, j in pairs:  # first come, first served: nobody overtakes an exclusive task, nor does it overtake
        if plan[i] or plan[j]:
            assert spans[j][1] <= spans[i][0]


def stranger(tmp_path: Path, **variables: str) -> dict[str, str]:
    """The environment of another user's driver, who has the cluster's certificate, or no call would reach it, but not its token."""
    certified = ("RAY_USE_TLS", "RAY_TLS_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or name.startswith(certified)}
    return clean | {"HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "2"} | variables


@pytest.mark.slow
def test_a_driver_without_the_token_cannot_connect(pool: RayPool, tmp_path: Path) -> None:
    code = "import ray, sys; ray.init(address=sys.argv[1]); print('connected', ray.cluster_resources())"
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    attempts = {
        "right": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
        "none": {},
        "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token[::-1]},
        "empty": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ""},
    }
    drivers = {
        name: subprocess.Popen(
            [sys.executable, "-c", code, pool.address],
            env=stranger(tmp_path, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, variables in attempts.items()
    }
    outputs = {name: driver.communicate(timeout=120)[0] for name, driver in drivers.items()}
    assert {name for name, text in outputs.items() if "connected" in text.splitlines()[-1]} == {"right"}
    assert {name for name, driver in drivers.items() if driver.returncode == 0} == {"right"}
    assert all("uthentication" in outputs[name] for name in ("none", "wrong", "empty"))
    assert result(run_all(pool, task("alive", "echo"))["alive"])["echo"] == {}


JOIN = """
import sys
from nas_attn import pool, work
from nas_attn.errors import PoolError
address, folder = sys.argv[1:]
with pool.RayPool("pool_targets:serve", workers=1, threads=1, address=address) as joined:
    joined.submit(work.Task("a", "echo", "{}"))
    print(joined.slots, joined.wait(60)[0].lost)
absent, crowded = {"target": "pool_targets:absent", "threads": 1}, {"target": "pool_targets:serve", "cpus_per_worker": 2}
for wrong in (absent, crowded):
    pool.START_TIMEOUT_S = 10 if "threads" in wrong else 2
    try:
        pool.RayPool(address=address, workers=1, **wrong)
    except PoolError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_driver_with_the_token_joins_and_leaves_the_cluster_running(pool: RayPool, tmp_path: Path) -> None:
    variables = stranger(tmp_path, RAY_AUTH_TOKEN_PATH=os.environ["RAY_AUTH_TOKEN_PATH"])
    command = [sys.executable, "-c", JOIN, pool.address, str(tmp_path)]
    driver = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in driver.stdout.splitlines() if "(raylet)" not in line]
    assert driver.returncode == 0, driver.stderr
    assert lines[0] == "1 None"
    assert "could not be started: `pool_targets:absent` must name an importable" in lines[1]
    assert "no answer within 2 s" in lines[2]
    assert len(two_workers(pool)) == 2


def test_a_second_pool_in_one_process_is_refused(pool: RayPool) -> None:
    with pytest.raises(PoolError, match=r"ray\.shutdown"):
        RayPool(TARGET)
    assert result(run_all(pool, task("a", "echo"))["a"])["echo"] == {}


@pytest.mark.slow
def test_a_stopped_worker_is_killed_at_its_deadline(pool: RayPool) -> None:
    """A process that hears nothing any more. Ray asks first and kills after five seconds."""
    done = run_all(pool, task("deaf", "stop", deadline_s=0.5), task("next", "echo", exclusive=True))
    assert done["deaf"].lost == "deadline of 0.5 s passed"
    assert result(done["next"])["echo"] == {}


DRIVER = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a parent that ignores it hands that down
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
from pathlib import Path
from nas_attn import cluster, pool, work
with pool.RayPool("pool_targets:serve") as workers:
    folder = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
    workers.submit(work.Task("a", "sleep", '{"seconds": 60, "pid_file": "%s"}' % sys.argv[1]))
    workers.wait(1)
    print(folder, *cluster._family(folder), flush=True)
    workers.wait(None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_leaves_nothing_behind(tmp_path: Path, sent: int) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "pid")]
    environment = stranger(tmp_path, PYTHONPATH=str(HERE))
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as driver:
        assert driver.stdout is not None
        folder, *pids = driver.stdout.readline().split()
        worker = await_file(tmp_path / "pid")
        assert worker in pids
        for _ in range(3 if sent == signal.SIGINT else 1):  # an impatient user; a supervisor sends one SIGTERM
            with contextlib.suppress(ProcessLookupError):
                driver.send_signal(sent)
            time.sleep(0.3)
        assert driver.wait(60) == -signal.SIGINT  # as Python ends on a Ctrl-C that nobody catches
    assert not [pid for pid in pids if cluster._process(int(pid))[2]]
    assert not Path(folder).exists()


@pytest.mark.usefixtures("pool")
def test_what_a_dead_worker_has_kept_is_brought_to_the_study_and_its_folder_cleared(tmp_path: Path) -> None:
    import ray

    node, annex, study = ray.get_runtime_context().get_node_id(), tmp_path / "annex", tmp_path / "study"
    for name in ("trials/d/j/1/checkpoint.pt", "trials/d/j/1/weights.pt", "base/checkpoint.pt"):
        (annex / name).parent.mkdir(parents=True, exist_ok=True)
        (annex / name).write_text(name)
    study.mkdir()
    porters = Porters(study)
    porters.post(node)
    porters.ask(node, str(annex))
    end = time.monotonic() + 30
    while not (study / "trials").exists() and time.monotonic() < end:
        porters.collect()
        time.sleep(0.05)
    brought = {str(file.relative_to(study)): file.read_text() for file in study.rglob("*") if file.is_file()}
    assert brought == {name: name for name in ("trials/d/j/1/checkpoint.pt", "base/checkpoint.pt")}
    (study / "base/checkpoint.pt").unlink()
    porters.inherit(node, str(annex))
    porters.clear(node, str(annex))
    assert (study / "base/checkpoint.pt").is_file()
    while annex.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not annex.exists()
    porters.inherit("0" * 56, str(annex))  # a node that never had one
    porters.close()
