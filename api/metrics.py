"""Prometheus' text format, version 0.0.4."""

from collections.abc import Iterable

from store.gauges import Gauge

MEDIA = "text/plain; version=0.0.4; charset=utf-8"


def render(gauges: Iterable[Gauge]) -> str:
    """Return the samples, each name under its help and its kind."""
    lines: list[str] = []
    for gauge in gauges:
        lines += [f"# HELP {gauge.name} {gauge.says}", f"# TYPE {gauge.name} {gauge.kind}"]
        for *values, number in sorted(gauge.samples):
            labels = ",".join(
                f'{name}="{_escaped(str(value))}"' for name, value in zip(gauge.labels, values, strict=True)
            )
            lines.append(f"{gauge.name}{{{labels}}} {number}" if labels else f"{gauge.name} {number}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
