"""Loads what `pipe` wrote with transformers, PEFT and bitsandbytes, and lets them write what `pipe` must read.

Usage: peers.py EXPORTS CASES
EXPORTS holds folders as `pipe export` made them: base, base8, base4-*, checkpoints-*, merged-*.
Each case written to CASES is `NAME/model`, perhaps `NAME/adapter`, and `NAME/logits.safetensors` with
`input_ids` [2,17] and `logits` [2,17,vocab] as the peer computes them in float32 on the CPU. The Rust test
`interop` (stages/neural/tests/interop.rs) computes the same logits and compares.
"""
import pathlib, shutil, sys

import torch
from bitsandbytes.functional import int8_vectorwise_dequant
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

exports, cases = map(pathlib.Path, sys.argv[1:3])
torch.manual_seed(0)
torch.set_num_threads(1)


def load(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options).eval()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # that kernel multiplies in bfloat16, whatever is asked for
    return model


def case(name, model, model_folder, adapter_folder=None):
    folder = cases / name
    shutil.copytree(model_folder, folder / "model")
    if adapter_folder:
        shutil.copytree(adapter_folder, folder / "adapter")
    ids = torch.randint(3, model.config.vocab_size, (2, 17), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float().contiguous()
    save_file({"input_ids": ids, "logits": logits}, folder / "logits.safetensors")
    print(f"{name}: |logits| ≤ {logits.abs().max():.4f}")


base = load(exports / "base")
case("float", base, exports / "base")
tokenizer = AutoTokenizer.from_pretrained(exports / "base")
text = "Reverse the words."
assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text, "tokenizer round trip"

for quantized in sorted(exports.glob("base4-*")):
    double = quantized.name.split("-", 1)[1]
    model = load(quantized)
    assert model.is_loaded_in_4bit, "transformers did not see a 4-bit model"
    case(f"nf4-{double}", model, quantized)
for checkpoints in sorted(exports.glob("checkpoints-*")):
    double, method = checkpoints.name.split("-", 1)[1].split(",")
    step = sorted(checkpoints.glob("step-*"))[-1]
    quantized = exports / f"base4-{double}"
    case(f"adapter-{double}-{method}", PeftModel.from_pretrained(load(quantized), step).eval(), quantized, step)
for merged in sorted(exports.glob("merged-*")):
    case(merged.name.replace(",", "-"), load(merged), merged)

# 8 bit: the codes are the same on both sides. Logits are those of the weights that the codes stand for:
# bitsandbytes rounds the activations as well.
ours, theirs = load(exports / "base8"), load(exports / "base", quantization_config=BitsAndBytesConfig(load_in_8bit=True))
stands_for = load(exports / "base")
eights = [name for name, module in theirs.named_modules() if isinstance(module, Linear8bitLt)]
assert len(eights) == 7 * theirs.config.num_hidden_layers, eights
for name in eights:
    state, own = ours.get_submodule(name).state_dict(), theirs.get_submodule(name).state_dict()
    assert state["weight"].dtype == torch.int8 and torch.equal(state["weight"], own["weight"]), name
    assert torch.equal(state["SCB"], own["SCB"]), name
    stands_for.get_submodule(name).weight.data = int8_vectorwise_dequant(own["weight"], own["SCB"])
case("int8", stands_for, exports / "base8")
theirs.save_pretrained(cases.parent / "theirs-int8")
case("theirs-int8", stands_for, cases.parent / "theirs-int8")

# The other way round: theirs, read here.
for double in (False, True):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=torch.float32)
    model = load(exports / "base", quantization_config=config)
    theirs = cases.parent / f"theirs-nf4-{double}"
    model.save_pretrained(theirs)
    case(f"theirs-nf4-{double}", model, theirs)
for dora in (False, True):
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_dora=dora, use_rslora=True, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load(exports / "base"), lora).eval()
    theirs = cases.parent / f"theirs-{'dora' if dora else 'lora'}"
    model.save_pretrained(theirs)
    case(theirs.name, model, exports / "base", theirs)
