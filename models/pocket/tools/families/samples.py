"""Messages and samples, as every family makes them; gen.py says what a sample holds."""

NO_THINK_SHARE = 0.2  # samples of direct-answer families rendered with thinking off


def user(text):
    return {"role": "user", "content": text}


def assistant(text, think=None, calls=None):
    m = {"role": "assistant", "content": text}
    if think:
        m["reasoning_content"] = think
    if calls:
        m["tool_calls"] = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    return m


def system(text):
    return {"role": "system", "content": text}


def sample(key, level, messages, answer=None, score="exact", tools=None, train=None):
    last = len(messages) - 1
    return {
        "level": level,
        "key": key,
        "tools": tools,
        "messages": messages,
        "train": [last] if train is None else train,
        "answer": messages[last]["content"] if answer is None else answer,
        "score": score,
    }


def ask(r, key, level, question, think, answer, score="exact", direct=False):
    """One question and its answer; what can be answered directly also comes with thinking off."""
    assert think, "the default of the chat format is to think"
    if direct and r.random() < NO_THINK_SHARE:
        think = None
    return sample(key, level, [user(question), assistant(answer, think)], score=score)


def digits_number(r, n):
    return r.randrange(10 ** (n - 1) if n > 1 else 0, 10**n)
