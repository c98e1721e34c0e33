"""The report of `python -m bench` as a picture: how many times faster than each rival, and the share of the ceiling."""

from pathlib import Path
from typing import Any

COLOURS = {
    "plain": "#4477aa",
    "foolbox": "#ee6677",
    "ART": "#228833",
    "contiguous": "#ccbb44",
    "channels_last": "#ccbb44",
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the report's rows to `path`, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "gauntlet", "font.size": 9}):
        figure = Figure(figsize=(9, 0.55 * len(report["rows"]) + 1.6), layout="constrained")
        times, share = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
        names = [row["name"] for row in report["rows"]]
        for place, row in enumerate(report["rows"]):
            rivals = row["times_faster_than"]
            for number, (rival, ratio) in enumerate(rivals.items()):
                height = 0.8 / len(rivals)
                at = place + (number - (len(rivals) - 1) / 2) * height
                times.barh(at, ratio, height * 0.9, color=COLOURS[rival])
                times.text(ratio, at, f" {ratio:.2f}", va="center")
            share.barh(place, 100 * row["share_of_ceiling"], 0.6, color="#bbbbbb")
            share.text(100 * row["share_of_ceiling"], place, f" {100 * row['share_of_ceiling']:.0f} %", va="center")
        times.set_yticks(range(len(names)), names)
        times.invert_yaxis()
        times.axvline(1, color="black", linewidth=0.8)
        times.set_xlabel("times faster than (median over interleaved rounds)")
        times.legend(handles=[mpl.patches.Patch(color=colour, label=name) for name, colour in COLOURS.items()])
        share.set_xlabel("% of the time that the minimal passes allow\nat the measured matrix product")
        figure.suptitle(f"{report['device']}, {report['execution']['threads']} threads, batch 256", fontsize=9)
        figure.savefig(path, metadata={"Date": None})
