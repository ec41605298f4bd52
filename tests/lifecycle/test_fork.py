"""A child of a fork has a copy of the memory and none of the threads: it is told so, it ends, and the parent goes on."""

import pytest
from tests.lifecycle.child import script

USES = """
def refused(vm):
    calls = [
        lambda: vm.run([BUSY[:4]]),
        lambda: vm.vcpus[0].load(GVA),
        lambda: vm.vcpus[1].write_cr3(0),
        lambda: vm.memory.read(0, 8),
        lambda: vm.memory.write(0, b"x"),
        lambda: vm.stats,
        vm.audit,
        vm.shadow_pages,
        vm.state_words,
        vm.trace,
        lambda: vm.add_memslot(1 << 30, 4096),
    ]
    for call in calls:
        try:
            call()
        except ForkedError as error:
            assert f"of process {os.getppid()}" in str(error), error
            assert f"this is process {os.getpid()}" in str(error), error
        else:
            return False
    repr(vm), repr(vm.vcpus[0])
    vm.close()
    vm.close()
    return True

def child_of(body):
    "Fork; the child exits with 0 if body is true. Gives its exit code, and ends it if it hangs."
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if body() else 2
        finally:
            os._exit(code)
    return waited(pid)

def waited(pid):
    for _ in range(2000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"

def drive(vm, stop):
    while not stop.is_set():
        vm.run([BUSY[:4000]] * 2)
"""


def test_a_child_is_told_that_the_machine_is_its_parents() -> None:
    ended = script(USES + "vm = machine()\nprint(child_of(lambda: refused(vm)), usable(vm))")
    assert ended.out == "0 True", ended.err


def test_r12_forks_in_another_thread_while_vcpus_run_hang_nobody() -> None:
    ended = script(
        USES
        + """
vm = machine()
stop = threading.Event()
thread = threading.Thread(target=drive, args=(vm, stop))
thread.start()
codes = [child_of(lambda: refused(vm)) for _ in range(30)]
stop.set()
thread.join()
print(set(codes), usable(vm))
"""
    )
    assert ended.out == "{0} True", ended.err


def test_r12_a_fork_in_a_callback_ends_the_childs_run_and_not_the_parents() -> None:
    ended = script(
        USES
        + """
vm = machine()
children = []
def progress(_done):
    if not children:
        children.append(os.fork())
try:
    vm.run([LONG[:4000]] * 2, progress=progress)
except ForkedError:
    assert children == [0]
    os._exit(7 if refused(vm) else 8)
print(waited(children[0]), usable(vm))
"""
    )
    assert ended.out == "7 True", ended.err


@pytest.mark.parametrize("end", ["sys.exit(7)", "raise SystemExit(7)"])
def test_r12_a_child_forked_in_a_callback_can_exit_as_any_process(end: str) -> None:
    ended = script(
        USES
        + f"""
vm = machine()
children = []
def progress(_done):
    if not children:
        children.append(os.fork())
        if children == [0]:
            {end}
vm.run([LONG[:4000]] * 2, progress=progress)
print(waited(children[0]), usable(vm))
"""
    )
    assert ended.out == "7 True", ended.err


def test_r12_a_child_that_leaves_by_the_end_of_main_does_not_hang() -> None:
    ended = script(
        USES
        + """
vm = machine()
stop = threading.Event()
thread = threading.Thread(target=drive, args=(vm, stop))
thread.start()
time.sleep(0.1)
pid = os.fork()
if pid:
    code = waited(pid)
    stop.set()
    thread.join()
    print(code, usable(vm))
"""
    )
    assert ended.out == "0 True", ended.err


def test_a_child_makes_machines_of_its_own_and_a_grandchild_too() -> None:
    ended = script(
        USES
        + """
vm = machine()
def generation(depth):
    own = machine()
    return usable(own) and (depth == 0 or child_of(lambda: refused(own) and generation(depth - 1)) == 0)
print(child_of(lambda: refused(vm) and generation(2)), usable(vm))
"""
    )
    assert ended.out == "0 True", ended.err


def test_a_context_manager_in_the_child_hides_no_exception() -> None:
    ended = script(
        USES
        + """
def body():
    try:
        with vm:
            raise KeyError("mine")
    except KeyError:
        return True
vm = machine()
print(child_of(body), usable(vm))
"""
    )
    assert ended.out == "0 True", ended.err


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_r12_multiprocessing_works_with_machines_of_the_childs_own(method: str) -> None:
    ended = script(
        f"""
        import multiprocessing
        from tests.lifecycle.work import switches_of_a_new_machine

        vm = machine()
        stop = threading.Event()
        def drive():
            while not stop.is_set():
                vm.run([BUSY[:4000]] * 2)
        thread = threading.Thread(target=drive)
        thread.start()
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            results = pool.map(switches_of_a_new_machine, [1, 2, 3, 4])
        stop.set()
        thread.join()
        print(results, usable(vm))
        """,
        limit=120,
    )
    assert ended.out == "[1, 2, 3, 4] True", ended.err
