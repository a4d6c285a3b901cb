#!/usr/bin/env python3
"""This project beside its peers on the same machine, interleaved: training step, generation, tokenizing, NF4.

    cargo build --release && cargo bench --bench model_speed --no-run
    python3 benches/peers/compare.py target/release/pipe [--python VENV/bin/python] [--only step] [--pairs 5]

--data FOLDER       Alpaca rows (*.json) and a tokenizer folder (llama2-tokenizer) for `tokenize`; else it is left out
--python PYTHON     an interpreter with benches/peers/models.txt; else a venv is made and filled from PyPI
Prints one Markdown table: median of our side, of the peer, and of the pairs' ratios with the smallest and the
largest ratio, and how much of the machine others used meanwhile (it should be 0).
"""
import argparse, itertools, json, os, pathlib, platform, shutil, statistics, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("pipe")
arguments.add_argument("--python")
arguments.add_argument("--data", type=pathlib.Path)
arguments.add_argument("--only", choices=["step", "generate", "tokenize", "quantize"], action="append")
arguments.add_argument("--shape", choices=["24m", "134m"], action="append", help="of `step` and `generate`")
arguments.add_argument("--base", choices=["f32", "nf4"], action="append", help="of `step`; with nf4 the peer is PEFT with bitsandbytes")
arguments.add_argument("--pairs", type=int, default=5)
arguments.add_argument("--layers", type=int, default=4, help="of the 7B shape that is quantized")
arguments.add_argument("--dir", help="for work folders, on a real disk")
a = arguments.parse_args()
pipe = pathlib.Path(a.pipe).resolve()
shapes, bases = a.shape or ["24m", "134m"], a.base or ["f32", "nf4"]
scratch = pathlib.Path(tempfile.mkdtemp(dir=a.dir or "/var/tmp"))


def jiffies():
    return sum(int(v) for i, v in enumerate(open("/proc/stat").readline().split()[1:9]) if i not in (3, 4)) / os.sysconf("SC_CLK_TCK")


def run(argv, **options):
    """Standard output, seconds, and the cores that other processes used."""
    busy, start, usage = jiffies(), time.perf_counter(), os.times()
    env = dict(os.environ, MIMALLOC_PURGE_DELAY="60000")  # as `pipe` gives it to its stages
    done = subprocess.run([str(part) for part in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **options)
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode != 0:
        sys.exit(f"{argv} failed:\n{done.stderr[-3000:]}")
    own = after.children_user + after.children_system - usage.children_user - usage.children_system
    return done.stdout, seconds, max(0.0, (jiffies() - busy - own) / seconds)


def bench(*argv):
    program = max(pipe.parent.glob("deps/model_speed-*"), key=lambda path: (path.suffix == "", path.stat().st_mtime))
    out, _, others = run([program, *argv])
    return json.loads(out.splitlines()[-1]), others


def peer(script, *argv):
    out, _, others = run([python, HERE / script, *argv])
    return json.loads(out.splitlines()[-1]), others


rows = []


def pairs(what, unit, goal, ours, theirs, of):
    """`of` takes a side's figures to the number compared, larger better; memory is compared as well where both know it."""
    left, right, busy = [], [], []
    for index in range(a.pairs):
        for side, call in [(left, ours), (right, theirs)][:: 1 if index % 2 == 0 else -1]:
            figures, others = call()
            side.append(figures)
            busy.append(others)
    ratios = [of(x) / of(y) for x, y in zip(left, right)]
    middle = lambda side: statistics.median(of(x) for x in side)
    memory = lambda side: statistics.median(x["peak_rss_mib"] for x in side)
    row = [what, f"{middle(left):,.4g} {unit}", f"{middle(right):,.4g} {unit}", f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}–{max(ratios):.2f})", goal,
           f"{memory(left):,.0f} : {memory(right):,.0f} MiB = {memory(left) / memory(right):.2f}", f"{statistics.median(busy):.2f}"]
    rows.append(row)
    print("  " + " | ".join(row), file=sys.stderr, flush=True)
    return middle(left), middle(right)


def step():
    for shape, base in itertools.product(shapes, bases):
        steps, packed, speed = {"24m": 8, "134m": 4}[shape], ["--nf4"] if base == "nf4" else [], {}
        for method, goal in [("lora", "≥ 1.2"), ("dora", "≥ 1.4")]:
            speed[method] = pairs(
                f"{method} step, {shape}, {base} base", "tokens/s", goal if base == "f32" else "",
                lambda: bench("--shape", shape, "--method", method, "--steps", steps, *packed),
                lambda: peer("peft_step.py", shape, method, steps, base), lambda x: x["tokens_per_s"])
        ours, theirs = (speed["lora"][side] / speed["dora"][side] for side in (0, 1))
        rows.append([f"time of a DoRA step : LoRA step, {shape}, {base} base", f"{ours:.2f}", f"{theirs:.2f}", "", "≤ 1.05", "", ""])


def generate():
    for shape in shapes:
        pairs(f"generation, {shape}, batch 1, 16 + 128 tokens", "tokens/s", "≥ 1.0", lambda: bench("--shape", shape, "--generate", 128, "--steps", 3),
              lambda: peer("transformers_generate.py", shape, 128, 3), lambda x: x["tokens_per_s"])


def stage(name, text, until):
    """Seconds and peak memory of the one stage that is left to run, the whole process timed."""
    (scratch / f"{name}.toml").write_text(text)
    base = [pipe, "--quiet", "--store", scratch / f"store-{name}", "run", scratch / f"{name}.toml"]
    run([*base, "--until", until], cwd=scratch)

    def ours():
        shell = ["/usr/bin/env", "python3", "-c", "import resource,subprocess,sys; subprocess.run(sys.argv[1:],check=True,stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss//1024)"]
        out, seconds, others = run([*shell, *base, "--only", name, "--force"], cwd=scratch)
        return dict(seconds=seconds, peak_rss_mib=int(out.split()[-1])), others

    return ours


def tokenize():
    if not a.data:
        return print("  tokenize is left out without --data", file=sys.stderr)
    found = [row for file in sorted(a.data.glob("alpaca*.json")) for row in json.loads(file.read_text())]
    wanted = (found * (50_000 // len(found) + 1))[:50_000]
    (scratch / "rows.json").write_text(json.dumps(wanted))
    tokenizer = a.data.resolve() / "llama2-tokenizer"
    ours = stage("tokens", f'''name = "tokenize"
[stages.rows]
kind = "download"
source = "rows.json"
[stages.tokenizer]
kind = "download"
source = "{tokenizer}"
[stages.both]
kind = "command"
inputs = {{ rows = "rows", tokenizer = "tokenizer" }}
argv = ["true"]
allow_empty = true
[stages.tokens]
kind = "tokenize"
inputs = {{ dataset = "rows", tokenizer = "tokenizer" }}
template = "alpaca"
cutoff = 512
''', "both")

    def theirs():
        for left in [scratch / "peer", scratch / "peer-cache"]:
            shutil.rmtree(left, ignore_errors=True)
        return peer("datasets_tokenize.py", scratch / "rows.json", tokenizer, scratch / "peer")

    pairs("tokenizing 50,000 Alpaca rows", "rows/s", "≥ 1.5", ours, theirs, lambda x: 50_000 / x["seconds"])


def quantize():
    sys.path.insert(0, str(HERE.parent))
    import quantize_memory
    size = quantize_memory.write_model(scratch / "model", a.layers)
    ours = stage("nf4", '''name = "quantize"
[stages.model]
kind = "download"
source = "model"
[stages.nf4]
kind = "quantize"
inputs = { model = "model" }
double = false
''', "model")
    pairs(f"NF4 of {a.layers} layers of the 7B shape ({size / 1e9:.1f} GB)", "GB/s", "≥ 1.0", ours,
          lambda: peer("bitsandbytes_quantize.py", scratch / "model" / "model.safetensors", scratch / "peer.safetensors"), lambda x: size / 1e9 / x["seconds"])


try:
    python = a.python
    if not python:
        subprocess.run([sys.executable, "-m", "venv", scratch / "venv"], check=True)
        python = scratch / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "models.txt"], check=True)
    for group in a.only or ["step", "generate", "tokenize", "quantize"]:
        globals()[group]()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {model}, {a.pairs} pairs\n")
    head = ["what", "pipe", "peer", "ratio (least–most)", "goal", "peak memory", "cores used by others"]
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")
finally:
    shutil.rmtree(scratch, ignore_errors=True)
