"""Alpaca rows → prompts → ids and labels, as PEFT scripts do it: `datasets.map` over all cores with the fast tokenizer.

Usage: datasets_tokenize.py ROWS.json TOKENIZER_FOLDER OUT_FOLDER     prints one line of JSON; imports are not timed
"""
import json, os, resource, sys, time
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
import datasets
from transformers import AutoTokenizer

rows, tokenizer, out = sys.argv[1:4]
datasets.disable_caching()
HEAD = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n### Instruction:\n{}\n\n"
tokenizer = AutoTokenizer.from_pretrained(tokenizer)


def prompt(instruction, given):
    if given:
        return HEAD.format(", paired with an input that provides further context", instruction) + f"### Input:\n{given}\n\n### Response:\n"
    return HEAD.format("", instruction) + "### Response:\n"


def encode(batch):
    prompts = [prompt(*pair) for pair in zip(batch["instruction"], batch["input"])]
    short = tokenizer(prompts, truncation=True, max_length=512)["input_ids"]
    ids = tokenizer([p + o for p, o in zip(prompts, batch["output"])], truncation=True, max_length=511)["input_ids"]
    ids = [row + [tokenizer.eos_token_id] for row in ids]
    return {"input_ids": ids, "labels": [[-100] * len(p) + row[len(p):] for p, row in zip(short, ids)]}


start = time.perf_counter()
data = datasets.load_dataset("json", data_files=rows, split="train", cache_dir=out + "-cache")
data = data.map(encode, batched=True, num_proc=os.cpu_count(), remove_columns=data.column_names)
data.save_to_disk(out)
print(json.dumps(dict(seconds=time.perf_counter() - start, rows=len(data), peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)))
