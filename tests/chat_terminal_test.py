"""nibble chat in a terminal of its own: it thinks in dim letters, remembers, can be stopped, and leaves when told."""

import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest

from pocket_cases import SUM
from server_process import PATIENCE_S

PROMPT = b"\x1b[1m> \x1b[0m"
DIM = b"\x1b[2m"


class Terminal:
    def __init__(self, nibble, *arguments):
        self.screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [str(nibble), "chat", *arguments], stdin=inside, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)

    def read_until(self, *marks, timeout_s=PATIENCE_S):
        """All that is written until each mark was seen, one after the other."""
        seen, end, deadline = b"", 0, time.monotonic() + timeout_s
        for mark in marks:
            while (place := seen.find(mark, end)) < 0:
                assert time.monotonic() < deadline, seen
                if select.select([self.screen], [], [], 0.1)[0]:
                    seen += os.read(self.screen, 4096)
            end = place + len(mark)
        return seen

    def say(self, text):
        os.write(self.screen, text.encode() + b"\n")

    def ask(self, text):
        """The answer's text, without colours: from the question's echo to the next prompt."""
        self.say(text)
        seen = self.read_until(text.encode(), b"a second)", PROMPT)
        plain = re.sub(rb"\x1b\[[0-9;]*m", b"", seen).replace(b"\r\n", b"\n").decode()
        return plain.partition(text)[2]

    def wait(self):
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            os.close(self.screen)


@pytest.fixture
def terminal(nibble):
    opened = []

    def start(*arguments):
        opened.append(Terminal(nibble, *arguments))
        opened[-1].read_until(PROMPT)
        return opened[-1]

    yield start
    for one in opened:
        one.process.kill()
        one.process.wait()


def test_a_conversation(terminal):
    chat = terminal()
    assert f"{SUM.reasoning}\n\n{SUM.content}\n" in chat.ask(SUM.question)
    chat.say("What is the sum of 1 and 1?")
    assert DIM in chat.read_until(b"a second)", PROMPT)
    assert "interesting" in chat.ask("I am a nurse.")
    assert "You are a nurse." in chat.ask("What is my job?")
    chat.say("/clear")
    chat.read_until(PROMPT)
    assert "You are a nurse." not in chat.ask("What is my job?")
    chat.say("word " * 700)  # a terminal takes lines of up to 4095 bytes
    chat.read_until(b"a second)", PROMPT)
    chat.say("/exit")
    assert chat.wait() == 0


def test_end_of_input_leaves(terminal):
    chat = terminal("--hide-thinking")
    assert SUM.reasoning not in chat.ask(SUM.question)
    os.write(chat.screen, b"\x04")
    assert chat.wait() == 0


def test_interrupt_stops_the_answer_and_then_leaves(terminal):
    """On the slow reference backend, so that there is an answer to interrupt."""
    chat = terminal("--device", "reference")
    chat.say("Order the numbers from largest to smallest: 47, 492, 640, 249, 808, 750, 953, 476, 499")
    chat.read_until(DIM)
    chat.process.send_signal(signal.SIGINT)
    seen = chat.read_until(PROMPT, timeout_s=60)
    assert b"953, 808" not in seen
    assert chat.process.poll() is None
    chat.process.send_signal(signal.SIGINT)
    assert chat.wait() == 0
