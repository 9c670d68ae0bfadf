"""Reasoning over a few sentences or lines of code: word problems, who is where, orderings, program traces."""

from families.samples import ask
from families.words import FOODS, NAMES, PLACES, THINGS, plural


def word_problem(r):
    a, b = r.sample(NAMES, 2)
    x, y, z = r.randint(3, 60), r.randint(2, 40), r.randint(2, 9)
    f = r.choice(FOODS + THINGS)
    fs = plural(f)
    pick = r.randrange(10)
    if pick == 0:
        q = f"{a} has {x} {fs}. {b} gives {a} {y} more. How many {fs} does {a} have now?"
        think, n = [f"{x}+{y}={x + y}"], x + y
    elif pick == 1:
        x += y
        q = f"{a} has {x} {fs} and gives {y} of them to {b}. How many {fs} does {a} have left?"
        think, n = [f"{x}-{y}={x - y}"], x - y
    elif pick == 2:
        q = f"{a} buys {z} boxes with {y} {fs} in each box. How many {fs} does {a} have?"
        think, n = [f"{z}*{y}={z * y}"], z * y
    elif pick == 3:
        q = f"{a} shares {z * y} {fs} equally among {z} friends. How many {fs} does each friend get?"
        think, n = [f"{z * y}/{z}={y}"], y
    elif pick == 4:
        q = f"{a} has {x} {fs}. {b} has {y} more than {a}. How many {fs} do they have together?"
        think, n = [f"{b}: {x}+{y}={x + y}", f"{x}+{x + y}={2 * x + y}"], 2 * x + y
    elif pick == 5:
        e = min(x, z * y)
        q = f"{a} picks {z} {fs} every day for {y} days and then eats {e} of them. How many {fs} are left?"
        think, n = [f"{z}*{y}={z * y}", f"{z * y}-{e}={z * y - e}"], z * y - e
    elif pick == 6:
        cost, k = r.randint(2, 12), r.randint(2, 9)
        pay = cost * k + r.randint(1, 40)
        q = (
            f"One {f} costs {cost} dollars. {a} buys {k} of them and pays with {pay} dollars. "
            f"How much money does {a} get back?"
        )
        think, n, fs = (
            [f"{k}*{cost}={k * cost}", f"{pay}-{k * cost}={pay - k * cost}"],
            pay - k * cost,
            "dollars",
        )
    elif pick == 7:
        q = f"{a} is {x} years old. {b} is {y} years older. How old will {b} be in {z} years?"
        think, n, fs = [f"{x}+{y}={x + y}", f"{x + y}+{z}={x + y + z}"], x + y + z, "years"
    elif pick == 8:
        q = f"A car drives {x} km each hour. How far does it drive in {z} hours?"
        think, n, fs = [f"{x}*{z}={x * z}"], x * z, "km"
    else:
        k = r.randint(2, 5)
        t = min(z, x - 1)
        q = (
            f"There are {x} {fs} in a basket. {a} takes {t} and {b} puts in {k} times as many as {a} took. "
            f"How many {fs} are in the basket?"
        )
        think, n = [f"{x}-{t}={x - t}", f"{k}*{t}={k * t}", f"{x - t}+{k * t}={x - t + k * t}"], x - t + k * t
    unit = fs if n != 1 or fs in ("km", "dollars", "years") else f
    return ask(r, q, len(think), q, "\n".join(think), f"{n} {unit}")


def where(r):
    """Who is where, and where the things are that they carry."""
    people, places, things = r.sample(NAMES, r.randint(2, 3)), r.sample(PLACES, 4), r.sample(THINGS, 2)
    at, holds, rest, story = {}, {}, {}, []
    for _ in range(r.randint(4, 10)):
        p = r.choice(people)
        mine = [t for t in holds if holds[t] == p]
        free = [t for t in things if t not in holds and rest.get(t) in (None, at.get(p))]
        if mine and r.random() < 0.3:
            t = mine[0]
            del holds[t]
            rest[t] = at[p]
            story.append(f"{p} puts down the {t}.")
        elif p in at and free and r.random() < 0.45:
            holds[free[0]] = p
            story.append(f"{p} picks up the {free[0]}.")
        else:
            at[p] = r.choice([x for x in places if x != at.get(p)])
            story.append(f"{p} {r.choice(('goes', 'walks', 'moves'))} to the {at[p]}.")
    seen = [t for t in things if t in holds or t in rest]
    if seen and r.random() < 0.6:
        t = r.choice(seen)
        if t in holds:
            think, answer = (
                f"{holds[t]} has the {t}. {holds[t]} is in the {at[holds[t]]}.",
                f"The {t} is in the {at[holds[t]]}.",
            )
        else:
            think, answer = f"The {t} was put down in the {rest[t]}.", f"The {t} is in the {rest[t]}."
        q, level = f"Where is the {t}?", 2
    else:
        p = r.choice(sorted(at))
        think, answer, q, level = (
            f"Last: {p} went to the {at[p]}.",
            f"{p} is in the {at[p]}.",
            f"Where is {p}?",
            1,
        )
    text = " ".join(story)
    return ask(r, text + q, level * 100 + len(story), f"{text} {q}", think, answer, direct=True)


def taller(r):
    n = r.randint(3, 5)
    order = r.sample(NAMES, n)
    adj, most, least = r.choice(
        (
            ("taller", "tallest", "shortest"),
            ("older", "oldest", "youngest"),
            ("faster", "fastest", "slowest"),
            ("stronger", "strongest", "weakest"),
        )
    )
    pairs = [f"{order[i]} is {adj} than {order[i + 1]}." for i in range(n - 1)]
    r.shuffle(pairs)
    top = r.random() < 0.5
    q = f"{' '.join(pairs)} Who is the {most if top else least}?"
    return ask(r, q, n, q, " > ".join(order), order[0] if top else order[-1])


def program(r):
    """The output of a short Python program."""
    names = r.sample("abcdnxyz", 3)
    env, lines, trace = {}, [], []
    for i in range(r.randint(2, 5)):
        v = names[i % 3]
        if not env or r.random() < 0.3:
            env[v] = r.randint(1, 20)
            lines.append(f"{v} = {env[v]}")
        else:
            s, op, k = r.choice(sorted(env)), r.choice("+-*"), r.randint(2, 9)
            val = {"+": env[s] + k, "-": env[s] - k, "*": env[s] * k}[op]
            lines.append(f"{v} = {s} {op} {k}")
            env[v] = val
        trace.append(f"{v}={env[v]}")
    if r.random() < 0.5:
        v, k, d = r.choice(sorted(env)), r.randint(2, 4), r.randint(1, 9)
        lines += [f"for i in range({k}):", f"    {v} = {v} + {d}"]
        for _ in range(k):
            env[v] += d
            trace.append(f"{v}={env[v]}")
    v = r.choice(sorted(env))
    code = "\n".join(lines + [f"print({v})"])
    return ask(r, code, len(trace), f"What does this program print?\n\n{code}", "\n".join(trace), str(env[v]))
