"""Peak anonymous memory and speed of `quantize` on checkpoints of Llama-2-7B's shape with 4, 12 and 32 layers.

Usage: benches/quantize_memory.py PATH/TO/pipe [LAYERS…]    needs Python 3 only, and 35 GB of disk for 32 layers
Prints for each size: bytes of the model, seconds, GB/s read, largest RssAnon of the stage's process.
"""
import json, os, pathlib, random, shutil, struct, subprocess, sys, tempfile, time

HIDDEN, INNER, VOCAB = 4096, 11008, 32000
random.seed(1)
# four MiB of normal bfloat16 values, repeated: memory and time do not depend on what the values are
noise = b"".join(struct.pack("<f", random.gauss(0, 0.02))[2:] for _ in range(2 << 20))


def tensors(layers):
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in "qkvo":
            yield f"{at}self_attn.{name}_proj.weight", [HIDDEN, HIDDEN]
        for name, shape in (("gate", [INNER, HIDDEN]), ("up", [INNER, HIDDEN]), ("down", [HIDDEN, INNER])):
            yield f"{at}mlp.{name}_proj.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{name}.weight", [HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCAB, HIDDEN]


def write_model(folder, layers):
    folder.mkdir()
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=1e4, tie_word_embeddings=False,
        hidden_act="silu", attention_bias=False, mlp_bias=False, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16",
    )
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in tensors(layers):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[end, end + 2 * count])
        end += 2 * count
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while end > 0:
            end -= file.write(noise[: min(end, len(noise))])
    return (folder / "model.safetensors").stat().st_size


def anonymous(pid):
    """RssAnon in bytes of the processes that descend from `pid`, the largest of them."""
    parents, sizes = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
                parents[int(entry.name)] = int(fields["PPid"])
                sizes[int(entry.name)] = 1024 * int(fields.get("RssAnon", "0 kB").split()[0])
            except (OSError, ValueError, KeyError):
                pass
    def descends(at):
        while at in parents:
            at = parents[at]
            if at == pid:
                return True
        return False
    return max((size for at, size in sizes.items() if descends(at)), default=0)


def main():
    pipe = os.path.abspath(sys.argv[1])
    sizes = [int(layers) for layers in sys.argv[2:]] or [4, 12, 32]
    scratch = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR", "/var/tmp")))
    try:
        print(f"{'layers':>6} {'model':>9} {'seconds':>8} {'GB/s':>6} {'RssAnon':>9}")
        for layers in sizes:
            size = write_model(scratch / "model", layers)
            pipeline = scratch / "quantize.toml"
            pipeline.write_text('name = "quantize"\n[stages.model]\nkind = "download"\nsource = "model"\n'
                                '[stages.nf4]\nkind = "quantize"\ninputs = { model = "model" }\n')
            run = [pipe, "--quiet", "--store", str(scratch / "store"), "run", str(pipeline)]
            subprocess.run(run + ["--until", "model"], check=True, stdout=subprocess.DEVNULL, cwd=scratch)
            began, peak = time.monotonic(), 0
            process = subprocess.Popen(run, stdout=subprocess.DEVNULL, cwd=scratch)
            while process.poll() is None:
                peak = max(peak, anonymous(process.pid))
                time.sleep(0.05)
            seconds = time.monotonic() - began
            assert process.returncode == 0, "the run failed"
            print(f"{layers:6} {size / 1e9:6.2f} GB {seconds:8.1f} {size / 1e9 / seconds:6.2f} {peak / 1e9:6.2f} GB", flush=True)
            shutil.rmtree(scratch / "model")
            shutil.rmtree(scratch / "store")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
