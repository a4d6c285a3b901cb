"""Greedy generation of transformers on the CPU, f32, one row, 16 tokens of prompt, with its key-value cache.

Usage: transformers_generate.py SHAPE TOKENS RUNS      prints one line of JSON
"""
import json, os, resource, statistics, sys, time, warnings
os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TRANSFORMERS_VERBOSITY="error")
warnings.filterwarnings("ignore")
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {"24m": (288, 6, 6, 768), "134m": (768, 12, 12, 2048)}
hidden, layers, heads, intermediate = SHAPES[sys.argv[1]]
tokens, runs = int(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
                     intermediate_size=intermediate, max_position_embeddings=1024, tie_word_embeddings=False, eos_token_id=None, pad_token_id=0)
model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").float().eval()
ids = torch.arange(3, 19)[None]
seconds = []
with torch.inference_mode():
    for _ in range(2 + runs):
        start = time.perf_counter()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, use_cache=True)
        seconds.append(time.perf_counter() - start)
assert out.shape[1] == 16 + tokens
print(json.dumps(dict(tokens_per_s=tokens / statistics.median(seconds[2:]), peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)))
