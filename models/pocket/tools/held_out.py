#!/usr/bin/env python3
"""Writes new problems of gen.py's train split in the form of chat.jsonl, none of which stands in eval/: a judge for
settings of quantizers that leaves the evaluation alone.

  held_out.py OUT.jsonl [PROBLEMS=20] [PROSE.txt]     of each family; needs tokenizers

PROSE.txt gets paragraphs of res/prose.txt that calibration.jsonl does not have, for `nibble eval --perplexity`.
"""

import json
import pathlib
import random
import sys

from tokenizers import Tokenizer

import gen

POCKET = pathlib.Path(__file__).resolve().parent.parent


SEED = 20261
PROSE_CHARACTERS = 36000


def spans_of(sample, encoding):
    """Ranges of tokens that begin in what is trained."""
    spans, at, trained = [], 0, []
    for text, on, _ in gen.segments(sample):
        if on:
            trained.append((at, at + len(text)))
        at += len(text)
    for k, (begin, _) in enumerate(encoding.offsets):
        if any(a <= begin < b for a, b in trained):
            if spans and spans[-1][1] == k:
                spans[-1][1] = k + 1
            else:
                spans.append([k, k + 1])
    return spans


def problems(family, count, known):
    """Problems of the family whose last question is not in `known`."""
    number = 0
    while count > 0:
        sample = gen.make(family, number, SEED, "train")
        number += 1
        question = [m["content"] for m in sample["messages"] if m["role"] == "user"][-1]
        if json.dumps(question, ensure_ascii=False)[1:-1] not in known:
            count -= 1
            yield number - 1, sample


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
    out, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    known = "".join(path.read_text(encoding="utf-8") for path in sorted((POCKET / "eval").glob("*.jsonl")))
    with open(out, "w", encoding="utf-8") as file:
        for family, (_, weight) in gen.FAMILIES.items():
            if weight == 0:
                continue
            for number, sample in problems(family, count, known):
                encoding = tokenizer.encode(gen.render(sample), add_special_tokens=False)
                row = {"id": f"{family}/{number}", "family": family, "ids": encoding.ids, "spans": spans_of(sample, encoding)}
                file.write(json.dumps(row) + "\n")
    if len(sys.argv) > 3:
        write_prose(sys.argv[3])


if __name__ == "__main__":
    main()
