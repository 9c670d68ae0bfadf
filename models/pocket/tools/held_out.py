#!/usr/bin/env python3
"""Writes the last lines of calibration.jsonl in the form of chat.jsonl, all tokens counted: a judge for settings of
quantizers that calibrate on the lines before (`nibble quantize --samples 384`).

  held_out.py OUT.jsonl [LINES=128]     needs tokenizers
"""

import json
import pathlib
import sys

from tokenizers import Tokenizer

import gen

POCKET = pathlib.Path(__file__).resolve().parent.parent


def main():
    out, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    lines = (POCKET / "eval" / "calibration.jsonl").read_text(encoding="utf-8").splitlines()[-count:]
    with open(out, "w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            row = json.loads(line)
            text = gen.render({"tools": row.get("tools"), "messages": row["messages"], "train": []})
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            file.write(json.dumps({"id": f"{row['family']}/{number}", "family": row["family"], "ids": ids, "spans": [[2, len(ids)]]}) + "\n")


if __name__ == "__main__":
    main()
