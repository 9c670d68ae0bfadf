"""Lists and strings: sorting, sums and filters, letters of words, exact copies."""

from families.samples import ask
from families.words import WORDS


def sort(r):
    n = r.randint(3, 9)
    down = r.random() < 0.4
    if r.random() < 0.6:
        items = [str(x) for x in r.sample(range(1, 1000), n)]
        order = sorted(items, key=int, reverse=down)
        what = "numbers"
    else:
        items = r.sample(WORDS[:1200], n)
        order = sorted(items, reverse=down)
        what = "words"
    how = {
        ("numbers", False): "from smallest to largest",
        ("numbers", True): "from largest to smallest",
        ("words", False): "alphabetically",
        ("words", True): "in reverse alphabetical order",
    }[what, down]
    left, lines = list(items), []
    for x in order:
        left.remove(x)
        if left:
            lines.append(f"{x} | {' '.join(left)}")
    q = r.choice(("Sort these {w} {h}: {s}", "Put these {w} in order {h}: {s}", "Order the {w} {h}: {s}")).format(
        w=what, h=how, s=", ".join(items)
    )
    return ask(r, f"{how}:{','.join(items)}", n, q, "\n".join(lines + [order[-1]]), ", ".join(order))


def listops(r):
    n = r.randint(3, 8)
    items = [r.randint(1, 60) for _ in range(n)]
    op = r.choice(("sum", "max", "min", "count", "unique", "last", "even"))
    shown = ", ".join(map(str, items))
    if op == "sum":
        t, lines = items[0], []
        for x in items[1:]:
            lines.append(f"{t}+{x}={t + x}")
            t += x
        q, think, answer = f"What is the sum of {shown}?", "\n".join(lines), str(t)
    elif op in ("max", "min"):
        f = max if op == "max" else min
        best, lines = items[0], [str(items[0])]
        for x in items[1:]:
            best = f(best, x)
            lines.append(f"{x}: {best}")
        q, think, answer = (
            f"What is the {'largest' if op == 'max' else 'smallest'} of {shown}?",
            "\n".join(lines),
            str(best),
        )
    elif op == "count":
        q, think, answer = (
            f"How many numbers are in this list: {shown}?",
            " ".join(f"{x}({i})" for i, x in enumerate(items, 1)),
            str(n),
        )
    elif op == "unique":
        items[r.randrange(1, n)] = items[0]
        shown = ", ".join(map(str, items))
        uniq = list(dict.fromkeys(items))
        q = f"Remove the duplicates, keep the order: {shown}"
        think = "\n".join(f"{x}: {'again' if x in items[:i] else 'new'}" for i, x in enumerate(items))
        answer = ", ".join(map(str, uniq))
    elif op == "last":
        k = r.randint(1, n)
        q = f"What is number {k} in this list: {shown}?"
        think, answer = " ".join(f"{i}:{x}" for i, x in enumerate(items[:k], 1)), str(items[k - 1])
    else:
        ev = [x for x in items if x % 2 == 0]
        q = f"List the even numbers in: {shown}"
        think = "\n".join(f"{x}: {'even' if x % 2 == 0 else 'odd'}" for x in items)
        answer = ", ".join(map(str, ev)) or "none"
    return ask(r, f"{op}:{shown}", n, q, think, answer)


def spell(r):
    """Letters of a word: spelling, reversing, counting, first and last."""
    word = (
        r.choice(WORDS)
        if r.random() < 0.85
        else "".join(r.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(r.randint(3, 8)))
    )
    letters = " ".join(word)
    op = r.choices(("spell", "reverse", "count", "length", "ends", "vowels", "upper"), (3, 3, 3, 2, 1, 2, 2))[0]
    if op == "spell":
        q = r.choice((f"Spell the word {word}.", f"Spell {word} letter by letter."))
        think, answer = letters, "-".join(word)
    elif op == "reverse":
        q = r.choice((f"Write {word} backwards.", f"Reverse the word {word}.", f"What is {word} spelled backwards?"))
        think, answer = f"{letters}\n{' '.join(word[::-1])}", word[::-1]
    elif op == "count":
        c = r.choice(word) if r.random() < 0.8 else r.choice("abcdefghijklmnopqrstuvwxyz")
        n, parts = 0, []
        for x in word:
            n += x == c
            parts.append(f"{x}{n}")
        q = r.choice(
            (
                f"How many times does the letter {c} appear in {word}?",
                f"Count the letter {c} in the word {word}.",
                f"How many {c}'s are in {word}?",
            )
        )
        think, answer = " ".join(parts), str(n)
        return ask(r, f"count {c}:{word}", len(word), q, think, answer)
    elif op == "length":
        q = r.choice((f"How many letters does {word} have?", f"How long is the word {word}?"))
        think, answer = " ".join(f"{x}{i}" for i, x in enumerate(word, 1)), f"{len(word)} letters"
    elif op == "ends":
        i = r.choice((0, -1))
        q = f"What is the {'first' if i == 0 else 'last'} letter of {word}?"
        think, answer = letters, word[i]
    elif op == "vowels":
        v = [x for x in word if x in "aeiou"]
        q = f"Which vowels are in the word {word}?"
        think, answer = letters, ", ".join(v) or "none"
    else:
        q, think, answer = f"Write {word} in capital letters.", letters, word.upper()
    return ask(r, f"{op}:{word}", len(word), q, think, answer, direct=op in ("spell", "ends", "upper"))


def copy(r):
    n = r.randint(3, 14)
    kind = r.random()
    if kind < 0.4:
        text = " ".join(r.choice(WORDS) for _ in range(n))
    elif kind < 0.7:
        text = "".join(r.choice("0123456789") for _ in range(n * 2))
    else:
        text = "-".join(
            "".join(r.choice("abcdefghjkmnpqrstuvwxyz23456789") for _ in range(4)) for _ in range(max(1, n // 3))
        )
    q = r.choice(("Repeat exactly: {t}", "Say this back to me: {t}", "Copy this text: {t}", "Echo: {t}")).format(
        t=text
    )
    return ask(r, text, n, q, "Repeat the text.", text, direct=True)
