"""The tracer leaves the program as it is: threads, signals, job control, children, exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jepsen_like.durability import TracedProcess, TracerError, seccomp


def output_of(start_script: Any, text: str, **more: Any) -> tuple[bytes, Any]:
    process = start_script(text, stdout=subprocess.PIPE, **more)
    return process.stdout.read(), process.wait()


def test_many_threads_come_and_go(start_script: Any) -> None:
    said, verdict = output_of(
        start_script,
        """
        import os, sys, threading
        read, write = os.pipe()
        def work():
            for _ in range(20):
                os.write(write, b"x")
        for _ in range(10):
            threads = [threading.Thread(target=work) for _ in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
        print(len(os.read(read, 65536)))
        sys.exit(7)
        """,
    )
    assert (said, verdict.exit_code) == (b"1600\n", 7)


def test_children_run_untouched(start_script: Any, data: Path) -> None:
    said, verdict = output_of(
        start_script,
        """
        import os, subprocess, sys
        code = "import sys; open(sys.argv[1], 'w').write('child'); sys.exit(3)"
        path = os.path.join(sys.argv[1], "by-child")
        print(subprocess.run([sys.executable, "-c", code, path]).returncode)
        if (pid := os.fork()) == 0:
            os._exit(4)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
    )
    assert (said, verdict.exit_code) == (b"3\n4\n", 0)
    assert (data / "by-child").read_text() == "child"


def test_a_program_may_replace_itself(start_script: Any, data: Path) -> None:
    (data / "old").write_bytes(b"old")
    process = start_script(
        """
        import os, sys, threading
        code = '''
        import os, signal, sys
        fd = os.open(sys.argv[1] + "/old", os.O_WRONLY)
        os.write(fd, b"new")
        print("ready", flush=True)
        signal.pause()
        '''.replace("\\n        ", "\\n")
        arguments = [sys.executable, "-c", code, sys.argv[1]]
        threading.Thread(target=lambda: os.execv(sys.executable, arguments)).start()
        threading.Event().wait()
        """,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    process.kill_with_power_loss()
    assert (data / "old").read_bytes() == b"old"


def test_signals_reach_the_program_and_interrupt_its_calls(start_script: Any) -> None:
    process = start_script(
        """
        import os, signal, sys
        signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        print("ready", flush=True)
        read, _ = os.pipe()
        os.read(read, 1)
        """,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"interrupted\n"
    assert process.terminate().exit_code == 5


def state_of(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("State:"))


def test_a_stopped_program_stays_stopped_until_it_is_continued(start_script: Any) -> None:
    process = start_script(
        """
        import os, threading
        read, write = os.pipe()
        def spin():
            while True:
                os.write(write, b"x")
                os.read(read, 1)
        threading.Thread(target=spin, daemon=True).start()
        for number in range(1_000_000_000):
            print(number, flush=True)
        """,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    os.set_blocking(process.stdout.fileno(), False)
    silent = 0
    while silent < 3:  # an empty pipe, and it stays empty
        chunk = process.stdout.read(1 << 20)
        silent = 0 if chunk else silent + 1 if state_of(process.pid) in "Tt" else 0
    os.set_blocking(process.stdout.fileno(), True)
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline()
    assert process.kill().exit_signal == 9


def test_asynchronous_io_that_could_not_be_seen_is_refused(start_script: Any) -> None:
    said, _ = output_of(
        start_script,
        """
        import ctypes, errno, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.syscall(425, 8, 0), errno.errorcode[ctypes.get_errno()])
        """,
    )
    assert said == b"-1 ENOSYS\n"


def test_a_program_that_does_not_exist_is_said(tmp_path: Path) -> None:
    with TracedProcess(["/does/not/exist"], watch=tmp_path, stderr=subprocess.DEVNULL) as process:
        assert process.wait().exit_code == 127


def test_where_tracing_is_not_permitted_it_fails_and_says_so(start_script: Any) -> None:
    # Whoever is traced already cannot be traced a second time: the kernel answers EPERM.
    said, verdict = output_of(
        start_script,
        """
        import subprocess, sys
        tracer = [sys.executable, "-m", "jepsen_like.durability", "trace", "--watch", sys.argv[1]]
        done = subprocess.run([*tracer, "true"], stderr=subprocess.PIPE)
        print(done.returncode, b"ptrace is not permitted here" in done.stderr)
        """,
    )
    assert said == b"3 True\n", verdict


def test_an_error_of_the_tracer_reaches_the_test(tmp_path: Path) -> None:
    missing = tmp_path / "no parent" / "data"
    process = TracedProcess([sys.executable], watch=missing, stderr=subprocess.DEVNULL)
    with pytest.raises(TracerError), process:
        pytest.fail("it must not start")


def test_the_program_dies_with_its_tracer(start_script: Any) -> None:
    process = start_script(
        "import signal\nprint('ready', flush=True)\nsignal.pause()", stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    process.close()
    assert not Path(f"/proc/{process.pid}").exists()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_fits_the_kernel_s_limits_on_both_architectures(machine: str) -> None:
    table = seccomp.syscall_table(machine)
    assert {"fdatasync", "pwrite64", "sendmsg", "openat"} <= table.numbers.keys()
    assert len(seccomp.filter_program(table)) // 8 <= 4096


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(seccomp.UnsupportedMachineError, match="riscv64"):
        seccomp.syscall_table("riscv64")
