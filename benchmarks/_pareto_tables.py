"""The tables and the plot of `pareto.py`."""

import platform
import statistics

from _pareto_tasks import TASKS

FLOAT, PEER = "float32", "TFMOT: "
# The goal of a task: smaller after gzip, faster, points of accuracy.
SMALLER, FASTER, POINTS = 20, 4, 1.0


def print_tables(results, folder):
    """Prints a Markdown table a task, what reaches the goal, and draws the plot.

    Args:
        results: Dict from task to a list, one a seed, of dicts from row to figures.
        folder: `pathlib.Path` for `pareto.png`.
    """
    if not results:
        print("There are no results in the folder yet.")
        return
    print(f"\nPython {platform.python_version()}, {platform.machine()}, one thread")
    for task, seeds in results.items():
        rows = {name: _row(name, seeds) for name in _common(seeds)}
        print(f"\n**{TASKS[task].about}**, {len(seeds)} seed(s)\n")
        print(
            "| | accuracy, mean (lowest to highest) | against float, points | bytes | "
            "gzip | smaller | faster |"
        )
        print("|---|---|---|---|---|---|---|")
        for name, row in rows.items():
            print(_line(name, row))
        _print_goal(rows)
    print(f"\nPlot: {_plot(results, folder / 'pareto.png')}")


def _common(seeds):
    return [name for name in seeds[0] if all(name in rows for rows in seeds)]


def _row(name, seeds):
    errors = [rows[name]["error"] for rows in seeds if "error" in rows[name]]
    if errors:
        return {"error": errors[0]}
    own, floats = [r[name] for r in seeds], [r[FLOAT] for r in seeds]
    pairs = list(zip(own, floats, strict=True))
    return {
        "accuracy": [r["accuracy"] for r in own],
        "points": [r["accuracy"] - f["accuracy"] for r, f in pairs],
        "bytes": statistics.median(r["bytes"] for r in own),
        "gzip": statistics.median(r["gzip"] for r in own),
        "smaller": statistics.median(f["gzip"] / r["gzip"] for r, f in pairs),
        "faster": statistics.median(r["faster"] for r in own),
    }


def _line(name, row):
    if "error" in row:
        return f"| {name} | refused: {row['error'][:80]} | | | | | |"
    accuracy, points = row["accuracy"], row["points"]
    return (
        f"| {name} | {statistics.mean(accuracy):.2f} % ({min(accuracy):.2f} to "
        f"{max(accuracy):.2f}) | {statistics.mean(points):+.2f} ({min(points):+.2f} to "
        f"{max(points):+.2f}) | {row['bytes']:,.0f} | {row['gzip']:,.0f} | "
        f"{row['smaller']:.1f}x | {row['faster']:.2f}x |"
    )


def _print_goal(rows):
    """Says plainly what is reached and what is not."""
    rows = {name: row for name, row in rows.items() if "error" not in row}
    ours = {n: r for n, r in rows.items() if not n.startswith(PEER) and n != FLOAT}
    within = {n: r for n, r in ours.items() if statistics.mean(r["points"]) >= -POINTS}
    reached = [
        n
        for n, r in within.items()
        if r["smaller"] >= SMALLER and r["faster"] >= FASTER
    ]
    goal = f"{SMALLER}x smaller, {FASTER}x faster, within {POINTS:g} point"
    print(f"\n{goal}: {'; '.join(reached) if reached else 'NOT reached'}")
    if within and not reached:
        best = max(within, key=lambda n: within[n]["smaller"])
        quick = max(within, key=lambda n: within[n]["faster"])
        print(
            f"within {POINTS:g} point: {best}, {within[best]['smaller']:.1f}x smaller; "
            f"{quick}, {within[quick]['faster']:.2f}x faster"
        )
    for name, peer in rows.items():
        if not name.startswith(PEER):
            continue
        small = [n for n in ours if ours[n]["gzip"] <= peer["gzip"]]
        if not small:
            print(f"behind {name}: none of ours is as small ({peer['gzip']:,.0f})")
            continue
        best = max(small, key=lambda n: statistics.mean(ours[n]["accuracy"]))
        lead = statistics.mean(ours[best]["accuracy"]) - statistics.mean(
            peer["accuracy"]
        )
        word = "ahead of" if lead >= 0 else "BEHIND"
        print(f"{word} {name} at its size by {abs(lead):.2f} points: {best}")


def _plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results), 4.2), squeeze=False
    )
    for ax, (task, seeds) in zip(axes[0], results.items(), strict=True):
        rows = {name: _row(name, seeds) for name in _common(seeds)}
        rows = {name: row for name, row in rows.items() if "error" not in row}
        for label, colour, mark, own in (
            ("tfcompress", "#2a78d6", "o", lambda n: not n.startswith(PEER)),
            ("TFMOT", "#c2571a", "s", lambda n: n.startswith(PEER)),
        ):
            points = sorted(
                (row["gzip"] / 1000, statistics.mean(row["accuracy"]))
                for name, row in rows.items()
                if own(name) and name != FLOAT
            )
            if points:
                x, y = zip(*points, strict=True)
                ax.scatter(x, y, c=colour, marker=mark, s=28, label=label)
                best = [max(y[: i + 1]) for i in range(len(y))]
                ax.step(x, best, where="post", color=colour, linewidth=1)
        base = statistics.mean(rows[FLOAT]["accuracy"])
        ax.axhline(base, color="#6b7480", linewidth=1, linestyle="--", label="float32")
        ax.set_xscale("log")
        # Decades alone are too few, and 3e1 beside 4e1 overlap.
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        ax.set_xlabel("file after gzip, kB")
        ax.set_ylabel("accuracy, %")
        ax.set_title(task)
        ax.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
