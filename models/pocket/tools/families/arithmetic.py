"""Arithmetic with written-out steps: the four operations, comparing, units, sequences, number systems."""

from families.samples import ask, digits_number


def add_lines(a, b):
    """Column addition from the ones; each line ends with the result so far."""
    da, db = str(a)[::-1], str(b)[::-1]
    lines, carry, done = [], 0, ""
    for i in range(max(len(da), len(db))):
        parts = [d[i] for d in (da, db) if i < len(d)] + (["1"] if carry else [])
        s = sum(map(int, parts))
        carry, done = s // 10, str(s % 10) + done
        lines.append(
            "+".join(parts) + (f"={s}" if len(parts) > 1 else "") + f" -> {done}" + (" carry 1" if carry else "")
        )
    if carry:
        done = "1" + done
        lines.append(f"1 -> {done}")
    assert int(done) == a + b
    return lines


def sub_lines(a, b):
    """Column subtraction for a >= b."""
    da, db = str(a)[::-1], str(b)[::-1]
    lines, borrow, done = [], 0, ""
    for i in range(len(da)):
        parts = [da[i]] + ([db[i]] if i < len(db) else []) + (["1"] if borrow else [])
        t = int(da[i]) - sum(map(int, parts[1:]))
        text = "-".join(parts)
        if t < 0:
            t += 10
            text = f"{text}: borrow, " + "-".join(["1" + parts[0]] + parts[1:])
            borrow = 1
        else:
            borrow = 0
        done = str(t) + done
        lines.append(text + (f"={t}" if len(parts) > 1 else "") + f" -> {done}")
    assert int(done) == a - b
    if len(done) > 1 and done[0] == "0":
        lines.append(f"Drop zeros: {a - b}")
    return lines


def mul1_lines(a, d):
    """A number times one digit."""
    lines, carry, done = [], 0, ""
    for x in reversed(str(a)):
        s = int(x) * d + carry
        lines.append(
            f"{x}*{d}"
            + (f"+{carry}" if carry else "")
            + f"={s} -> {s % 10}{done}"
            + (f" carry {s // 10}" if s >= 10 else "")
        )
        done, carry = str(s % 10) + done, s // 10
    if carry:
        done = str(carry) + done
        lines.append(f"{carry} -> {done}")
    assert int(done) == a * d
    return lines


def add(r):
    n = r.choices(range(1, 9), (1, 3, 4, 4, 3, 3, 2, 2))[0]
    a, b = digits_number(r, n), digits_number(r, r.randint(max(1, n - 2), n))
    if r.random() < 0.5:
        a, b = b, a
    q = r.choice(
        (
            "What is {a} + {b}?",
            "Add {a} and {b}.",
            "{a} + {b} =",
            "Calculate {a} plus {b}.",
            "What is the sum of {a} and {b}?",
            "Please add {a} to {b}.",
        )
    ).format(a=a, b=b)
    return ask(r, f"{a}+{b}", n, q, "\n".join(add_lines(a, b)), str(a + b), direct=n <= 2)


def sub(r):
    n = r.choices(range(1, 9), (1, 3, 4, 4, 3, 3, 2, 2))[0]
    a, b = digits_number(r, n), digits_number(r, r.randint(max(1, n - 2), n))
    if a < b and r.random() < 0.8:
        a, b = b, a
    q = r.choice(
        (
            "What is {a} - {b}?",
            "Subtract {b} from {a}.",
            "{a} - {b} =",
            "Calculate {a} minus {b}.",
            "What is the difference {a} - {b}?",
            "Take {b} away from {a}.",
        )
    ).format(a=a, b=b)
    if a >= b:
        think = "\n".join(sub_lines(a, b))
    else:
        think = f"{a} is less than {b}, so negative: -({b}-{a})\n" + "\n".join(sub_lines(b, a))
    return ask(r, f"{a}-{b}", n, q, think, str(a - b), direct=n <= 2)


def mul(r):
    na, nb = r.choices(((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2)), (1, 3, 3, 2, 4, 3))[0]
    a, b = digits_number(r, na), digits_number(r, nb)
    q = r.choice(
        (
            "What is {a} * {b}?",
            "Multiply {a} by {b}.",
            "{a} times {b} =",
            "Calculate {a} * {b}.",
            "What is the product of {a} and {b}?",
        )
    ).format(a=a, b=b)
    if b < 10:
        think = mul1_lines(a, b)
    else:
        tens, ones = b // 10, b % 10
        p, s = a * ones, a * tens * 10
        think = [f"{a}*{b} = {a}*{ones} + {a}*{tens}0"] + mul1_lines(a, ones) + [f"First part {p}"]
        think += mul1_lines(a, tens) + [f"Second part {s}"] + add_lines(p, s)
    return ask(r, f"{a}*{b}", na * 10 + nb, q, "\n".join(think), str(a * b), direct=na + nb == 2)


def div(r):
    n = r.choices((1, 2, 3, 4, 5), (1, 3, 4, 3, 2))[0]
    a, b = digits_number(r, n), r.randint(2, 9 if n > 3 else 12)
    q = r.choice(
        (
            "What is {a} divided by {b}?",
            "Divide {a} by {b}.",
            "{a} / {b} =",
            "Calculate {a} / {b} with remainder.",
        )
    ).format(a=a, b=b)
    lines, rest, done = [], 0, ""
    for x in str(a):
        cur = rest * 10 + int(x)
        k, rest = divmod(cur, b)
        done += str(k)
        lines.append(f"{cur}/{b}={k} rest {rest} -> {done}")
    if len(done) > 1 and done[0] == "0":
        lines.append(f"Drop zeros: {int(done)}")
    answer = str(a // b) + (f" remainder {a % b}" if a % b else "")
    return ask(r, f"{a}/{b}", n, q, "\n".join(lines), answer)


def compare(r):
    if r.random() < 0.5:
        n = r.randint(1, 7)
        a, b = digits_number(r, n), digits_number(r, max(1, n - r.choice((0, 0, 0, 1))))
        if r.random() < 0.4 and n > 1:
            t = list(str(a))
            i = r.randrange(1, n)
            t[i] = str((int(t[i]) + r.randint(1, 9)) % 10)
            b = int("".join(t))
        if r.random() < 0.5:
            a, b = b, a
        sa, sb, level = str(a), str(b), n
        if len(sa) != len(sb):
            think = f"{sa} has {len(sa)} digits, {sb} has {len(sb)}."
        elif a == b:
            think = "Same digits."
        else:
            i = next(i for i in range(len(sa)) if sa[i] != sb[i])
            think = f"Same length. Digit {i + 1}: {sa[i]} against {sb[i]}."
    else:
        w = r.randint(0, 99)
        fa, fb = (str(r.randrange(1, 10 ** r.randint(1, 3))).rstrip("0") or "5" for _ in range(2))
        sa, sb, level = f"{w}.{fa}", f"{w if r.random() < 0.8 else r.randint(0, 99)}.{fb}", 10
        a, b = float(sa), float(sb)
        (ia, xa), (ib, xb) = sa.split("."), sb.split(".")
        if ia != ib:
            think = f"Whole parts: {ia} against {ib}."
        else:
            m = max(len(xa), len(xb))
            think = f"Same whole part. After the point, padded: {xa.ljust(m, '0')} against {xb.ljust(m, '0')}."
    q = r.choice(
        (
            "Which is larger, {a} or {b}?",
            "Which number is bigger: {a} or {b}?",
            "Compare {a} and {b}. Which is greater?",
        )
    ).format(a=sa, b=sb)
    answer = "They are equal." if a == b else f"{sa if a > b else sb} is larger."
    return ask(r, f"{sa}?{sb}", level, q, think, answer, direct=True)


def units(r):
    units = (
        ("km", "m", 1000),
        ("m", "cm", 100),
        ("cm", "mm", 10),
        ("kg", "g", 1000),
        ("liters", "ml", 1000),
        ("hours", "minutes", 60),
        ("minutes", "seconds", 60),
        ("days", "hours", 24),
        ("weeks", "days", 7),
        ("years", "months", 12),
        ("dozens", "pieces", 12),
        ("feet", "inches", 12),
        ("yards", "feet", 3),
    )
    kind = r.random()
    if kind < 0.15:
        c = r.randint(-8, 24) * 5
        return ask(
            r,
            f"{c}C",
            3,
            r.choice(("Convert {c} degrees Celsius to Fahrenheit.", "What is {c} C in Fahrenheit?")).format(c=c),
            f"{c}*9/5={c * 9 // 5}\n{c * 9 // 5}+32={c * 9 // 5 + 32}",
            f"{c * 9 // 5 + 32} degrees Fahrenheit",
        )
    big, small, f = r.choice(units)
    n = r.randint(2, 99)
    if kind < 0.6:
        q = r.choice(("Convert {n} {a} to {b}.", "How many {b} are {n} {a}?", "{n} {a} in {b}?"))
        return ask(
            r,
            f"{n}{big}",
            1,
            q.format(n=n, a=big, b=small),
            f"1 {big} = {f} {small}\n{n}*{f}={n * f}",
            f"{n * f} {small}",
        )
    q = r.choice(("Convert {n} {a} to {b}.", "How many {b} are {n} {a}?", "{n} {a} in {b}?"))
    return ask(
        r,
        f"{n * f}{small}>{big}",
        2,
        q.format(n=n * f, a=small, b=big),
        f"{f} {small} = 1 {big}\n{n * f}/{f}={n}",
        f"{n} {big}",
    )


def sequence(r):
    n, start, step = r.randint(3, 5), r.randint(1, 60), r.randint(2, 25)
    if r.random() < 0.2:
        step = r.choice((2, 3))
        seq = [r.randint(1, 12)]
        for _ in range(n):
            seq.append(seq[-1] * step)
        think = f"Each number is {step} times the one before.\n{seq[-2]}*{step}={seq[-1]}"
    else:
        if r.random() < 0.3:
            start, step = start + step * (n + 1), -step
        seq = [start + i * step for i in range(n + 1)]
        think = (
            f"{seq[1]}-{seq[0]}={step}\nThe step is {step}.\n{seq[-2]}{'+' if step > 0 else '-'}{abs(step)}={seq[-1]}"
        )
    shown = ", ".join(map(str, seq[:-1]))
    q = r.choice(("What comes next: {s}?", "Continue the sequence: {s}", "Find the next number: {s}")).format(s=shown)
    return ask(r, shown, n, q, think, str(seq[-1]))


def bases(r):
    kind = r.choice(("tobin", "frombin", "roman"))
    if kind == "tobin":
        n = r.randint(1, 255)
        lines, x, bits = [], n, ""
        while x:
            bits = str(x % 2) + bits
            lines.append(f"{x}/2={x // 2} rest {x % 2} -> {bits}")
            x //= 2
        return ask(
            r,
            f"bin{n}",
            1,
            r.choice((f"Write {n} in binary.", f"Convert {n} to binary.")),
            "\n".join(lines),
            bits,
        )
    if kind == "frombin":
        n = r.randint(1, 255)
        lines, x = [], 0
        for b in f"{n:b}":
            lines.append(f"{x}*2+{b}={x * 2 + int(b)}")
            x = x * 2 + int(b)
        return ask(
            r,
            f"0b{n:b}",
            2,
            r.choice((f"Write binary {n:b} as a decimal number.", f"What is {n:b} in base 10?")),
            "\n".join(lines),
            str(n),
        )
    n = r.randint(1, 399)
    lines, x, out = [], n, ""
    for v, s in (
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ):
        while x >= v:
            out, x = out + s, x - v
            lines.append(f"{s} {v}, left {x} -> {out}")
    return ask(
        r,
        f"rom{n}",
        3,
        r.choice((f"Write {n} in Roman numerals.", f"What is {n} as a Roman numeral?")),
        "\n".join(lines),
        out,
    )
