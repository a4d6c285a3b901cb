"""NF4 quantization of a bfloat16 checkpoint with bitsandbytes on the CPU, tensor by tensor, packed weights saved.

Usage: bitsandbytes_quantize.py MODEL.safetensors OUT.safetensors     prints one line of JSON; imports are not timed
"""
import json, os, resource, sys, time
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import torch
import bitsandbytes.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

start, out = time.perf_counter(), {}
with safe_open(sys.argv[1], "pt") as file:
    for name in file.keys():
        tensor = file.get_tensor(name)
        if name.endswith("_proj.weight"):
            packed, state = F.quantize_4bit(tensor, quant_type="nf4", blocksize=64, compress_statistics=False)
            out[name], out[name + ".absmax"] = packed, state.absmax
        else:
            out[name] = tensor
save_file(out, sys.argv[2])
print(json.dumps(dict(seconds=time.perf_counter() - start, peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)))
