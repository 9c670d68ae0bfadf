"""Trains the merges of a byte-level BPE, with a heap of pairs and the words they are in: a merge costs what it touches."""

import collections
import heapq

LETTER = r"[^\W\d_]"  # \p{L} for Python's re


def train_merges(counts, n_merges):
    """counts: {piece: how often}. The merges, pairs of bytes, in the order in which they apply."""
    words = [list(bytes([b]) for b in w.encode()) for w in counts]
    freq = list(counts.values())
    pair_n, where = collections.Counter(), collections.defaultdict(set)
    for i, w in enumerate(words):
        for p in zip(w, w[1:]):
            pair_n[p] += freq[i]
            where[p].add(i)
    heap = [(-n, p) for p, n in pair_n.items()]
    heapq.heapify(heap)
    merges = []
    while len(merges) < n_merges and heap:
        n, p = heapq.heappop(heap)
        if -n != pair_n[p]:
            if pair_n[p] > 0:
                heapq.heappush(heap, (-pair_n[p], p))
            continue
        if n == 0:
            break
        merges.append(p)
        a, b = p
        new, touched = a + b, set()
        for i in list(where[p]):
            w, out, k = words[i], [], 0
            while k < len(w):
                if k + 1 < len(w) and w[k] == a and w[k + 1] == b:
                    out.append(new)
                    k += 2
                else:
                    out.append(w[k])
                    k += 1
            if len(out) == len(w):
                continue
            for q in zip(w, w[1:]):
                pair_n[q] -= freq[i]
                touched.add(q)
            for q in zip(out, out[1:]):
                pair_n[q] += freq[i]
                where[q].add(i)
                touched.add(q)
            words[i] = out
        pair_n[p] = 0
        for q in touched:
            if pair_n[q] > 0:
                heapq.heappush(heap, (-pair_n[q], q))
    return merges
