#!/usr/bin/env python3
"""Lists the crates linked into the program, with their licences, in THIRD_PARTY_NOTICES.md.

  crate_licenses.py           writes the section between the two marks
  crate_licenses.py --check   fails when it is not what Cargo.lock says
"""
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTICES = ROOT / "THIRD_PARTY_NOTICES.md"
MANIFEST = ROOT / "src" / "text" / "bridge" / "Cargo.toml"
BEGIN, END = "<!-- crates: written by scripts/crate_licenses.py -->", "<!-- end of crates -->"


def linked_crates():
    """What is in the static library: normal dependencies, nothing that only runs in the compiler."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--manifest-path", str(MANIFEST),
               "--filter-platform", "x86_64-unknown-linux-gnu"]
    data = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    packages = {p["id"]: p for p in data["packages"]}
    nodes = {n["id"]: n for n in data["resolve"]["nodes"]}
    root = data["resolve"]["root"]
    seen, waiting = set(), [root]
    while waiting:
        at = waiting.pop()
        if at in seen or any("proc-macro" in t["kind"] for t in packages[at]["targets"]):
            continue
        seen.add(at)
        waiting += [d["pkg"] for d in nodes[at]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
    return sorted((packages[i] for i in seen - {root}), key=lambda p: (p["name"], p["version"]))


def needs_notice(crate):
    """Whether no choice of its licence is one whose text is in LICENSE or that asks for nothing."""
    choices = re.split(r" OR |/", crate["license"].replace(" / ", "/"))
    return not {"Apache-2.0", "Unlicense"} & set(choices)


def copyright_lines(crate):
    folder, lines = pathlib.Path(crate["manifest_path"]).parent, []
    for path in sorted(folder.glob("LICENSE*")) + sorted(folder.glob("license*")):
        if "APACHE" not in path.name.upper():
            lines += re.findall(r"^\s*(Copyright .*\d{4}.*|Copyright \(c\) .*)$", path.read_text(), re.M | re.I)
    authors = ", ".join(re.sub(r" *<.*>", "", name) for name in crate["authors"])
    return list(dict.fromkeys(line.strip() for line in lines)) or [f"by {authors}"]


def section():
    crates = linked_crates()
    rows = [f"| {c['name']} | {c['version']} | {c['license']} |" for c in crates]
    notices = [f"- {c['name']} ({c['license']}): {'; '.join(copyright_lines(c))}" for c in crates if needs_notice(c)]
    return "\n".join([BEGIN, "", "| crate | version | licence |", "|---|---|---|", *rows, "",
                      "Where Apache-2.0 is one of the choices it is the one taken (its text is in LICENSE), else the Unlicense, which asks",
                      "for nothing. The others, their texts below:", "",
                      *notices, "", END])


def main():
    text = NOTICES.read_text()
    begin, end = text.index(BEGIN), text.index(END) + len(END)
    new = text[:begin] + section() + text[end:]
    if "--check" not in sys.argv[1:]:
        NOTICES.write_text(new)
    elif new != text:
        sys.exit("THIRD_PARTY_NOTICES.md is not what src/text/bridge/Cargo.lock says: run scripts/crate_licenses.py")


if __name__ == "__main__":
    main()
