"""The end of the interpreter with vCPU threads at work: it ends, with its own exit code, and says nothing."""

import time

import pytest
from tests.lifecycle.child import script

DAEMON = """
vm = machine()
def drive():
    vm.run([LONG, LONG])
thread = threading.Thread(target=drive, daemon=True)
thread.start()
time.sleep(0.3)
"""
SOON = 20.0
"""Seconds in which a process must have ended whose program has a minute of work left; the start is in it."""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(5)", 5),
        ("os._exit(6)", 6),
        ("raise SystemExit('bye')", 1),
        ("raise KeyError('mine')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("os.abort()", -6),
    ],
)
def test_r12_the_process_ends_with_a_daemon_thread_in_a_run(end: str, code: int) -> None:
    began = time.perf_counter()
    ended = script(DAEMON + end)
    assert ended.code == code, ended.err
    assert time.perf_counter() - began < SOON
    assert "panicked" not in ended.err
    assert "Fatal" not in ended.err
    if code in {0, 5, 6}:
        assert ended.err == ""


def test_r12_a_run_in_a_daemon_thread_has_ended_before_the_interpreter_goes() -> None:
    ended = script(
        """
        def drive():
            try:
                vm.run([LONG, LONG])
            except SystemExit:
                stopped.append("stopped")
        vm = machine()
        threading.Thread(target=drive, daemon=True).start()
        time.sleep(0.3)
        """,
        # Registered before the core's own, so called after it.
        before="""
        import atexit
        stopped = []
        atexit.register(lambda: print(stopped))
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, "['stopped']", "")


def test_a_thread_that_is_no_daemon_finishes_its_run() -> None:
    ended = script(
        """
        vm = machine()
        def drive():
            print(vm.run([LONG[:1000]] * 2).ops_done)
        threading.Thread(target=drive).start()
        """
    )
    assert (ended.code, ended.out, ended.err) == (0, "(1000, 1000)", "")


def test_a_machine_can_be_made_and_run_at_exit() -> None:
    ended = script(
        """
        import atexit
        vm = machine()
        @atexit.register
        def last():
            print(usable(vm), usable(machine()))
        """
    )
    assert (ended.code, ended.out, ended.err) == (0, "True True", "")


def test_a_machine_can_be_run_after_the_core_was_told_of_the_end() -> None:
    ended = script(
        "vm = machine()",
        before="""
        import atexit
        atexit.register(lambda: print(usable(vm)))
        """,
    )
    assert (ended.code, ended.out, ended.err) == (0, "True", "")


def test_a_machine_needs_no_close_and_survives_in_a_cycle_to_the_end() -> None:
    ended = script(
        """
        class Holder:
            def __init__(self):
                self.vm = machine()
                self.self = self
        kept = Holder()
        Holder()
        """
    )
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_ctrl_c_during_the_end_is_answered() -> None:
    ended = script(
        """
        vm = machine()
        def drive():
            try:
                vm.run([LONG, LONG], progress=lambda _done: stop.is_set() and sys.exit())
            except SystemExit:
                print("stopped")
        stop = threading.Event()
        threading.Thread(target=drive).start()
        threading.Timer(0.5, lambda: (os.kill(os.getpid(), signal.SIGINT), stop.set())).start()
        """
    )
    # The main thread waits for the other one, and is interrupted in that.
    assert ended.out == "stopped"
    assert "KeyboardInterrupt" in ended.err
