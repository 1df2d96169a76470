#!/usr/bin/env python3
"""Writes licenses/: the project's own, and THIRD-PARTY.txt for all crates in the wheel.

Each crate brings its own text. Crates that run while others are built, such as
procedural macros, are not in the wheel.
"""

import json
import pathlib
import shutil
import subprocess

HERE = pathlib.Path(__file__).parent
OUT = HERE / "licenses"
NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE", "COPYRIGHT")


def linked() -> list[dict]:
    """The crates that the wheel links, by their names."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked",
               "--filter-platform", "x86_64-unknown-linux-gnu"]  # fmt: skip
    found = json.loads(subprocess.run(command, cwd=HERE, check=True, capture_output=True).stdout)
    packages = {one["id"]: one for one in found["packages"]}
    nodes = {one["id"]: one for one in found["resolve"]["nodes"]}
    todo, seen = [found["resolve"]["root"]], set()
    while todo:
        crate = todo.pop()
        macro = any("proc-macro" in target["kind"] for target in packages[crate]["targets"])
        if crate in seen or macro:
            continue
        seen.add(crate)
        todo += [
            dep["pkg"] for dep in nodes[crate]["deps"]
            if any(kind["kind"] is None for kind in dep["dep_kinds"])
        ]  # fmt: skip
    # Our own crates have no source: they are paths.
    return sorted((packages[one] for one in seen if packages[one]["source"]),
                  key=lambda one: one["name"])  # fmt: skip


def texts(package: dict) -> list[str]:
    """The licence files of a crate."""
    folder = pathlib.Path(package["manifest_path"]).parent
    files = sorted(one for one in folder.iterdir() if one.name.upper().startswith(NAMES))
    found = [one.read_text(errors="replace").strip() for one in files if one.is_file()]
    if not found:
        raise SystemExit(f"{package['name']} {package['version']} brings no licence text")
    return found


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(HERE.parents[1] / name, OUT / name)
    users: dict[str, list[str]] = {}
    lines = [
        "The wheel links these crates, and Rust's standard library (MIT OR Apache-2.0):",
        "",
    ]
    for package in linked():
        title = f"{package['name']} {package['version']}"
        lines.append(f"{title}: {package['license']}")
        for text in texts(package):
            users.setdefault(text, []).append(title)
    for text, titles in users.items():
        lines += ["", "-" * 80, ", ".join(titles), "", text]
    (OUT / "THIRD-PARTY.txt").write_text("\n".join(lines) + "\n")


main()
