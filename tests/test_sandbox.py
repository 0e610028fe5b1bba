"""The sandbox against real children, real limits and the real kernel: nothing is replaced."""

import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from fp_audit.errors import (
    SandboxCrash,
    SandboxMemory,
    SandboxTimeout,
    UnavailableTarget,
    UnsafeModel,
    UnsupportedModel,
)
from fp_audit.sandbox import Confinement, Limits, Sandbox, confinement
from fp_audit.sandbox import _seccomp as seccomp

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
MIB = 1 << 20
SMALL = Limits(memory=256 * MIB, cpu_seconds=20, wall_seconds=20, open_files=64, file_bytes=4 * MIB, answer_bytes=MIB)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox confines processes on Linux only")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(SMALL, path=[TESTS]) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def held() -> Confinement:
    return confinement()


@pytest.fixture
def call(sandbox):
    """Call a task once in a child of its own."""

    def call(task, request=None, *, readable=(), gpu=False, preload=(), **options):
        with sandbox.child(f"sandbox_tasks:{task}", preload, readable=readable, gpu=gpu) as child:
            return child.call(request or {}, **options)

    return call


def needs(held, **wanted):
    """Skip where the kernel lacks what the test is about."""
    for name, value in wanted.items():
        has = getattr(held, name)
        if value != has and value not in (has if isinstance(has, tuple) else ()):
            pytest.skip(f"{name} is {has} on this machine, the test needs {value}")


def processes():
    """Map every live or dead process id to its parent and state."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            found[int(entry.name)] = (int(parent), state)
    return found


def descendants(root):
    table = processes()
    family = {root}
    for _ in table:
        family |= {pid for pid, (parent, _) in table.items() if parent in family}
    return {pid: table[pid] for pid in family - {root} if pid in table}


def soon(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


class TestAnswers:
    def test_values_survive_exactly(self, call):
        request = {
            "floats": [0.1, 1e-310, -0.0, math.inf, -math.inf],
            "text": "ü\udcff\x00",
            "none": None,
            "big": 2**80,
        }
        answer = call("echo", request)
        assert answer == request
        assert math.copysign(1, answer["floats"][2]) == -1

    def test_nan_survives(self, call):
        assert math.isnan(call("echo", {"value": math.nan})["value"])

    def test_state_lives_between_calls(self, sandbox):
        with sandbox.child("sandbox_tasks:counter", ()) as child:
            assert [child.call({"add": n})["total"] for n in (1, 2, 3)] == [1, 3, 6]

    def test_children_share_no_state(self, sandbox):
        tasks = [sandbox.child("sandbox_tasks:counter", ()) for _ in range(2)]
        with tasks[0] as first, tasks[1] as second:
            assert first.call({"add": 5})["total"] == 5
            assert second.call({"add": 7})["total"] == 7

    def test_request_that_is_not_json_is_a_bug_of_the_caller(self, call):
        with pytest.raises(TypeError):
            call("echo", {"value": object()})


class TestErrors:
    def test_error_of_ours_arrives_as_such_and_the_child_goes_on(self, sandbox):
        with sandbox.child("sandbox_tasks:unsupported", ()) as child:
            with pytest.raises(UnsupportedModel) as caught:
                child.call({})
            assert child.call({"healthy": True}) == {"healthy": True}
        text = str(caught.value)
        assert type(caught.value) is UnsupportedModel
        assert text.startswith("no adapter [31m for this xxx")
        assert text.isprintable()
        assert len(text) <= 1000

    def test_error_of_ours_in_the_factory(self, call):
        with pytest.raises(UnsafeModel, match="will not even be opened"):
            call("unsafe_at_once")

    def test_child_cannot_speak_for_the_sandbox(self, call):
        with pytest.raises(SandboxCrash, match="neither a result nor an error"):
            call("pretended_timeout")

    @pytest.mark.parametrize(
        ("task", "message"),
        [
            ("value_error", r"^ValueError: first line second line at sandbox_tasks\.py:\d+$"),
            ("end_of_file", "^EOFError: a truncated file at"),
            ("not_json", "^TypeError: Object of type object is not JSON serializable"),
            ("not_a_dict", "neither a result nor an error"),
            ("no_such_task", "^AttributeError: .*no_such_task"),
            ("system_exit", "ended by itself with status 70"),
            ("leave", "^ended by itself with status 3$"),
            ("segfault", "^was killed by SIGSEGV"),
            ("abort", r"^was killed by SIGABRT: what\(\): bad tensor$"),
        ],
    )
    def test_crash_is_one_line(self, call, task, message):
        with pytest.raises(SandboxCrash, match=message) as caught:
            call(task)
        assert str(caught.value).isprintable()

    def test_child_that_crashed_is_not_used_again(self, sandbox):
        with sandbox.child("sandbox_tasks:value_error", ()) as child:
            with pytest.raises(SandboxCrash, match="ValueError"):
                child.call({})
            with pytest.raises(SandboxCrash, match="has ended: ValueError"):
                child.call({})

    def test_killed_from_outside_or_by_the_kernel(self, call):
        with pytest.raises(SandboxMemory, match="out of memory"):
            call("suicide")

    def test_missing_readable_path(self, call, tmp_path):
        with pytest.raises(UnavailableTarget, match=r"absent\.onnx does not exist"):
            call("echo", readable=[tmp_path / "absent.onnx"])


class TestLimits:
    @pytest.mark.parametrize(("task", "library"), [("numpy_memory", "numpy"), ("torch_memory", "torch")])
    def test_memory(self, sandbox, task, library):
        with sandbox.child(f"sandbox_tasks:{task}", (library,)) as child:
            assert child.call({"bytes": 16 * MIB})["sum"] > 0
            with pytest.raises(SandboxMemory, match="more memory"):
                child.call({"bytes": 512 * MIB})

    def test_memory_limit_does_not_count_the_libraries(self, call):
        small, large = (call("memory_of", preload=preload)["limit"] for preload in ((), ("torch",)))
        assert large > small + 50 * MIB

    def test_memory_that_resource_limits_do_not_count(self, held, call):
        needs(held, processes="seccomp")
        with pytest.raises(SandboxMemory, match="Cannot allocate memory"):
            call("shared_memory", {"bytes": 512 * MIB})

    def test_bad_alloc_is_a_matter_of_memory(self, call):
        with pytest.raises(SandboxMemory, match="bad_alloc"):
            call("bad_alloc")

    @pytest.mark.parametrize("task", ["burn", "stubborn_burn"])
    def test_cpu_time(self, task):
        with (
            Sandbox(Limits(cpu_seconds=1), path=[TESTS]) as sandbox,
            sandbox.child(f"sandbox_tasks:{task}", ()) as child,
            pytest.raises(SandboxTimeout, match="more than 1 s of CPU time"),
        ):
            child.call({})

    def test_wall_time(self, sandbox):
        start = time.monotonic()
        with sandbox.child("sandbox_tasks:sleep", ()) as child:
            with pytest.raises(SandboxTimeout, match=r"no answer within 0\.3 s"):
                child.call({"seconds": 60}, wall_seconds=0.3)
            with pytest.raises(SandboxCrash, match="has ended"):
                child.call({"seconds": 0})
        assert time.monotonic() - start < 5

    def test_open_files(self, call):
        assert call("leaky", {"count": 40}) == {"open": 40}
        with pytest.raises(SandboxCrash, match="Too many open files"):
            call("leaky", {"count": 80})

    def test_file_size(self, call):
        with pytest.raises(SandboxCrash, match="File too large"):
            call("statement", {"code": "open('big', 'wb').write(b'x' * 5 * 2**20)"})

    def test_scratch_folder_as_a_whole(self, held, call):
        needs(held, scratch="tmpfs")
        code = "[open(str(n), 'wb').write(b'x' * 2**20) for n in range(9)]"
        with pytest.raises(SandboxCrash, match="No space left"):
            call("statement", {"code": code})

    @pytest.mark.parametrize("limit", ["memory", "cpu_seconds", "wall_seconds", "open_files", "answer_bytes"])
    def test_limits_are_positive(self, limit):
        with pytest.raises(ValueError, match=f"{limit} is 0"):
            Limits(**{limit: 0})


class TestProtocol:
    def test_giant_answer(self, call):
        assert len(call("giant", {"bytes": MIB - 100})["text"]) == MIB - 100
        with pytest.raises(SandboxCrash, match=r"a message of \d+ bytes, at most 1048576"):
            call("giant", {"bytes": MIB})

    @pytest.mark.parametrize(
        ("text", "length", "message"),
        [
            ("not json", None, "not JSON"),
            ('{"ok": 9' + "9" * 5000 + "}", None, "not JSON"),
            ("[1]", None, "not a JSON object"),
            ('{"ok": 1}', None, "neither a result nor an error"),
            ('{"error": "KeyboardInterrupt", "text": "x"}', None, "neither a result nor an error"),
            ('{"error": "UnsupportedModel"}', None, "neither a result nor an error"),
            ("{}", 2**63, "a message of 9223372036854775808 bytes"),
        ],
    )
    def test_garbage(self, call, text, length, message):
        with pytest.raises(SandboxCrash, match=message):
            call("raw", {"text": text, **({} if length is None else {"length": length})})

    def test_nesting_does_not_exhaust_the_parent(self, call):
        with pytest.raises(SandboxCrash, match="not JSON"):
            call("nested", {"depth": 200_000})

    def test_half_an_answer_times_out(self, call):
        with pytest.raises(SandboxTimeout):
            call("raw", {"text": '{"ok"', "length": 100}, wall_seconds=0.3)

    def test_request_that_is_never_read_times_out(self, sandbox):
        with sandbox.child("sandbox_tasks:never_reads", ()) as child, pytest.raises(SandboxTimeout):
            child.call({"text": "x" * 8 * MIB}, wall_seconds=0.3)

    def test_output_of_the_child_is_not_ours(self, call, capfd):
        assert call("chatter") == {"input": ""}
        assert capfd.readouterr() == ("", "")


class TestConfinement:
    @pytest.mark.parametrize("gpu", [False, True])
    @pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
    def test_no_connection(self, call, gpu, family):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            host = {"AF_INET": "127.0.0.1", "AF_INET6": "::ffff:127.0.0.1"}[family]
            code = f"socket.socket(socket.{family}).connect(('{host}', {port}))"
            assert "failed" in call("attempt", {"code": code}, gpu=gpu)
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listener.accept()

    def test_no_datagram(self, call):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
            listener.bind(("127.0.0.1", 0))
            with pytest.raises(SandboxCrash, match=r"^(PermissionError|OSError)"):
                call("udp", {"port": listener.getsockname()[1]})

    @pytest.mark.parametrize("gpu", [False, True])
    def test_no_unix_socket_of_the_user(self, held, call, tmp_path, gpu):
        needs(held, processes="seccomp")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "agent"))
            listener.listen()
            code = f"socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'agent')!r})"
            assert "failed" in call("attempt", {"code": code}, gpu=gpu, readable=[tmp_path])

    def test_reads_what_is_readable_and_nothing_else(self, held, call, tmp_path):
        needs(held, filesystem="landlock")
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_text("weights")
        (tmp_path / "token").write_text("hf_secret")
        (tmp_path / "model" / "link").symlink_to(tmp_path / "token")

        def read(path):
            code = f"open({str(path)!r}).read()"
            return call("attempt", {"code": code}, readable=[tmp_path / "model"])

        assert read(tmp_path / "model" / "weights") == {"value": "weights"}
        for path in (tmp_path / "token", tmp_path / "model" / "link", tmp_path / "model" / ".." / "token"):
            assert read(path)["failed"] == "PermissionError"
        for path in ("/", tmp_path):
            code = f"os.listdir({str(path)!r})"
            assert call("attempt", {"code": code})["failed"] == "PermissionError"

    def test_a_single_file_can_be_readable(self, call, tmp_path):
        (tmp_path / "m.onnx").write_text("graph")
        code = f"open({str(tmp_path / 'm.onnx')!r}).read()"
        assert call("attempt", {"code": code}, readable=[tmp_path / "m.onnx"]) == {"value": "graph"}

    def test_writes_to_its_scratch_folder_only(self, held, call, tmp_path):
        needs(held, filesystem="landlock")
        (tmp_path / "model").write_text("untouched")
        for code in (
            f"open({str(tmp_path / 'model')!r}, 'a')",
            f"os.truncate({str(tmp_path / 'model')!r}, 0)",
            f"os.unlink({str(tmp_path / 'model')!r})",
            f"open({str(ROOT / 'fp_audit' / 'planted.py')!r}, 'w')",
            "open('/proc/self/oom_score_adj', 'w').write('0')",
        ):
            answer = call("attempt", {"code": code}, readable=[tmp_path])
            assert answer["failed"] == "PermissionError", code
        assert (tmp_path / "model").read_text() == "untouched"
        code = "import tempfile; open('a', 'w').write('x'); tempfile.TemporaryFile().write(b'x'); os.unlink('a')"
        assert call("statement", {"code": code}) == {"done": True}

    def test_environment_of_the_parent_is_not_inherited(self, monkeypatch):
        planted = {"HF_TOKEN": "hf_s3cret", "AWS_SECRET_ACCESS_KEY": "s3cret", "https_proxy": "http://u:s3cret@p"}
        for name, value in planted.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        with Sandbox(path=[TESTS]) as sandbox, sandbox.child("sandbox_tasks:attempt", ()) as child:
            seen = child.call({"code": "dict(os.environ)"})["value"]
            at_start = child.call({"code": "open('/proc/self/environ').read()"})
        assert "s3cret" not in str(seen) + str(at_start)
        assert seen["OMP_NUM_THREADS"] == "3"
        assert not Path(seen["HOME"]).exists(), "its home was its scratch folder"
        assert at_start.get("failed") == "PermissionError" or "OMP_NUM_THREADS=3" in at_start["value"]

    def test_other_processes_are_out_of_reach(self, held, call):
        if held.filesystem == "none" and held.processes != "seccomp":
            pytest.skip("neither Landlock nor seccomp on this machine")
        parent = os.getpid()
        for code in (
            f"open('/proc/{parent}/environ').read()",
            f"os.kill({parent}, 0)",
            "os.kill(os.getppid(), signal.SIGKILL)",
            "os.kill(-1, 0)",
            f"resource.prlimit({parent}, resource.RLIMIT_NOFILE)",
            f"os.pidfd_open({parent})",
        ):
            assert "failed" in call("attempt", {"code": code}), code

    def test_confinement_cannot_be_taken_off(self, held, call):
        needs(held, processes="seccomp")
        libc = "ctypes.CDLL(None, use_errno=True)"
        for code in (
            f"{libc}.prctl(1, 0, 0, 0, 0)",  # PR_SET_PDEATHSIG
            f"{libc}.prctl(4, 1, 0, 0, 0)",  # PR_SET_DUMPABLE
            f"{libc}.unshare(0x10000000)",  # CLONE_NEWUSER
            f"{libc}.ptrace(0, 0, 0, 0)",  # PTRACE_TRACEME
            f"{libc}.syscall(425, 1, 0)",  # io_uring_setup
            f"{libc}.shmget(0, 4096, 0o1600)",
            f"{libc}.memfd_create(b'x', 0)",
        ):
            assert call("expression", {"code": code}) == {"value": -1}, code
        for code in ("os.setsid()", "os.setpgid(0, 0)", "os.execv('/bin/true', ['true'])", "os.fork()"):
            assert call("attempt", {"code": code}) == {"failed": "PermissionError", "errno": 1}, code

    def test_what_a_gpu_relaxes(self, held, tmp_path):
        """Tried without a GPU: Unix sockets that lead nowhere and shared memory, but still no network."""
        needs(held, processes="seccomp", filesystem="landlock")
        script = f"""
            import json, mmap, os, socket, sys
            from fp_audit.sandbox import _confine
            policy = _confine.Policy(2**28, 10, 64, 2**20, (), tuple(sys.path), {str(tmp_path)!r}, gpu=True)
            _confine.enter(policy, os.getppid())
            def works(attempt):
                try:
                    attempt()
                except OSError:
                    return False
                return True
            inside = socket.socket(socket.AF_UNIX)
            print(json.dumps([
                works(lambda: inside.bind("\\0fp-audit-test")),
                works(lambda: mmap.mmap(-1, 4096)),
                works(lambda: socket.socket(socket.AF_UNIX).connect("\\0fp-audit-test")),
                works(lambda: socket.socket(socket.AF_INET)),
                works(os.fork),
            ]))
        """
        process = _python(script, tmp_path)
        assert json.loads(process.communicate(timeout=20)[0]) == [True, True, False, False, False]

    def test_threads_still_work(self, call):
        code = "import threading; t = threading.Thread(target=len, args=('',)); t.start(); t.join()"
        assert call("statement", {"code": code}) == {"done": True}

    def test_descriptors(self, call):
        code = "sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) != 3)"
        with open("/etc/passwd"):
            opened = call("attempt", {"code": "len(os.listdir('/proc/self/fd'))"})
        assert opened == {"value": 5}, code  # three streams, the connection, the listing itself

    def test_no_capabilities(self, held, call):
        code = "[line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapPrm', 'CapEff'))]"
        allowed = 1 << 2 if os.geteuid() == 0 and held.filesystem == "landlock" else 0  # CAP_DAC_READ_SEARCH
        assert all(int(mask, 16) & ~allowed == 0 for mask in call("expression", {"code": code})["value"])

    def test_numpy_works_inside(self, call):
        code = "import numpy as np; assert (np.ones((400, 400)) @ np.ones((400, 400))).sum() == 400**3"
        assert call("statement", {"code": code}, preload=("numpy",)) == {"done": True}

    def test_torch_with_threads_works_inside(self, call):
        code = """
            import torch
            torch.set_num_threads(2)
            torch.nn.Conv2d(3, 8, 3)(torch.ones(8, 3, 64, 64)).sum().backward()
        """
        assert call("statement", {"code": textwrap.dedent(code)}, preload=("torch",)) == {"done": True}

    def test_onnxruntime_works_inside(self, call, tmp_path):
        value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"}
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value["x"]], [value["y"]])
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
        code = f"""
            import numpy as np, onnxruntime
            session = onnxruntime.InferenceSession({str(tmp_path / "m.onnx")!r}, providers=["CPUExecutionProvider"])
            assert session.run(None, {{"x": np.ones(4, np.float32)}})[0].sum() == 4
        """
        request = {"code": textwrap.dedent(code)}
        assert call("statement", request, readable=[tmp_path], preload=("onnxruntime",)) == {"done": True}


class TestCleanup:
    def test_grandchild_is_refused_or_killed(self, held, sandbox):
        with sandbox.child("sandbox_tasks:attempt", ()) as child:
            answer = child.call({"code": "breed()({'note': 'note'})"})
            if held.processes == "seccomp":
                assert answer == {"failed": "PermissionError", "errno": 1}
        assert not [state for _, state in descendants(os.getpid()).values() if state == "Z"]

    def test_two_hundred_children_leave_nothing(self, sandbox):
        sandbox.child("sandbox_tasks:echo", ()).close()
        family, descriptors = descendants(os.getpid()).keys(), len(os.listdir("/proc/self/fd"))
        homes = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in family}
        for number in range(200):
            with sandbox.child("sandbox_tasks:echo", ()) as child:
                assert child.call({"n": number}) == {"n": number}
        assert descendants(os.getpid()).keys() == family
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in family} == homes

    def test_closing_ends_everything(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", None)
        before = descendants(os.getpid()).keys()
        descriptors = len(os.listdir("/proc/self/fd"))
        with Sandbox(path=[TESTS]) as sandbox:
            child = sandbox.child("sandbox_tasks:sleep", ())
            assert list(tmp_path.iterdir())
        assert descendants(os.getpid()).keys() == before
        assert not list(tmp_path.iterdir())
        with pytest.raises(SandboxCrash):
            child.call({"seconds": 0})
        child.close()
        assert len(os.listdir("/proc/self/fd")) == descriptors

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
    @pytest.mark.parametrize("moment", ["importing", "calling"])
    def test_death_of_the_parent(self, tmp_path, end, moment):
        preload = {"importing": ("torch",), "calling": ()}[moment]
        script = f"""
            from pathlib import Path
            from fp_audit.sandbox import Sandbox
            with Sandbox(path=[Path({str(TESTS)!r})]) as sandbox:
                sandbox.warm({preload})
                print("started", flush=True)
                with sandbox.child("sandbox_tasks:sleep", {preload}) as child:
                    print("forked", flush=True)
                    child.call({{"seconds": 60}})
        """
        parent = _python(script, tmp_path)
        assert parent.stdout.readline() == "started\n"
        if moment == "calling":
            assert parent.stdout.readline() == "forked\n"
        family = descendants(parent.pid).keys()
        assert len(family) == {"importing": 1, "calling": 2}[moment]
        parent.send_signal(end)
        parent.communicate(timeout=10)
        assert soon(lambda: not family & {pid for pid, (_, state) in processes().items() if state != "Z"})
        assert soon(lambda: not list(tmp_path.glob("fp-audit-*")))

    def test_server_that_died_is_replaced(self):
        before = descendants(os.getpid()).keys()
        with Sandbox(path=[TESTS]) as sandbox:
            child = sandbox.child("sandbox_tasks:sleep", ())
            (server,) = [
                pid
                for pid, (parent, _) in descendants(os.getpid()).items()
                if pid not in before and parent == os.getpid()
            ]
            os.kill(server, signal.SIGKILL)
            with pytest.raises(SandboxCrash, match="server of the sandbox died"):
                child.call({"seconds": 60})
            with sandbox.child("sandbox_tasks:echo", ()) as replacement:
                assert replacement.call({"alive": True}) == {"alive": True}


class TestSeveral:
    def test_two_sandboxes(self):
        with Sandbox(path=[TESTS]) as first, Sandbox(SMALL, path=[TESTS]) as second:
            pair = [box.child("sandbox_tasks:counter", ()) for box in (first, second)]
            assert [child.call({"add": n})["total"] for n, child in enumerate(pair)] == [0, 1]

    def test_threads(self, sandbox):
        def session(number):
            with sandbox.child("sandbox_tasks:sleep", ()) as child:
                return [child.call({"seconds": 0.2 + number / 1000})["slept"] for _ in range(5)]

        start = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(session, range(4))) == [[0.2 + n / 1000] * 5 for n in range(4)]
        assert time.monotonic() - start < 3, "four seconds, not one after the other"

    def test_thread_that_started_the_server_may_end(self):
        with Sandbox(path=[TESTS]) as sandbox:
            thread = threading.Thread(target=lambda: sandbox.child("sandbox_tasks:echo", ()).close())
            thread.start()
            thread.join()
            with sandbox.child("sandbox_tasks:echo", ()) as child:
                assert child.call({"a": 1}) == {"a": 1}


class TestStart:
    def test_preload_of_a_missing_module(self):
        with Sandbox() as sandbox:
            for _ in range(2):
                with pytest.raises(SandboxCrash, match="with no_such_module: ModuleNotFoundError: No module named"):
                    sandbox.child("sandbox_tasks:echo", ("no_such_module",))

    def test_current_folder_is_not_on_the_import_path(self, tmp_path, monkeypatch):
        for name in ("json", "torch", "sandbox_tasks", "fp_audit", "sitecustomize", "colorsys"):
            (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w').close()")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(TESTS)]))
        with Sandbox() as sandbox, sandbox.child("sandbox_tasks:expression", ("colorsys",)) as child:
            path = child.call({"code": "sys.path"})["value"]
        assert not (tmp_path / "pwned").exists()
        assert str(TESTS) in path
        assert not {"", ".", str(tmp_path)} & set(path)

    def test_warm_overlaps(self):
        with Sandbox(path=[TESTS]) as sandbox:
            start = time.monotonic()
            sandbox.warm(("torch",))
            assert time.monotonic() - start < 1, "it does not wait for the import"


LESS = {
    "namespaces": 'Rule("unshare")',
    "landlock": 'Rule("landlock_create_ruleset", errno.ENOSYS)',
    "seccomp": 'Rule("prctl", errno.EINVAL, argument=0, value=22)',
}
"""Rules with which a kernel filter makes this kernel a poorer one, for the test's process and its children."""


def poorer(missing, body, tmp_path):
    """Run ``body`` where the kernel lacks what is named, and return what it prints as JSON."""
    rules = ", ".join(LESS[name] for name in missing)
    script = f"""
        import ctypes, errno, json, os, sys, time
        from dataclasses import asdict
        from pathlib import Path
        from fp_audit.sandbox import Limits, Sandbox, confinement
        from fp_audit.sandbox._seccomp import Rule, install
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
        assert install([{rules}])
    """
    process = _python(textwrap.dedent(script) + textwrap.dedent(body), tmp_path)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return json.loads(output)


def _python(script, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )


class TestPoorerKernels:
    @pytest.fixture(autouse=True)
    def full(self, held):
        if held.weaknesses:
            pytest.skip(f"this machine is a poorer one already: {held.weaknesses}")

    @pytest.mark.parametrize(
        ("missing", "network", "changes"),
        [
            ((), ["namespace", "seccomp", "landlock"], {}),
            (("namespaces",), ["seccomp", "landlock"], {"scratch": "folder", "user_namespace": False}),
            (("landlock",), ["namespace", "seccomp"], {"filesystem": "none"}),
            (("seccomp",), ["namespace", "landlock"], {"processes": "cleanup"}),
            (
                ("namespaces", "landlock", "seccomp"),
                ["refusal"],
                {
                    "filesystem": "none",
                    "processes": "cleanup",
                    "scratch": "folder",
                    "signals": False,
                    "user_namespace": False,
                },
            ),
        ],
    )
    def test_what_is_left_is_measured(self, held, tmp_path, missing, network, changes):
        seen = poorer(missing, "print(json.dumps(asdict(confinement())))", tmp_path)
        assert seen == {**json.loads(json.dumps(vars(held))), "network": network, **changes}

    def test_grandchild_that_left_the_group_is_killed(self, tmp_path):
        body = f"""
            with Sandbox(path=[Path({str(TESTS)!r})]) as sandbox:
                with sandbox.child("sandbox_tasks:breed", ()) as child:
                    pid = child.call({{"note": {str(tmp_path / "note")!r}}})["pid"]
                    alive = Path(f"/proc/{{pid}}").exists()
                print(json.dumps([alive, Path(f"/proc/{{pid}}").exists()]))
        """
        assert poorer(("seccomp", "landlock"), body, tmp_path) == [True, False]

    def test_scratch_folder_is_removed_whatever_is_in_it(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "kept").write_text("kept")
        request = {"depth": 1200, "elsewhere": str(tmp_path / "elsewhere")}
        body = f"""
            with Sandbox(path=[Path({str(TESTS)!r})]) as sandbox:
                with sandbox.child("sandbox_tasks:litter", ()) as child:
                    child.call({request})
                (home,) = Path({str(tmp_path)!r}).glob("fp-audit-*")
                print(json.dumps(sorted(path.name for path in home.iterdir())))
        """
        assert poorer(("namespaces", "landlock"), body, tmp_path) == []
        assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"
        assert not list(tmp_path.glob("fp-audit-*"))

    def test_sockets_are_refused_in_the_interpreter(self, tmp_path):
        body = f"""
            with Sandbox(path=[Path({str(TESTS)!r})]) as sandbox:
                with sandbox.child("sandbox_tasks:attempt", ()) as child:
                    print(json.dumps(child.call({{"code": "socket.socket()"}})))
        """
        answer = poorer(("namespaces", "landlock", "seccomp"), body, tmp_path)
        assert answer["failed"] == "PermissionError"


class TestUnprivileged:
    def test_everything_holds_without_root(self, held, tmp_path):
        """Root is the exception: most users get their namespaces through a user namespace."""
        if os.geteuid() != 0:
            pytest.skip("these tests run without root already")
        python = Path("/usr/bin/python3")
        script = "from fp_audit.sandbox import confinement; from dataclasses import asdict; import json, sys; "
        script += "print(json.dumps(asdict(confinement())))"
        started = subprocess.run(
            [python, "-c", "import sys; sys.path.insert(0, sys.argv[1])\n" + script, str(ROOT)],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        if "Error" in started.stderr:
            pytest.skip(f"{python} cannot run fp-audit as another user: {started.stderr.splitlines()[-1]}")
        seen = json.loads(started.stdout)
        if not seen["user_namespace"]:
            pytest.skip("this kernel gives no user namespace to an ordinary user")
        assert seen == {**json.loads(json.dumps(vars(held))), "user_namespace": True}


def run_filter(code, machine, number, arguments=(), architecture=None):
    """Interpret BPF as the kernel's documentation describes it: an oracle for the generated programs."""
    known = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, known if architecture is None else architecture, 0, *padded)
    accumulator, counter = 0, 0
    while True:
        operation, jump, otherwise, operand = struct.unpack_from("<HBBI", code, 8 * counter)
        counter += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x15:
                counter += jump if accumulator == operand else otherwise
            case 0x35:
                counter += jump if accumulator >= operand else otherwise
            case 0x06:
                return operand


ALLOW, KILL, EPERM, EACCES, ENOMEM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x5000D, 0x5000C, 0x50026


class TestFilter:
    @pytest.mark.parametrize(
        ("machine", "numbers"),
        [
            (
                "x86_64",
                {
                    "read": 0,
                    "mmap": 9,
                    "socket": 41,
                    "clone": 56,
                    "kill": 62,
                    "ptrace": 101,
                    "prctl": 157,
                    "clone3": 435,
                },
            ),
            (
                "aarch64",
                {
                    "read": 63,
                    "mmap": 222,
                    "socket": 198,
                    "clone": 220,
                    "kill": 129,
                    "ptrace": 117,
                    "prctl": 167,
                    "clone3": 435,
                },
            ),
        ],
    )
    def test_decisions(self, machine, numbers):
        cases = [
            ("read", (), ALLOW),
            ("mmap", (0, 4096, 3, 0x22), ALLOW),
            ("mmap", (0, 4096, 3, 0x01), ALLOW),
            ("mmap", (0, 4096, 3, 0x21), ENOMEM),
            ("socket", (2, 1), EACCES),
            ("socket", (1, 1), EACCES),
            ("clone", (0x3D0F00,), ALLOW),
            ("clone", (0x11,), EPERM),
            ("clone", (0x1200011,), EPERM),
            ("clone3", (), ENOSYS),
            ("kill", (77, 9), ALLOW),
            ("kill", (1, 9), EPERM),
            ("kill", (2**32 - 1, 9), EPERM),
            ("ptrace", (), EPERM),
            ("prctl", (1,), EPERM),
            ("prctl", (4,), EPERM),
            ("prctl", (15,), ALLOW),
        ]
        code = seccomp.program(seccomp.rules(77, gpu=False), machine)
        for name, arguments, wanted in cases:
            assert run_filter(code, machine, numbers[name], arguments) == wanted, (name, arguments)
        code = seccomp.program(seccomp.rules(77, gpu=True), machine)
        assert run_filter(code, machine, numbers["socket"], (1, 1)) == ALLOW
        assert run_filter(code, machine, numbers["socket"], (2, 1)) == EACCES
        assert run_filter(code, machine, numbers["mmap"], (0, 4096, 3, 0x21)) == ALLOW

    def test_foreign_calling_conventions_are_fatal(self):
        code = seccomp.program(seccomp.rules(77, gpu=False), "x86_64")
        assert run_filter(code, "x86_64", 41, architecture=0x40000003) == KILL  # 32-bit
        assert run_filter(code, "x86_64", 0x40000000 + 41) == KILL  # x32

    def test_unknown_machine(self):
        assert seccomp.program(seccomp.rules(77, gpu=False), "riscv64") is None
