"""Golden token ids for `tokenize`, made with the Python package `tokenizers` (0.23) alone.

    python make_tokenize.py > tokenize.json

`tokenizer/` was trained by this project's `init`; `rows.json` is made up. The prompt templates are
those of stanford_alpaca's train.py (`alpaca-stanford`) and of alpaca-lora (`alpaca`: one line break
more at the end). ids = what the tokenizer makes of prompt + output, cut, and 2 (`</s>`) if it fits.
"""
import json
import os

from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
HEAD = "Below is an instruction that describes a task"
INPUT = HEAD + ", paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
BARE = HEAD + ". Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
CUTOFF = 256

tokenizer = Tokenizer.from_file(os.path.join(HERE, "tokenizer", "tokenizer.json"))
rows = json.load(open(os.path.join(HERE, "rows.json")))
golden = {"cutoff": CUTOFF, "templates": {}}
for name, end in (("alpaca", "\n"), ("alpaca-stanford", "")):
    out = []
    for row in rows:
        prompt = (INPUT if row["input"] else BARE).format(**row) + end
        full = tokenizer.encode(prompt + row["output"]).ids + [2]
        ids = full[:CUTOFF]
        out.append({"prompt_len": min(len(tokenizer.encode(prompt).ids), len(ids)), "ids": ids})
    golden["templates"][name] = out
print("{" + f'"cutoff":{CUTOFF},"templates":' + "{")
for i, (name, out) in enumerate(golden["templates"].items()):
    print(f'"{name}":[')
    print(",\n".join(json.dumps(row, separators=(",", ":")) for row in out))
    print("]" + ("," if i == 0 else ""))
print("}}")
