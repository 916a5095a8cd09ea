"""What a run leaves: Markdown tables, JSON with every round, and charts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from chart import Bar, Panel, svg
from figures import FIRST_BYTE_LIMIT_MS, RSS_GROWTH_LIMIT_MIB, Figures
from targets import DIRECT, NGINX, READ_ALL, Kind, Target

_NONE: Final = "-"


@dataclass
class Report:
    """All that a run found out; `backup` is the table of the photo backup."""

    machine: Mapping[str, str]
    targets: Sequence[Target]
    rounds: int
    missing: dict[str, str] = field(default_factory=dict)
    figures: list[Figures] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    backup: str = ""
    backup_figures: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def missed_limits(self) -> list[str]:
        """Limits that the bridge missed, in any mode."""
        return [
            f"{figures.work.name}, {target.name}: {missed}"
            for figures in self.figures
            for target in self.targets
            if target.kind is Kind.BRIDGE
            for missed in figures.missed_limits(target.name)
        ]

    def markdown(self) -> str:
        """The whole report."""
        sections = [
            "# Speed beside other proxies",
            f"{self.rounds} rounds, shuffled; median, in parentheses (least-most). "
            f"Ratios are of speeds of the same round. {self.note}".strip(),
            "\n".join(f"- **{name}**: {value}" for name, value in self.machine.items()),
        ]
        if self.missing:
            lines = [f"- **MISSING: {name}**: {why}" for name, why in self.missing.items()]
            sections.append("\n".join(lines))
        sections += ["## Overview", self.overview(), self.summary()]
        for figures in self.figures:
            sections += [f"## {figures.work.name[:1].upper()}{figures.work.name[1:]}"]
            sections += [self._table(figures)]
        if self.backup:
            sections += ["## The photo backup", self.backup]
        sections += ["## Verdict", self.verdict()]
        return "\n\n".join(sections) + "\n"

    def overview(self) -> str:
        """Speed by work and target."""
        names = [target.name for target in self.targets]
        lines = [_row("Work", "", *names), _rule(len(names) + 2)]
        for figures in self.figures:
            speeds = [_number(figures.speed(name)) for name in names]
            lines.append(_row(figures.work.name, figures.speed_unit, *speeds))
        return "\n".join(lines)

    def summary(self) -> str:
        """The bridge with its defaults, against each of the others."""
        ours = next((t.name for t in self.targets if t.kind is Kind.BRIDGE), "")
        others = [t.name for t in self.targets if t.kind in (Kind.PEER, Kind.BASELINE)]
        names = (f"x {name}" for name in (DIRECT, *others))
        lines = [_row("Work", ours, *names, "CPU", *(f"CPU of {name}" for name in others))]
        lines.append(_rule(4 + 2 * len(others)))
        for figures in self.figures:
            ratios = [_number(figures.ratio(ours, name), 2) for name in (DIRECT, *others)]
            cpu = [_number(figures.cpu(name)) for name in (ours, *others)]
            cpu[0] += f" {figures.cpu_unit.removeprefix('CPU ')}"
            speed = f"{_number(figures.speed(ours))} {figures.speed_unit}"
            lines.append(_row(figures.work.name, speed, *ratios, *cpu))
        return "\n".join(lines)

    def verdict(self) -> str:
        """Whether limits were met and bytes right."""
        limits = f"MISSED: {'; '.join(self.missed_limits)}" if self.missed_limits else "met"
        answers = f"WRONG: {'; '.join(self.faults)}" if self.faults else "all as announced"
        return (
            f"- Limits of a single large upload through the bridge: RSS growth at most "
            f"{RSS_GROWTH_LIMIT_MIB:g} MiB in the worst round, first byte within "
            f"{FIRST_BYTE_LIMIT_MS:g} ms in the median: **{limits}**\n"
            f"- Answers and bytes: **{answers}**"
        )

    def write(self, folder: Path, name: str) -> None:
        """Write `NAME.md`, `NAME.json`, `NAME-speed.svg` and `NAME-cpu.svg`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(self.markdown())
        (folder / f"{name}.json").write_text(json.dumps(_rounded(self._as_json()), indent=1) + "\n")
        where = f"{self.machine['processor']}; other proxies grey; median of {self.rounds} rounds"
        for kind, caption in (("speed", "More is better"), ("cpu", "Less is better")):
            (folder / f"{name}-{kind}.svg").write_text(
                svg(self._panels(kind), f"{caption}. {where}")
            )

    def _table(self, figures: Figures) -> str:
        header = [
            "Through",
            figures.speed_unit,
            "x direct",
            f"x {NGINX}",
            f"x {READ_ALL}",
            figures.cpu_unit,
            "peak RSS MiB",
        ]
        timed = not figures.work.once
        if timed:
            header += ["p50 + ms", "p99 + ms"]
        lines = [_row(*header), _rule(len(header))]
        for target in self.targets:
            name = target.name
            if name not in figures.samples:
                lines.append(_row(name, figures.notes.get(name, _NONE)))
                continue
            cells = [_spread(figures.speed(name))]
            cells += [_number(figures.ratio(name, base), 2) for base in (DIRECT, NGINX, READ_ALL)]
            cells += [_spread(figures.cpu(name)), _number(figures.peak_rss_mib(name))]
            if timed:
                cells += [_number(figures.added_ms(name, part), 2) for part in ("p50", "p99")]
            if note := figures.notes.get(name):
                cells.append(note)
            lines.append(_row(name, *cells))
        return "\n".join(lines)

    def _panels(self, kind: str) -> list[Panel]:
        panels = []
        for figures in self.figures:
            if not figures.work.charted:
                continue
            bars = []
            for target in self.targets:
                values = figures.speed(target.name) if kind == "speed" else figures.cpu(target.name)
                # Against the bare upstream every proxy looks short, and alike.
                if values and target.kind is not Kind.DIRECT:
                    bars.append(Bar(target.name, median(values), target.kind is Kind.BRIDGE))
            unit = figures.speed_unit if kind == "speed" else figures.cpu_unit
            panels.append(Panel(figures.work.name, unit, bars))
        return panels

    def _as_json(self) -> dict[str, Any]:
        return {
            "machine": dict(self.machine),
            "rounds": self.rounds,
            "note": self.note,
            "missing": self.missing,
            "works": [
                {
                    "name": figures.work.name,
                    "bytes": figures.work.bytes,
                    "connections": figures.work.connections,
                    "targets": {
                        name: [asdict(sample) for sample in samples]
                        for name, samples in figures.samples.items()
                    },
                    "notes": figures.notes,
                }
                for figures in self.figures
            ],
            "backup": dict(self.backup_figures),
            "missed_limits": self.missed_limits,
            "faults": self.faults,
        }


def _rounded(value: Any) -> Any:
    """Digits behind what a clock can tell only fill files."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


def _format(value: float, digits: int | None) -> str:
    if digits is None:
        digits = 0 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def _number(values: Sequence[float], digits: int | None = None) -> str:
    return _format(median(values), digits) if values else _NONE


def _spread(values: Sequence[float]) -> str:
    if not values:
        return _NONE
    middle, least, most = (_format(v, None) for v in (median(values), min(values), max(values)))
    return f"{middle} ({least}-{most})"
