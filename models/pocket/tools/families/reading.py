"""Finding facts in given text: sentences to JSON, tables, codes hidden in filler."""

import json

from families.samples import ask
from families.words import ANIMALS, CITIES, COLORS, DAYS, FOODS, JOBS, NAMES, PLACES, THINGS, article, plural


def extract(r):
    """Facts from a sentence into JSON with the asked keys, in the asked order."""
    name, city, job, animal, color = (
        r.choice(NAMES),
        r.choice(CITIES),
        r.choice(JOBS),
        r.choice(ANIMALS),
        r.choice(COLORS),
    )
    age, n, price, item = r.randint(18, 80), r.randint(2, 30), r.randint(2, 90), r.choice(THINGS + FOODS)
    if r.random() < 0.5:
        pet = article(f"{color} {animal}")
        text = r.choice(
            (
                f"{name} is a {age}-year-old {job} from {city} who owns {pet}.",
                f"My name is {name}. I am {age} years old, I live in {city}, I work as {article(job)} "
                f"and I have {pet}.",
                f"Meet {name} from {city}: {age} years old, {job}, and proud owner of {pet}.",
            )
        )
        values = {"name": name, "age": age, "city": city, "job": job, "pet": animal, "color": color}
    else:
        day = r.choice(DAYS)
        text = r.choice(
            (
                f"{name} ordered {n} {color} {plural(item)} for {price} dollars, to be delivered to {city} on {day}.",
                f"Order: {n} {plural(item)}, {color}, total {price} dollars. Customer: {name}. "
                f"Deliver to {city} on {day}.",
                f"Please send {n} {color} {plural(item)} to {name} in {city} by {day}. The price is {price} dollars.",
            )
        )
        values = {
            "customer": name,
            "item": item,
            "quantity": n,
            "color": color,
            "price": price,
            "city": city,
            "day": day,
        }
    keys = r.sample(sorted(values), r.randint(2, min(5, len(values))))
    q = r.choice(
        (
            "Extract {k} as JSON: {t}",
            "Return a JSON object with the keys {k} for this text: {t}",
            "{t} Give me {k} as JSON.",
        )
    ).format(k=", ".join(keys), t=text)
    out = {k: values[k] for k in keys}
    think = "\n".join(f"{k}: {v}" for k, v in out.items())
    return ask(r, q, len(keys), q, think, json.dumps(out), score="json", direct=True)


def table(r):
    n = r.randint(3, 12)
    rows = [
        {"name": a, "age": r.randint(18, 80), "city": r.choice(CITIES), "score": r.randint(1, 100)}
        for a in r.sample(NAMES, n)
    ]
    cols = r.sample(("age", "city", "score"), r.randint(2, 3))
    head = "| name | " + " | ".join(cols) + " |\n|" + "---|" * (len(cols) + 1)
    body = "\n".join("| " + " | ".join(str(x[c]) for c in ["name"] + cols) + " |" for x in rows)
    nums = [c for c in cols if c != "city"]
    op = r.choice(("cell", "cell", "max", "sum", "missing"))
    if op == "cell":
        x, c = r.choice(rows), r.choice(cols)
        q, think, answer = f"What is the {c} of {x['name']}?", f"Row {x['name']}: {c} {x[c]}", str(x[c])
    elif op == "max":
        c = nums[0]
        top = max(x[c] for x in rows)
        best = next(x for x in rows if x[c] == top)
        q, think, answer = (
            f"Who has the highest {c}?",
            " ".join(str(x[c]) for x in rows) + f"\nHighest: {top}",
            best["name"],
        )
    elif op == "sum":
        c, (x, y) = nums[0], r.sample(rows, 2)
        q = f"What is the {c} of {x['name']} plus the {c} of {y['name']}?"
        think, answer = f"{x['name']}: {x[c]}\n{y['name']}: {y[c]}\n{x[c]}+{y[c]}={x[c] + y[c]}", str(x[c] + y[c])
    else:
        who = r.choice([a for a in NAMES if a not in {x["name"] for x in rows}])
        q, think, answer = (
            f"What is the {r.choice(cols)} of {who}?",
            f"No row {who}.",
            f"{who} is not in the table.",
        )
    text = f"{head}\n{body}\n\n{q}" if r.random() < 0.7 else f"{q}\n\n{head}\n{body}"
    return ask(r, text, n, text, think, answer, direct=op in ("cell", "missing"))


def filler(r):
    return r.choice(
        (
            "The {c} {a} sleeps near the {p}.",
            "{n} walks to the {p} every {d}.",
            "There is {xt} in the {p}.",
            "{n} likes the {c} {t}.",
            "The {p} in {s} opens on {d}.",
            "{n} and {m} talk about the {a}.",
            "It rains in {s} on {d}.",
            "One {c} {t} lies on the table.",
            "{n} works as a {j} in {s}.",
        )
    ).format(
        c=r.choice(COLORS),
        a=r.choice(ANIMALS),
        p=r.choice(PLACES),
        n=r.choice(NAMES),
        m=r.choice(NAMES),
        d=r.choice(DAYS),
        t=r.choice(THINGS),
        xt=article(r.choice(THINGS)),
        s=r.choice(CITIES),
        j=r.choice(JOBS),
    )


def needle(r, n_fill=None):
    """Several codes hidden in filler text; one to four of them are asked for."""
    if n_fill is None:
        n_fill = r.choice((5, 10, 20, 20, 40, 60))
    k = min(r.randint(1, 16), 2 + n_fill // 3)
    pairs = r.sample([(c, t) for c in COLORS for t in THINGS], k)
    codes = {p: str(r.randrange(1000, 10000)) for p in pairs}
    lines = [filler(r) for _ in range(n_fill)]
    for (c, t), v in codes.items():
        lines.insert(r.randint(0, len(lines)), f"The code of the {c} {t} is {v}.")
    asked = r.sample(pairs, min(k, r.choice((1, 1, 2, 3, 4))))
    if r.random() < 0.08:
        c, t = r.choice([p for p in ((c, t) for c in COLORS for t in THINGS) if p not in codes])
        q, think, answer = (
            f"What is the code of the {c} {t}?",
            f"No code of the {c} {t}.",
            "It is not in the text.",
        )
    else:
        what = [f"the {c} {t}" for c, t in asked]
        q = "What is the code of " + (what[0] if len(what) == 1 else ", ".join(what[:-1]) + " and " + what[-1]) + "?"
        think = "\n".join(f"{c} {t}: {codes[c, t]}" for c, t in asked)
        answer = ", ".join(codes[p] for p in asked)
    text = " ".join(lines)
    return ask(r, text + q, n_fill, f"{text}\n\n{q}", think, answer, direct=True)


def needle_long(r):
    """The same at 1k to 4k tokens, for the long-sequence stage."""
    return needle(r, r.choice((100, 180, 260, 350, 450)))
