#!/usr/bin/env python3
"""Writes the last lines of calibration.jsonl in the form of chat.jsonl, all tokens counted: a judge for settings of
quantizers that calibrate on the lines before (`nibble quantize --samples 384`).

  held_out.py OUT.jsonl [LINES=128] [PROSE.txt]     needs tokenizers

PROSE.txt gets paragraphs of res/prose.txt that calibration.jsonl does not have, for `nibble eval --perplexity`.
"""

import json
import pathlib
import random
import sys

from tokenizers import Tokenizer

import gen

POCKET = pathlib.Path(__file__).resolve().parent.parent


PROSE_CHARACTERS = 36000


def write_prose(path):
    calibration = (POCKET / "eval" / "calibration.jsonl").read_text(encoding="utf-8")
    lines = (POCKET / "tools" / "res" / "prose.txt").read_text(encoding="utf-8").splitlines()
    seen = lambda text: text.replace('"', '\\"') in calibration  # noqa: E731
    paragraphs = [p.strip() for p in lines if len(p.strip()) > 200]
    paragraphs = [p for p in paragraphs if not seen(p[:60]) and not seen(p[60:110])]
    random.Random(5).shuffle(paragraphs)
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() <= PROSE_CHARACTERS:
            file.write(paragraphs.pop(0) + "\n")


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
    if len(sys.argv) > 3:
        write_prose(sys.argv[3])


if __name__ == "__main__":
    main()
