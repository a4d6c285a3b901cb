"""Golden figures for `analyze` with `definition = "as-published"`: NumPy alone, float64.

    python make_published.py ../../../../tests/fixtures > published.json

The formulas are those of github.com/shreyassks/DoRA's notebooks: rows have norms, columns have
cosines, LoRA adds 2r·(BA)ᵀ, DoRA checkpoints pile up in the order of their names, layers 1 to 6,
six decimals.
"""
import glob
import json
import os
import struct
import sys

import numpy as np


def load(path):
    raw = open(path, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    out = {}
    for name, t in json.loads(raw[8:8 + size]).items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            assert t["dtype"] == "F32"
            out[name] = np.frombuffer(raw[8 + size + a:8 + size + b], np.float32).reshape(t["shape"]).astype(np.float64)
    return out


fixtures = sys.argv[1]
base = load(os.path.join(fixtures, "tiny-llama/model.safetensors"))
layers = json.load(open(os.path.join(fixtures, "tiny-llama/config.json")))["num_hidden_layers"]
golden = {}
for kind in ("lora", "dora"):
    points = []
    steps = [int(os.path.basename(p)[5:]) for p in glob.glob(os.path.join(fixtures, kind + "-train/wd0.01/step-*"))]
    for layer in range(1, min(7, layers)):
        path = f"model.layers.{layer}.self_attn.q_proj"
        w0 = base[path + ".weight"]
        w = w0
        for step in sorted(steps, key=lambda s: f"checkpoint-{s}"):
            folder = os.path.join(fixtures, f"{kind}-train/wd0.01/step-{step:02d}")
            cfg = json.load(open(os.path.join(folder, "adapter_config.json")))
            t = load(os.path.join(folder, "adapter_model.safetensors"))
            a, b = (t[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
            if kind == "lora":
                w = w0 + 2 * a.shape[0] * (a.T @ b.T)
            else:
                v = w + cfg["lora_alpha"] / cfg["r"] * (b @ a)
                m = t[f"base_model.model.{path}.lora_magnitude_vector"]
                w = (m / np.linalg.norm(v, axis=1))[:, None] * v
            n0, n1 = (np.linalg.norm(x, axis=1, keepdims=True) for x in (w0, w))
            d0, d1 = w0 / n0, w / n1
            cos = (d0 * d1).sum(0) / (np.linalg.norm(d0, axis=0) * np.linalg.norm(d1, axis=0))
            k = w0.shape[0]
            points.append({"layer": layer, "step": step, "dM": round(float(np.abs(n1 - n0).sum() / k), 6),
                           "dD": round(float((1 - cos).sum() / k), 6)})
    r = np.corrcoef([p["dM"] for p in points], [p["dD"] for p in points])[0, 1]
    golden[kind] = {"points": points, "pearson": float(r)}
print(json.dumps(golden, indent=1))
