"""A LoRA or DoRA training step of PEFT (forward, backward, clip, AdamW) on the CPU, f32, random weights and ids.

Usage: peft_step.py SHAPE METHOD STEPS [BASE]      SHAPE is 24m or 134m, METHOD lora or dora, BASE f32 or nf4 (by bitsandbytes)
Prints one line of JSON, as `cargo bench --bench model_speed` does.
"""
import json, os, resource, statistics, sys, time, warnings
os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", TRANSFORMERS_VERBOSITY="error")
warnings.filterwarnings("ignore")
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {"24m": (288, 6, 6, 768, 4), "134m": (768, 12, 12, 2048, 2)}
shape, method, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
base, warmup = sys.argv[4] if len(sys.argv) > 4 else "f32", 2
hidden, layers, heads, intermediate, batch = SHAPES[shape]
torch.manual_seed(0)
config = LlamaConfig(vocab_size=32000, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
                     intermediate_size=intermediate, max_position_embeddings=256, tie_word_embeddings=False, use_cache=False)
model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").float()
if base == "nf4":
    import bitsandbytes as bnb

    for path, linear in list(model.model.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            packed = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32,
                                       compress_statistics=False, quant_type="nf4")
            packed.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4")
            parent, name = path.rsplit(".", 1)
            setattr(model.model.get_submodule(parent), name, packed.to("cpu"))
    model.is_loaded_in_4bit = True
targets = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, lora_dropout=0.0, use_dora=method == "dora", task_type="CAUSAL_LM"))
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4)
model.train()
ids = torch.randint(3, 32000, (batch, 256))
seconds = []
for _ in range(warmup + steps):
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
    seconds.append(time.perf_counter() - start)
median = statistics.median(seconds[warmup:])
print(json.dumps(dict(trainable=sum(p.numel() for p in trained), median_step_s=median, tokens_per_s=ids.numel() / median,
                      peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, loss=loss.item())))
