#!/usr/bin/env python3
"""Streams of a running server: how fast tokens arrive, alone and with many at once.

    scripts/load.py --port 8000 --streams 64 --prompt 1000 --tokens 256
    scripts/load.py --start build/nibble serve FOLDER       time from the start of the process to the first token

Prompts are random token ids, each stream's its own; answers go on past stop ids. "while all decode" counts from the
last stream's first token to the first stream's end: that can be compared with a row of `nibble bench`, since before
and after it fewer streams decode, beside the prompts of others.
"""

import argparse
import http.client
import json
import random
import selectors
import socket
import subprocess
import sys
import time


class Stream:
    """One request; `times` has the arrival of each token."""

    def __init__(self, args, number):
        ids = random.Random(args.seed * 1000 + number)
        body = json.dumps(
            {
                "prompt": [ids.randrange(args.vocab) for _ in range(args.prompt)],
                "max_tokens": args.tokens,
                "temperature": args.temperature,
                "ignore_eos": True,
                "stream": True,
                "return_token_ids": True,  # a token may bring no text, when it is a part of a character
            }
        ).encode()
        self.times, self.done, self.rest = [], False, b""
        self.started = time.perf_counter()
        self.socket = socket.create_connection((args.host, args.port))
        self.socket.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: nibble\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        self.socket.setblocking(False)

    def read(self):
        data = self.socket.recv(1 << 16)
        now = time.perf_counter()
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        if not self.times and lines and b" 200 " not in lines[0] and lines[0].startswith(b"HTTP"):
            sys.exit("the server answers: " + data.decode(errors="replace"))
        for line in lines:
            event = line.strip().removeprefix(b"data: ")
            if event == b"[DONE]":
                self.done = True
            elif event.startswith(b'{"error"'):
                sys.exit("the server answers: " + event.decode(errors="replace"))
            elif event.startswith(b"{"):
                self.times += [now] * sum(len(choice["token_ids"]) for choice in json.loads(event)["choices"])
        if not data and not self.done:
            sys.exit("the server hung up")


def run(args):
    selector = selectors.DefaultSelector()
    streams = [Stream(args, number) for number in range(args.streams)]
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    left = len(streams)
    while left:
        for key, _ in selector.select():
            key.data.read()
            if key.data.done:
                selector.unregister(key.fileobj)
                left -= 1
    return streams


def report(streams):
    first = [stream.times[0] for stream in streams]
    last = [stream.times[-1] for stream in streams]
    tokens = sum(len(stream.times) for stream in streams)
    waits = sorted(t - stream.started for t, stream in zip(first, streams))
    begin, end = max(first), min(last)
    inside = sum(begin < t <= end for stream in streams for t in stream.times)
    own = sum((len(stream.times) - 1) / (b - a) for stream, a, b in zip(streams, first, last) if b > a)
    gaps = sorted(b - a for stream in streams for a, b in zip(stream.times, stream.times[1:]))
    print(f"{len(streams)} streams, {tokens} tokens in {max(last) - min(s.started for s in streams):.3f} s")
    print(f"  first token   median {waits[len(waits) // 2] * 1e3:.1f} ms, last {waits[-1] * 1e3:.1f} ms")
    if gaps:
        late = gaps[len(gaps) * 99 // 100]
        print(f"  next token    median {gaps[len(gaps) // 2] * 1e3:.2f} ms, 99 % {late * 1e3:.2f} ms")
        print(f"  in all        {tokens / (max(last) - min(first)):.1f} tokens/s from the first to the last")
        print(f"  sum of own    {own:.1f} tokens/s, prompts of the others in between")
    if end > begin:
        print(f"  while all decode  {inside / (end - begin):.1f} tokens/s over {end - begin:.3f} s")


def measure_start(args):
    """From the start of the process to the first token of one request."""
    started = time.perf_counter()
    server = subprocess.Popen([*args.start, "--port", str(args.port)], stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                connection = http.client.HTTPConnection(args.host, args.port)
                connection.request("POST", "/v1/completions", json.dumps({"prompt": [5, 6, 7], "max_tokens": 1}))
                break
            except ConnectionError:
                if server.poll() is not None:
                    sys.exit(f"the server ended with status {server.returncode}")
                time.sleep(0.005)
        ready = time.perf_counter()
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            sys.exit("the server answers: " + text)
        print(f"listens after {ready - started:.3f} s, first token after {time.perf_counter() - started:.3f} s")
    finally:
        server.terminate()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--streams", type=int, default=1, help="at once")
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each answer")
    parser.add_argument("--vocab", type=int, default=6000, help="ids of prompts are below it")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1, help="other prompts, which no prefix cache has")
    parser.add_argument("--start", nargs=argparse.REMAINDER, metavar="COMMAND", help="of a server")
    args = parser.parse_args()
    if args.start:
        measure_start(args)
    else:
        report(run(args))


if __name__ == "__main__":
    main()
