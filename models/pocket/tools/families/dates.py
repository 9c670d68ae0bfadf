"""Weekdays, dates and times of day."""

import datetime

from families.samples import ask
from families.words import DAYS, MONTH_DAYS, MONTHS


def weekday(r):
    d, n, back = r.randrange(7), r.randint(1, 60), r.random() < 0.3
    w, k = divmod(n, 7)
    end = (d - k if back else d + k) % 7
    steps = [DAYS[(d - i if back else d + i) % 7] for i in range(k + 1)]
    q = f"Today is {DAYS[d]}. What day " + (f"was it {n} days ago?" if back else f"will it be in {n} days?")
    think = f"{n} = {w}*7 + {k}\n" + ", ".join(steps)
    return ask(r, f"{d}{'-' if back else '+'}{n}", 1 + (n > 7), q, think, DAYS[end])


def date(r):
    m, n = r.randrange(12), r.randint(1, 45)
    d = r.randint(1, MONTH_DAYS[m])
    lines, t, k = [], d + n, m
    lines.append(f"{d}+{n}={t}")
    while t > MONTH_DAYS[k]:
        lines.append(f"{MONTHS[k]} has {MONTH_DAYS[k]} days. {t}-{MONTH_DAYS[k]}={t - MONTH_DAYS[k]}")
        t, k = t - MONTH_DAYS[k], (k + 1) % 12
    q = r.choice(
        (
            "What date is {n} days after {m} {d} (not a leap year)?",
            "It is {m} {d}, not a leap year. What is the date in {n} days?",
        )
    ).format(n=n, m=MONTHS[m], d=d)
    check = datetime.date(2023, m + 1, d) + datetime.timedelta(days=n)
    assert (check.month - 1, check.day) == (k, t)
    return ask(r, f"{m}/{d}+{n}", 1 + (k != m), q, "\n".join(lines), f"{MONTHS[k]} {t}")


def clock(r):
    h, m, n = r.randint(0, 23), r.randint(0, 59), r.randint(1, 180)
    lines = []
    if n >= 60:
        lines.append(f"{n} minutes = {n // 60} h {n % 60} min")
    mm, hh = m + n % 60, h + n // 60
    lines.append(f"{m}+{n % 60}={mm}")
    if mm >= 60:
        lines.append(f"{mm}-60={mm - 60}, one more hour")
        mm, hh = mm - 60, hh + 1
    lines.append(f"{h}+{hh - h}={hh}" + (f", {hh}-24={hh - 24}" if hh >= 24 else ""))
    q = r.choice(
        (
            "What time is it {n} minutes after {t}?",
            "It is {t}. What time will it be in {n} minutes?",
            "A train leaves at {t} and travels {n} minutes. When does it arrive?",
        )
    )
    return ask(
        r,
        f"{h}:{m}+{n}",
        1 + (n >= 60),
        q.format(n=n, t=f"{h:02d}:{m:02d}"),
        "\n".join(lines),
        f"{hh % 24:02d}:{mm:02d}",
    )
