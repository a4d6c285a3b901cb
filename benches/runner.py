#!/usr/bin/env python3
"""What the runner itself costs, measured on whole processes; and beside it, in the same run, DVC and Snakemake.

    cargo build --release --no-default-features
    python3 benches/runner.py target/release/pipe              # no network, some minutes
    python3 benches/runner.py target/release/pipe --peers      # installs benches/peers/requirements.txt into a venv
    python3 benches/runner.py target/release/pipe --only noop  # one group: noop, plan, overhead, hash, large, steps, reattach, none
    python3 benches/runner.py target/release/pipe --only steps # as root, with slurm-wlm and munge: starts a Slurm of its own
    python3 benches/runner.py target/release/pipe --only reattach # the same

Prints one Markdown table: median and best of the repetitions, the goal, and the load when it started.
Work folders go to --dir (a real disk: flushes are part of what is measured) and are removed.
"""

import argparse
import datetime
import os
import platform
import shutil
import statistics
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

TRIVIAL = "echo {i} > $OUT/x"


def tree(stages, width=2):
    """A tree: stage i takes what stage i // width makes."""
    text = []
    for i in range(stages):
        text.append(f'[stages.s{i}]\nkind = "command"\nargv = ["sh", "-c", "{TRIVIAL.format(i=i)}"]\n')
        if i > 0:
            text.append(f'inputs = {{ a = "s{i // width}" }}\n')
    return "".join(text)


def call(argv, cwd, env=None, expect=0):
    """Seconds, peak memory in MB, standard error."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        said = err.read().decode(errors="replace")
    if child.returncode != expect:
        sys.exit(f"{argv} in {cwd} ended with {child.returncode}:\n{said[-2000:]}")
    return seconds, usage.ru_maxrss / 1024, said


class Table:
    def __init__(self):
        self.rows = []

    def add(self, what, values, unit, goal="", scale=1.0, note=""):
        values = [value * scale for value in values]
        middle, best = statistics.median(values), min(values)
        digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
        row = (what, f"{middle:.{digits}f} {unit}", f"{best:.{digits}f} {unit}", str(len(values)), goal, note)
        self.rows.append(row)
        print("  " + " | ".join(row), file=sys.stderr, flush=True)

    def text(self):
        head = ("what", "median", "best", "n", "goal", "note")
        lines = [head, ("---",) * len(head), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def place(args, name):
    folder = Path(args.dir) / name
    folder.mkdir(parents=True)
    return folder


def noop(args, table):
    for stages, goal in [(100, "≤ 30 ms"), (1000, "≤ 150 ms")]:
        folder = place(args, f"noop{stages}")
        (folder / "p.toml").write_text(tree(stages))
        call([args.pipe, "run", "p.toml", "-q"], folder)
        said = call([args.pipe, "run", "p.toml"], folder)[2]
        assert f"{stages} cached, 0 ran" in said, said
        times = [call([args.pipe, "run", "p.toml", "-q"], folder)[0] for _ in range(args.repeat)]
        table.add(f"no-op run, {stages} stages", times, "ms", goal, 1e3)


def plan(args, table):
    for stages, goal in [(1000, ""), (10_000, "≤ 1 s"), (100_000, "linear")]:
        folder = place(args, f"plan{stages}")
        (folder / "p.toml").write_text(tree(stages))
        times = [call([args.pipe, "plan", "p.toml", "--json"], folder)[0] for _ in range(3 if stages > 50_000 else 5)]
        table.add(f"`plan`, {stages} stages, nothing stored", times, "s", goal)


def overhead(args, table):
    stages = 200
    folder = place(args, "overhead")
    # What the stages' own programs take when nothing is in between.
    script = "".join(f"sh -c 'echo {i} > {folder}/x'\n" for i in range(stages))
    (folder / "all.sh").write_text(script)
    bare = statistics.median(call(["sh", "all.sh"], folder)[0] / stages for _ in range(5))
    table.add("`sh -c 'echo i > x'` alone", [bare], "ms", scale=1e3)
    start = statistics.median(call([args.pipe, "--version"], folder)[0] for _ in range(20))
    table.add("start of `pipe` itself", [start], "ms", scale=1e3)
    for jobs in ["1", "2"]:
        times = []
        for number in range(3):
            (folder / "p.toml").write_text(tree(stages))
            seconds, _, said = call([args.pipe, "run", "p.toml", "-j", jobs, "--store", f"s{jobs}{number}"], folder)
            assert f"{stages} ran" in said, said
            times.append(seconds / stages)
        table.add(f"first run, per stage, -j {jobs}", times, "ms", scale=1e3)
        if jobs == "1":
            beyond = [seconds - bare - start for seconds in times]
            table.add("overhead per trivial stage beyond the start of its two processes", beyond, "ms", "≤ 5 ms", 1e3)


def hashing(args, table):
    folder = place(args, "hash")
    size = args.gib << 30
    block = os.urandom(64 << 20)
    with open(folder / "data", "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    os.utime(folder / "data", (time.time() - 3600,) * 2)
    (folder / "p.toml").write_text(f'[stages.get]\nkind = "download"\nsource = "{folder}/data"\n')
    subprocess.run(["cat", folder / "data"], stdout=subprocess.DEVNULL, check=True)
    time.sleep(3)
    rates, again = [], []
    for number in range(3):
        command = [args.pipe, "plan", "p.toml", "--store", f"store{number}"]
        rates.append(size / 1e9 / call(command, folder)[0])
        again.append(call(command, folder)[0])
    table.add(f"hashing a file of {args.gib} GiB, warm", rates, "GB/s", "≥ 2 GB/s")
    table.add("the same file the second time", again, "ms", "no read", 1e3)
    shutil.rmtree(folder)


def large(args, table):
    """A real run of 10,000 stages: takes minutes."""
    stages = 10_000
    folder = place(args, "large")
    (folder / "p.toml").write_text(tree(stages))
    seconds, memory, _ = call([args.pipe, "run", "p.toml", "-q"], folder)
    table.add(f"first run, {stages} stages, per stage", [seconds / stages], "ms", scale=1e3)
    table.add(f"peak memory of the runner, {stages} stages run", [memory], "MB", "≤ 100 MB")
    runs = [call([args.pipe, "run", "p.toml", "-q"], folder) for _ in range(3)]
    table.add(f"no-op run, {stages} stages", [run[0] for run in runs], "s")
    table.add(f"peak memory of the runner, {stages} stages cached", [run[1] for run in runs], "MB", "≤ 100 MB")
    times = [call([args.pipe, "plan", "p.toml", "--json"], folder)[0] for _ in range(3)]
    table.add(f"`plan`, {stages} stages, all stored", times, "s", "≤ 1 s")


@contextmanager
def slurm(args):
    """The two-node Slurm of the tests, and the environment in which it is found."""
    scripts = Path(__file__).resolve().parent.parent / "tests" / "slurm"
    cluster = Path(tempfile.mkdtemp(prefix="slurm-", dir=args.dir))
    subprocess.run([scripts / "start.sh", cluster, "24817"], check=True, stdout=subprocess.DEVNULL)
    try:
        yield {**os.environ, "SLURM_CONF": str(cluster / "slurm.conf")}
    finally:
        subprocess.run([scripts / "stop.sh", cluster], check=False)


def steps(args, table):
    """200 trivial stages as steps of one allocation, on the two-node Slurm of the tests."""
    stages = 200
    folder = place(args, "steps")
    # Without inputs: all of them may run side by side.
    text = [f'[stages.s{i}]\nkind = "command"\nargv = ["sh", "-c", "{TRIVIAL.format(i=i)}"]\n' for i in range(stages)]
    (folder / "p.toml").write_text("".join(text))
    with slurm(args) as env:
        bare = "for i in $(seq 50); do srun --exact -N1 -n1 --mem=0 --gres=none true; done"
        seconds = call(["salloc", "-Q", "-N1", "-n1", "sh", "-c", bare], folder, env)[0]
        table.add("`srun true` alone, in an allocation", [seconds / 50], "ms", scale=1e3)
        for name, options in [("one core", ["-N1", "-n1"]), ("two nodes of two cores", ["-N2", "--ntasks-per-node=2"])]:
            times = []
            for number in range(3):
                command = [args.pipe, "run", "p.toml", "--executor", "srun", "--store", f"{len(options)}-{options[0][2:]}-{number}"]
                seconds, _, said = call(["salloc", "-Q", *options, *command], folder, env)
                assert f"{stages} ran" in said, said
                times.append(seconds / stages)
            table.add(f"{stages} short stages as steps, {name}, per stage", times, "ms", "≤ 150 ms", 1e3)


def reattach(args, table):
    """A run of 1,000 jobs is killed and started again: how long until it has found each of them, by what it says."""
    jobs = args.jobs
    folder = place(args, "reattach")
    wait = f"until [ -e {folder}/go ]; do sleep 1; done; "
    text = [f'[stages.s{i}]\nkind = "command"\nargv = ["sh", "-c", "{wait}{TRIVIAL.format(i=i)}"]\n' for i in range(jobs)]
    (folder / "p.toml").write_text("".join(text))

    with slurm(args) as env:
        def until_said(what):
            """Starts the run and waits until it has said `what` of every job. The run, and the seconds."""
            start = time.perf_counter()
            command = [args.pipe, "run", "p.toml", "--executor", "slurm"]
            run = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            left, said = jobs, []
            for line in run.stderr:
                said.append(line)
                left -= what in line
                if left == 0:
                    return run, time.perf_counter() - start
            sys.exit(f"`{what}` was not said of {left} jobs:\n{''.join(said[-20:])}")

        def end(run, how):
            run.send_signal(how)
            run.stderr.close()
            run.wait()

        run, seconds = until_said("of Slurm")
        table.add(f"{jobs} jobs submitted, per job", [seconds / jobs], "ms", scale=1e3)
        end(run, signal.SIGKILL)
        listing = ["squeue", "--noheader", "--states=all", "--format=%i"]
        times = []
        for _ in range(3):
            run, seconds = until_said("goes on with job")
            end(run, signal.SIGKILL)
            times.append(seconds)
            count = len(subprocess.run(listing, env=env, check=True, capture_output=True, text=True).stdout.split())
            assert count == jobs, f"{count} jobs for {jobs} stages"
        squeue = [call(listing, folder, env)[0] for _ in range(5)]
        subprocess.run(["scancel", "--me", "--state=PENDING"], env=env, check=True)
        (folder / "go").touch()
        while subprocess.run(["squeue", "--noheader"], env=env, check=True, capture_output=True).stdout:
            time.sleep(0.2)
        table.add(f"`squeue` alone, {jobs} jobs", squeue, "ms", scale=1e3)
        table.add(f"run killed and started again, until it goes on with all of {jobs} jobs", times, "s", "≤ 3 s")


def peers(args, table):
    venv = Path(args.venv)
    requirements = Path(__file__).with_name("peers") / "requirements.txt"
    if not (venv / "bin" / "snakemake").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "pip", "install", "-q", "-r", requirements], check=True)
    env = {**os.environ, "PATH": f"{venv}/bin:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    stages = 100
    for name, prepare, command in [("DVC", dvc, ["dvc", "repro", "-q"]), ("Snakemake", snakemake, ["snakemake", "-q", "all", "-j1"])]:
        folder = place(args, name.lower())
        prepare(folder, stages, env)
        first = call(command, folder, env)[0]
        table.add(f"{name}: first run of {stages} stages, per stage", [first / stages], "ms", scale=1e3, note=version(venv, name))
        times = [call(command, folder, env)[0] for _ in range(3)]
        table.add(f"{name}: no-op run, {stages} stages", times, "ms", scale=1e3, note=version(venv, name))
        table.add(f"{name}: overhead per trivial stage beyond its own start", [(first - statistics.median(times)) / stages], "ms", scale=1e3)


def version(venv, name):
    said = subprocess.run([venv / "bin" / "pip", "show", name.lower()], capture_output=True, text=True, check=True).stdout
    return next(line.split(": ")[1] for line in said.splitlines() if line.startswith("Version"))


def dvc(folder, stages, env):
    text = ["stages:\n"]
    for i in range(stages):
        text.append(f"  s{i}:\n    cmd: echo {i} > x{i}\n    outs: [x{i}]\n")
        if i > 0:
            text.append(f"    deps: [x{i // 2}]\n")
    (folder / "dvc.yaml").write_text("".join(text))
    call(["dvc", "init", "--no-scm", "-q"], folder, env)
    call(["dvc", "config", "core.analytics", "false"], folder, env)


def snakemake(folder, stages, _env):
    text = ["rule all:\n    input: " + ", ".join(f"'x{i}'" for i in range(stages)) + "\n"]
    for i in range(stages):
        needs = f"    input: 'x{i // 2}'\n" if i > 0 else ""
        text.append(f"rule s{i}:\n{needs}    output: 'x{i}'\n    shell: 'echo {i} > {{output}}'\n")
    (folder / "Snakefile").write_text("".join(text))


GROUPS = {"noop": noop, "plan": plan, "overhead": overhead, "hash": hashing, "large": large, "steps": steps, "reattach": reattach}
NEED_SLURM = ["steps", "reattach"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipe", type=os.path.abspath)
    parser.add_argument("--only", action="append", choices=[*GROUPS, "none"])
    parser.add_argument("--large", action="store_true", help="also run 10,000 stages for real (minutes)")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=1000, help="of `reattach`")
    parser.add_argument("--gib", type=int, default=4)
    parser.add_argument("--dir", default=None, help="where to work; a new folder in the system's temporary one if absent")
    parser.add_argument("--venv", default=os.path.expanduser("~/.cache/pipe-peers"))
    args = parser.parse_args()
    args.dir = tempfile.mkdtemp(prefix="pipe-bench-", dir=args.dir)
    os.environ.pop("PIPE_STORE", None)
    load = os.getloadavg()
    table = Table()
    chosen = args.only or [name for name in GROUPS if name not in NEED_SLURM and (name != "large" or args.large)]
    try:
        for name in [name for name in chosen if name != "none"]:
            GROUPS[name](args, table)
        if args.peers:
            peers(args, table)
    finally:
        shutil.rmtree(args.dir, ignore_errors=True)
    cpu = next((line.split(": ")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    now = datetime.datetime.now(datetime.timezone.utc)
    print(f"{now:%Y-%m-%d %H:%M} UTC, {os.cpu_count()} × {cpu}, Linux {platform.release()}, "
          f"load {load[0]:.1f} at the start and {os.getloadavg()[0]:.1f} at the end\n")
    print(table.text())


if __name__ == "__main__":
    main()
