#!/usr/bin/env python3
"""Writes the tables of result files, and a chart of the end-to-end rows, light or dark as the page.

render.py RESULT.json ... [--chart FILE.svg]
"""

import argparse
import json
import pathlib

COLOURS = {"peft": "#b8643c", "patched": "#2f7f9f"}
LABELS = {"peft": "PEFT", "patched": "patched"}


def gib(contenders: dict[str, dict]) -> str:
    peaks = [one["peak_gib"] for one in contenders.values()]
    return ", ".join("–" if one is None else f"{one:.1f}" for one in peaks)


def e2e(result: dict) -> str:
    lines = [
        "| model | layers | batch × tokens | | frozen, ms | PEFT | patched | peak GiB: all three |",
        "|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"].values():
        names = ["graph", "f32_adapters", "checkpointing", "compiled", "dropout"]
        how = ", ".join(name.replace("_", " ") for name in names if row.get(name))
        of = row["contenders"]
        lines.append(
            f"| {row['size']} | {row['layers']} | {row['batch']} × {row['seq']} | {how} "
            f"| {of['frozen']['ms']:.1f} | {of['peft']['ratio']:.2f} "
            f"| **{of['patched']['ratio']:.2f}** | {gib(of)} |"
        )
    return "\n".join(lines)


def host(result: dict) -> str:
    lines = ["| a call | forward, µs | backward, µs |", "|---|---:|---:|"]
    rows = result["rows"].items()
    lines += [f"| {name} | {r['forward_us']:.1f} | {r['backward_us']:.1f} |" for name, r in rows]
    return "\n".join(lines)


def train(result: dict) -> str:
    lines = ["| | first loss | mean of the last 20 | held out |", "|---|---:|---:|---:|"]
    for name, run in result["runs"].items():
        last = sum(run["loss"][-20:]) / len(run["loss"][-20:])
        lines.append(f"| {LABELS[name]} | {run['loss'][0]:.4f} | {last:.4f} "
                     f"| {run['held_out']:.4f} |")  # fmt: skip
    change = result["difference"]
    lines.append(f"| difference | | {change['last20']:+.2%} | {change['held_out']:+.2%} |")
    return "\n".join(lines)


def source(result: dict) -> str:
    versions = ", ".join(f"{name} {result[name]}" for name in ("torch", "transformers", "peft"))
    return (f"{result['card']}, driver {result['driver']}, {versions}; {result['date']}, "
            f"commit {result['commit']}; `{result['command']}`")  # fmt: skip


def chart(result: dict) -> str:
    """Bars of the time over the frozen model's, from 1."""
    rows = result["rows"]
    most = max(one["ratio"] for row in rows.values() for one in row["contenders"].values())
    left, width, bar = 190, 420, 11
    height = 34 + 34 * len(rows)
    scale = width / max(most - 1, 0.01)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 60} {height}" '
        'font-family="sans-serif" font-size="11">',
        "<style>text{fill:#222}line{stroke:#bbb}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}line{stroke:#555}}</style>",
        '<text x="8" y="16">A step\'s time over that of the frozen model</text>',
        f'<line x1="{left}" y1="24" x2="{left}" y2="{height}"/>',
    ]
    for i, (name, row) in enumerate(rows.items()):
        y = 32 + 34 * i
        parts.append(f'<text x="{left - 8}" y="{y + bar + 3}" text-anchor="end">{name}</text>')
        for j, (who, colour) in enumerate(COLOURS.items()):
            ratio, top = row["contenders"][who]["ratio"], y + j * (bar + 2)
            wide = max((ratio - 1) * scale, 1)
            parts.append(f'<rect x="{left}" y="{top}" width="{wide:.1f}" height="{bar}" '
                         f'fill="{colour}"/>')  # fmt: skip
            parts.append(f'<text x="{left + wide + 5:.1f}" y="{top + bar - 2}">'
                         f"{ratio:.2f} {LABELS[who]}</text>")  # fmt: skip
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--chart")
    args = parser.parse_args()
    tables = {"e2e": e2e, "host": host, "train": train}
    for path in args.results:
        result = json.loads(pathlib.Path(path).read_text())
        print(f"{tables[result['kind']](result)}\n\n{source(result)}\n")
        if args.chart and result["kind"] == "e2e":
            pathlib.Path(args.chart).write_text(chart(result))


main()
